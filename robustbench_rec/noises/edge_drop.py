from dataclasses import dataclass

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import checked, spared, weights, without


@noises.register
class EdgeDrop(Noise):
    """Edges of the interaction graph that are missing.

    level: share of the training events. bias: none, or degree for those between users and items with many, in
    proportion to the degrees of both ends, multiplied. A user keeps one. Valid and test stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def change(self, data: Data, generator: torch.Generator) -> Data:
        free = weights(data, self.bias) * ~spared(data, generator)
        return without(data, drawn(free, self.count(len(data.train)), generator))
