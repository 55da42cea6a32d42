from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import rows, touched
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import Encoded, RecModel, check_penalties
from robustbench_rec.models import models


@models.register
class BiasedMF(RecModel):
    """Matrix factorisation with biases: μ + b_u + b_i + p_u · q_i predicts a rating (Koren et al., Computer 2009).

    dim: size of the vectors. l2: weight of ½‖·‖² of the vectors and biases in a batch, summed over its events and
    divided by their number, beside the mean squared error. spread: standard deviation of the initial vectors. μ is the
    mean of the training ratings, the biases start at 0.
    """

    @dataclass
    class Config:
        dim: int
        l2: float
        spread: float

    needs: ClassVar[frozenset[str]] = frozenset({"rating"})
    loss: ClassVar[str] = "mse"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("item", "item_bias")
    newcomers: ClassVar[tuple[str, ...]] = ("user.weight", "user_bias")

    mean: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2")
        if config.dim < 1 or config.spread <= 0:
            raise RrecError(
                f"biased_mf with dim={config.dim}, spread={config.spread}: dim >= 1 and spread > 0 are needed"
            )
        self.l2 = config.l2
        self.user = nn.Embedding(data.n_users, config.dim)
        self.item = nn.Embedding(data.n_items, config.dim)
        self.user_bias = nn.Parameter(torch.zeros(data.n_users))
        self.item_bias = nn.Parameter(torch.zeros(data.n_items))
        self.dots = Meeting(listed=True)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=config.spread)
        self.register_buffer("mean", torch.zeros(()))

    def fit(self, data: Data) -> None:
        self.mean.copy_(data.train.values.mean())

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        known = (self.mean + self.user_bias[batch.users])[:, None]  # [B, 1]
        products = self.dots(self.user.weight, batch.users, self.item.weight, batch.items)
        return Output(products + known + (self.item_bias if batch.items is None else self.item_bias[batch.items]))

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        return rows(self.user.weight, batch.users)

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        return rows(self.item.weight, items)

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        if not self.l2:
            return 0.0
        items = batch.items if batch.targets is None else batch.targets
        assert items is not None
        vectors = touched(batch, self.user.weight, self.item.weight)
        biases = self.user_bias[batch.users].square().sum() + self.item_bias[items].square().sum()
        return self.l2 / len(batch) * (vectors + 0.5 * biases)
