from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import added, checked, inserted


@noises.register
class EdgeAdd(Noise):
    """False edges of the interaction graph.

    level: as a share of the edges, which are the training events but those with label 0. bias: none, users and items
    uniform; degree, both in proportion to their training events. A false edge is a copy of an edge of its user, and
    stands behind it, with an item that the user has in no part; it is marked in `train/noise` of the ground truth. A
    warning says where there are too few such items. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train, edges = data.train, data.train.values.nonzero().squeeze(1)
        degrees = torch.bincount(train.items, minlength=data.n_items).float()
        popularity = degrees if self.bias == "degree" else torch.ones(data.n_items)
        base = edges[self._bases(train.users[edges], self.count(len(edges)), generator)]
        false, origin = added(data, base, popularity, generator)
        return inserted(data, torch.arange(len(train)), false, origin)

    def _bases(self, users: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Of edges in the order of their users `[E]` those whose users get one: any, or any of a user."""
        if self.bias == "degree":
            return torch.randint(len(users), (count,), generator=generator)
        sizes = torch.unique_consecutive(users, return_counts=True)[1]
        drawn = torch.randint(len(sizes), (count,), generator=generator)
        within = (torch.rand(count, generator=generator) * sizes[drawn]).long()
        found: Tensor = (sizes.cumsum(0) - sizes)[drawn] + within
        return found
