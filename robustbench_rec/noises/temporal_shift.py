from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import without


@noises.register
class TemporalShift(Noise):
    """A model that is out of date: the latest training events are missing.

    level: share of the training events that go, the latest of all; a user's first one stays, the first with label 1
    where there is one. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        pass

    needs: ClassVar[frozenset[str]] = frozenset({"time"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train = data.train
        assert train.times is not None
        n = len(train)
        turn = torch.arange(n) + n * (train.values == 0)  # events of a part are ordered by user and time
        first = turn.new_full((data.n_users,), 2 * n).scatter_reduce(0, train.users, turn, "amin")
        spared = torch.zeros(n, dtype=torch.bool)
        spared[first[first < 2 * n] % n] = True
        order = train.times.argsort(stable=True, descending=True)
        return without(data, order[~spared[order]][: self.count(n)])
