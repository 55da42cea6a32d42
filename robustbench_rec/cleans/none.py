from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data


@cleans.register
class NoCleaning(Clean):
    """The training data as they are."""

    @dataclass
    class Config:
        pass

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        return Finding(torch.zeros(len(data.train), dtype=torch.bool))
