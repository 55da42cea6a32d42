from dataclasses import dataclass

import torch

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
        many = torch.bincount(train.users, minlength=data.n_users)[train.users].float()
        share = torch.ones(len(train)) if self.bias == "degree" else 1 / many
        base = torch.multinomial(share, count, replacement=True, generator=generator)
        false, origin = added(data, base, popularity, generator)
        noise = torch.cat([torch.zeros(len(train), dtype=torch.bool), torch.ones(len(origin), dtype=torch.bool)])
        return with_train(data, joined(train, false), torch.cat([torch.arange(len(train)), origin]), noise)
