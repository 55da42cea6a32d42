from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import added, checked, joined, with_train


@noises.register
class EdgeAdd(Noise):
    """False edges of the interaction graph.

    level: as a share of the training events. bias: none, users and items uniform; degree, both in proportion to their
    training events. A false edge is a copy of an event of its user with an item that the user has in no part; it is
    marked in `train/noise` of the ground truth. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train, count = data.train, self.count(len(data.train))
        degrees = torch.bincount(train.items, minlength=data.n_items).float()
        popularity = degrees if self.bias == "degree" else torch.ones(data.n_items)
        base = self._bases(data, count, generator)
        false, origin = added(data, base, popularity, generator)
        noise = torch.cat([torch.zeros(len(train), dtype=torch.bool), torch.ones(len(origin), dtype=torch.bool)])
        return with_train(data, joined(train, false), torch.cat([torch.arange(len(train)), origin]), noise)

    def _bases(self, data: Data, count: int, generator: torch.Generator) -> Tensor:
        """Training events whose users get an edge: any, or any of a user."""
        if self.bias == "degree":
            return torch.randint(len(data.train), (count,), generator=generator)
        events = torch.bincount(data.train.users, minlength=data.n_users)
        users = torch.randint(data.n_users, (count,), generator=generator)
        within = (torch.rand(count, generator=generator) * events[users]).long()
        return (events.cumsum(0) - events)[users] + within  # events of a part are ordered by user
