from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import with_test


@noises.register
class PopularityShift(Noise):
    """A test part in which popular items are rarer (after SKEW of Bonner & Vasile, RecSys 2018).

    level: between the test part as it is (0) and half of it (1): a share of 1 − level / 2 is drawn without replacement,
    in proportion to the inverse of an item's training events. Train and valid stay.
    """

    @dataclass
    class Config(Level):
        pass

    of_test: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def change(self, data: Data, generator: torch.Generator) -> Data:
        counts = torch.bincount(data.train.items, minlength=data.n_items).clamp_min(1)
        size = len(data.test)
        kept = torch.zeros(size, dtype=torch.bool)
        kept[drawn(1 / counts[data.test.items], size - round(self.level / 2 * size), generator)] = True
        return with_test(data, kept, "after popularity_shift")
