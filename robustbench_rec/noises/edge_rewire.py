from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise, drawn, pairs
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import checked, weights, with_train
from robustbench_rec.noises._swaps import swapped


@noises.register
class EdgeRewire(Noise):
    """Edges of the interaction graph that end at each other's items, so that no degree changes.

    level: share of the edges, which are the training events but those with label 0. bias: none, or degree for edges in
    proportion to the degrees of both ends, multiplied. Two edges swap their items where neither user has the other's
    item in some part; where too few of the drawn edges can, others do, and a warning says when the level is not met.
    Rewired edges are marked in `train/noise` of the ground truth. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train = data.train
        known = torch.cat([pairs(data.part(each), data) for each in ("train", "valid", "test")])
        edges = train.values != 0
        order = drawn(weights(data, self.bias) * edges, len(train), generator)
        alike = torch.zeros_like(train.items)
        items = swapped(
            train.users * data.n_items, train.items, alike, known, order, self.count(int(edges.sum())), generator
        )
        return with_train(data, replace(train, items=items), torch.arange(len(train)), items != train.items)
