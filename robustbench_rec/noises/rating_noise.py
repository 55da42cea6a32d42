from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import with_train


@noises.register
class RatingNoise(Noise):
    """Gaussian noise on training ratings.

    level: standard deviation in units of the ratings. The result is the nearest rating that train has, so it stays on
    the scale. Valid and test stay; the ratings as they were are `train/rating` of the ground truth.
    """

    @dataclass
    class Config(Level):
        pass

    needs: ClassVar[frozenset[str]] = frozenset({"rating"})
    most: ClassVar[float] = float("inf")

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train = data.train
        scale = torch.unique(train.values)  # sorted
        if not bool((scale > 1).any()):
            raise RrecError(
                f"noise '{self.name}' is for ratings, dataset '{data.name}' has clicks: take noise=label_flip"
            )
        moved = train.values + self.level * torch.randn(len(train), generator=generator)
        middles = (scale[1:] + scale[:-1]) / 2
        noisy = replace(train, values=scale[torch.bucketize(moved, middles)])
        truth = {"train/rating": train.values, **data.truth}
        return with_train(replace(data, truth=truth), noisy, torch.arange(len(train)))
