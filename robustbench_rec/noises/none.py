from dataclasses import dataclass

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Noise
from robustbench_rec.noises import noises


@noises.register
class NoNoise(Noise):
    """The data as they are."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.level, self.seed = 0.0, 0

    def change(self, data: Data, generator: torch.Generator) -> Data:
        return data
