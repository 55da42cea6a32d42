from dataclasses import dataclass

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import allotted, spared, without


@noises.register
class Sparsify(Noise):
    """Fewer training events for every user.

    level: share of each user's events that go, at random, rounded up or down so that it is the share of all too; one
    stays. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def change(self, data: Data, generator: torch.Generator) -> Data:
        users = data.train.users
        order = (torch.rand(len(users), generator=generator) + spared(data, generator)).argsort(stable=True)
        order = order[users[order].argsort(stable=True)]  # a run for each user, what is spared last
        counts = torch.bincount(users, minlength=data.n_users)
        place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[users[order]]
        many = allotted(counts, self.level, generator).minimum(counts - 1)
        return without(data, order[place < many[users[order]]])
