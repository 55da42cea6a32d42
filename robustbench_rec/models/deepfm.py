"""DeepFM: a factorisation machine and an MLP over the same field vectors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.features import features
from robustbench_rec.lookup import rows
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.models._fields import Fields, mean_rows
from robustbench_rec.models._pairs import Pairs

Side = tuple[Tensor, Tensor, Tensor]
"""Of one side of a pair: its own logit `[…]`, the sum of its vectors `[…, D]`, its part of the first layer `[…, H]`."""


@models.register
class DeepFM(RecModel):
    """DeepFM: all pairwise products of field vectors, and an MLP over them (Guo et al., IJCAI 2017).

    Fields are the user, the item, their features and the context of the event. dim: size of the field vectors. layers:
    sizes of the hidden layers. dropout: before each of them. user_columns,
    item_columns: which columns of the side tables are fields, null for all that `features` takes, [] for none.

    The row of a field value is its first-order weight, then its vector. Sums over fields are split into what a user
    (with the context) brings and what an item brings, and so is the first layer of the MLP: a pair costs one dot
    product and the deeper layers. Without a context (full ranking) its fields are zero vectors. As in RecBole 1.2.1,
    the MLP sees the vectors without the first-order weights, and categories with several values are averaged.
    """

    @dataclass
    class Config:
        dim: int
        layers: list[int]
        dropout: float
        user_columns: list[str] | None
        item_columns: list[str] | None

    loss: ClassVar[str] = "bce"
    piecewise: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("items", "deep")

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if min(config.dim, *config.layers, len(config.layers)) < 1 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"deepfm with dim={config.dim}, layers={config.layers}, dropout={config.dropout}: "
                "sizes are at least 1, there is a hidden layer, dropout is in [0, 1)"
            )
        self.n_items, width = data.n_items, 1 + config.dim
        self.users = Fields(features(data, "user", config.user_columns), n_ids=data.n_users, dim=width)
        self.items = Fields(features(data, "item", config.item_columns), n_ids=data.n_items, dim=width)
        self.context = nn.ModuleList(nn.Embedding(size, width) for size in data.context_sizes.values())
        for table in self.context.parameters():
            nn.init.xavier_normal_(table)
        fields = self.users.count + len(self.context), self.items.count
        self.deep = Pairs(fields[0] * config.dim, fields[1] * config.dim, config.layers, config.dropout)
        self.widths = self.deep.widths("deep")
        self.out = nn.Linear(config.layers[-1], 1)

    def encode(self) -> Side | None:
        """All items, unless in training, which sees few of them and has a dropout mask for each occurrence."""
        return None if self.training else self._catalogue()

    def forward(self, batch: Batch, encoded: Side | None) -> Output:
        readout = self.out.weight[0]
        user, user_total, user_part = self._user(batch)
        if encoded is None and batch.items is not None:
            fields = self.items(batch.items.flatten()).unflatten(0, batch.items.shape)  # [B, C, K, 1 + D]
            item, item_total, item_part = _side(fields, self.deep.item_part)
            deep = self.deep(user_part[:, None], item_part, readout)
        else:
            item, item_total, item_part = self._catalogue() if encoded is None else encoded
            deep = self.deep.score(user_part, item_part, batch.items, readout)
            if batch.items is not None:
                item, item_total = item[batch.items], item_total[batch.items]
        crossed = user_total @ item_total.T if batch.items is None else (user_total[:, None] * item_total).sum(2)
        return Output(user[:, None] + item + crossed + deep + self.out.bias)

    def user_states(self, batch: Batch, encoded: Side | None) -> Tensor:
        """The sum of the vectors of their fields, which the factorisation machine takes products of."""
        return _total(self._user_fields(batch))

    def item_states(self, items: Tensor, encoded: Side | None) -> Tensor:
        """The same of items."""
        return _total(self.items(items)) if encoded is None else rows(encoded[1], items)

    def _user(self, batch: Batch) -> Side:
        return _side(self._user_fields(batch), self.deep.user_part)

    def _user_fields(self, batch: Batch) -> Tensor:
        fields: Tensor = self.users(batch.users)  # [B, K, 1 + D]
        if self.context and batch.context is None:
            fields = torch.cat([fields, fields.new_zeros(len(fields), len(self.context), fields.shape[2])], 1)
        elif batch.context is not None:
            codes = batch.context.unsqueeze(2).unbind(1)
            found = [mean_rows(table, each) for table, each in zip(self.context, codes, strict=True)]
            fields = torch.cat([fields, torch.stack(found, 1)], 1)
        return fields

    def _catalogue(self) -> Side:
        return _side(self.items(torch.arange(self.n_items, device=self.out.weight.device)), self.deep.item_part)


def _side(fields: Tensor, first: Callable[[Tensor], Tensor]) -> Side:
    """Of fields `[…, K, 1 + D]`."""
    weights, vectors, total = fields[..., 0], fields[..., 1:], _total(fields)
    products = 0.5 * (total.square().sum(-1) - vectors.square().sum((-2, -1)))
    return weights.sum(-1) + products, total, first(vectors.flatten(-2))


def _total(fields: Tensor) -> Tensor:
    """The sum of the vectors of fields `[…, K, 1 + D]`: `[…, D]`."""
    total: Tensor = fields[..., 1:].sum(-2)
    return total
