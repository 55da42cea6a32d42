from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import Csr, Sparse, clicked, product
from robustbench_rec.lookup import rows
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.models._pairs import Pairs
from robustbench_rec.shifted import Site


@models.register
class DeepCFMLP(RecModel):
    """Hidden layers over the user's training row and the item's training column (Deng et al., AAAI 2019: CFNet-ml).

    dim: size of the linear maps of the row and the column. hidden: sizes of the layers over both, ReLU after each. The
    defaults are the nine weight matrices that RAWP is published on (Qian et al., KBS 2025), with the four negatives and
    PyTorch's default initialisation of the laboratory's released code [F]. As there, a training event is part of its
    own input, which makes training events easier than new ones. Unlike there, rows and columns are read as sparse sums
    of tables, so that a row of the two first matrices is what belongs to one item or one user, not to one output. A
    step costs dim numbers for each training event of the users and the items of a batch.
    """

    @dataclass
    class Config:
        dim: int
        hidden: list[int]

    loss = "bce"
    negatives: ClassVar[int] = 4
    piecewise: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("user", "user_bias", "item", "item_bias", "hidden")

    reads_events: ClassVar[bool] = True

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if min(config.dim, *config.hidden, len(config.hidden)) < 1:
            raise RrecError(
                f"deepcf_mlp with dim={config.dim}, hidden={config.hidden}: sizes are at least 1, one layer is needed"
            )
        users, items = clicked(data)
        self.row, self.column = Sparse(users, items, data.n_users), Sparse(items, users, data.n_items)
        self.user = nn.Embedding(data.n_items, config.dim)
        self.item = nn.Embedding(data.n_users, config.dim)
        self.user_bias, self.item_bias = (nn.Parameter(torch.empty(config.dim)) for _ in range(2))
        for table, bias in ((self.user, self.user_bias), (self.item, self.item_bias)):
            for each in (table.weight, bias):
                nn.init.uniform_(each, -(table.num_embeddings**-0.5), table.num_embeddings**-0.5)
        self.user_site, self.item_site = Site(), Site()
        self.hidden = Pairs(config.dim, config.dim, config.hidden, dropout=0.0)
        self.widths = self.hidden.widths("hidden")
        self.out = nn.Linear(config.hidden[-1], 1)

    def encode(self) -> tuple[Tensor, Tensor] | None:
        """What all users and items bring to the first hidden layer; None in training, where a batch names few."""
        return None if self.training else (self._users(None), self._items(None))

    def forward(self, batch: Batch, encoded: tuple[Tensor, Tensor] | None) -> Output:
        users, items, named = batch.users, batch.items, None
        if encoded is None:
            asked, users = users.unique(return_inverse=True)
            if items is not None:
                named, items = items.unique(return_inverse=True)
            encoded = self._users(asked), self._items(named)
        return Output(self.hidden.score(rows(encoded[0], users), encoded[1], items, self.out.weight[0]) + self.out.bias)

    def user_states(self, batch: Batch, encoded: tuple[Tensor, Tensor] | None) -> Tensor:
        return self._users(batch.users) if encoded is None else rows(encoded[0], batch.users)

    def item_states(self, items: Tensor, encoded: tuple[Tensor, Tensor] | None) -> Tensor:
        return self._items(items) if encoded is None else rows(encoded[1], items)

    @property
    def training_rows(self) -> Csr:
        return self.row.csr

    def of_rows(self, owned: Csr, encoded: tuple[Tensor, Tensor] | None) -> Tensor:
        users = self._read_by(owned, owned.transposed(len(self.user.weight)))
        items = self._items(None) if encoded is None else encoded[1]
        return self.hidden.score(users, items, None, self.out.weight[0]) + self.out.bias

    def _users(self, chosen: Tensor | None) -> Tensor:
        """What users bring to the first hidden layer `[n, H]`; None for all."""
        return self._read_by(*_read(self.row, self.column, chosen, len(self.user.weight)))

    def _read_by(self, row: Csr, column: Csr) -> Tensor:
        """The same of training rows, given their transpose."""
        return self.hidden.user_part(self.user_site(product(self.user.weight, row, column) + self.user_bias))

    def _items(self, chosen: Tensor | None) -> Tensor:
        """The same of items."""
        column, row = _read(self.column, self.row, chosen, len(self.item.weight))
        return self.hidden.item_part(self.item_site(product(self.item.weight, column, row) + self.item_bias))


def _read(matrix: Sparse, transpose: Sparse, chosen: Tensor | None, width: int) -> tuple[Csr, Csr]:
    """The chosen rows, None for all, and their transpose."""
    if chosen is None:
        return matrix.csr, transpose.csr
    found = matrix.csr.rows(chosen)
    return found, found.transposed(width)
