from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.catalogue import product
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import pairs, rows
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.models._pairs import Pairs, check_size
from robustbench_rec.shifted import Site


@models.register
class NeuMF(RecModel):
    """Neural matrix factorisation: a weighted dot product beside hidden layers over the pair (He et al., WWW 2017).

    mf_dim, mlp_dim: sizes of the vectors of the two parts, which share none. hidden: sizes of the layers. dropout:
    before each of them. As in RecBole: binary cross-entropy, vectors from N(0, 0.01²), everything trained from there,
    without the pretraining of the paper. In training the candidates beside one another share the dropout mask of their
    user's vector.
    """

    @dataclass
    class Config:
        mf_dim: int
        mlp_dim: int
        hidden: list[int]
        dropout: float

    loss = "bce"
    piecewise: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("item_mf", "item_mlp", "hidden")
    newcomers: ClassVar[tuple[str, ...]] = ("user_mf.weight", "user_mlp.weight")

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if min(config.mf_dim, config.mlp_dim, *config.hidden, len(config.hidden)) < 1 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"neumf with mf_dim={config.mf_dim}, mlp_dim={config.mlp_dim}, hidden={config.hidden}, "
                f"dropout={config.dropout}: sizes are at least 1, there is a hidden layer, dropout is in [0, 1)"
            )
        self.user_mf = nn.Embedding(data.n_users, config.mf_dim)
        self.item_mf = nn.Embedding(data.n_items, config.mf_dim)
        self.user_mlp = nn.Embedding(data.n_users, config.mlp_dim)
        self.item_mlp = nn.Embedding(data.n_items, config.mlp_dim)
        self.hidden = Pairs(config.mlp_dim, config.mlp_dim, config.hidden, config.dropout)
        self.widths = self.hidden.widths("hidden")
        self.product = Site()
        self.out = nn.Linear(config.mf_dim + config.hidden[-1], 1)
        for table in (self.user_mf, self.item_mf, self.user_mlp, self.item_mlp):
            nn.init.normal_(table.weight, std=0.01)

    def encode(self) -> Tensor | None:
        if self.training:  # a batch touches few items, each with a dropout mask of its own
            return None
        return self.hidden.item_part(self.item_mlp.weight)  # [n_items, H]

    def forward(self, batch: Batch, encoded: Tensor | None) -> Output:
        linear, deep = self.out.weight[0].tensor_split([self.user_mf.embedding_dim])
        users = self.hidden.user_part(rows(self.user_mlp.weight, batch.users))  # [B, H]
        if encoded is None and batch.items is not None:
            items = self.hidden.item_part(rows(self.item_mlp.weight, batch.items))  # [B, C, H]
            scores = self.hidden(users[:, None], items, deep)
        else:
            table = self.hidden.item_part(self.item_mlp.weight) if encoded is None else encoded
            scores = self.hidden.score(users, table, batch.items, deep)
        return Output(scores + self._linear(batch, linear) + self.out.bias)

    def user_states(self, batch: Batch, encoded: Tensor | None) -> Tensor:
        return torch.cat([rows(each.weight, batch.users) for each in (self.user_mf, self.user_mlp)], 1)

    def item_states(self, items: Tensor, encoded: Tensor | None) -> Tensor:
        return torch.cat([rows(each.weight, items) for each in (self.item_mf, self.item_mlp)], 1)

    def _linear(self, batch: Batch, readout: Tensor) -> Tensor:
        users, items = rows(self.user_mf.weight, batch.users), self.item_mf.weight
        if not self.product.idle:
            check_size(len(users), len(items) if batch.items is None else batch.items.shape[1], len(readout))
            chosen = items if batch.items is None else rows(items, batch.items)
            scores: Tensor = self.product(users[:, None] * chosen) @ readout
            return scores
        if batch.items is None:
            return product(users * readout, items)
        return pairs(users * readout, None, items, batch.items)
