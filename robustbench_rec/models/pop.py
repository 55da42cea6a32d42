from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models


@models.register
class Pop(RecModel):
    """Popularity: the score of an item is its number of training events, clicks with label 0 left out."""

    @dataclass
    class Config:
        pass

    personal: ClassVar[bool] = False

    count: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(data.n_items))

    def fit(self, data: Data) -> None:
        self.count.copy_(torch.bincount(data.train.liked().items, minlength=data.n_items))

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        if batch.items is None:
            return Output(self.count.repeat(len(batch), 1))
        return Output(self.count[batch.items])
