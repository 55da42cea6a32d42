"""What the models share that score an item by the training items of a user."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.graph import Csr, Sparse, clicked, sums
from robustbench_rec.model import Encoded, RecModel

CELLS = 2**24  # numbers held at once: 64 MiB of float32


class ItemBased(RecModel):
    """A linear map of the user's 0/1 training row, without gradients.

    The rows are taken from the data, not from a checkpoint, and are never dense but for the users of a portion.
    """

    reads_events: ClassVar[bool] = True
    row_alone: ClassVar[bool] = True

    def __init__(self, data: Data) -> None:
        super().__init__()
        users, items = clicked(data)
        self.n_users, self.n_items = data.n_users, data.n_items
        self.owned = Sparse(users, items, data.n_users)

    @property
    def training_rows(self) -> Csr:
        return self.owned.csr

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        if batch.items is None:
            return Output(self.of_rows(self.owned.csr.rows(batch.users), encoded))
        portions = zip(*(each.split(max(1, CELLS // self.n_items)) for each in (batch.users, batch.items)), strict=True)
        return Output(torch.cat([self._listed(users, items) for users, items in portions]))

    def _listed(self, users: Tensor, items: Tensor) -> Tensor:
        owners, row = torch.unique(users, return_inverse=True)
        return self.of_rows(self.owned.csr.rows(owners), None)[row[:, None], items]

    def together(self) -> Iterator[tuple[int, Tensor]]:
        """In how many users' rows each item stands beside each other one: first item, and `[b, n_items]` from there."""
        users = torch.repeat_interleave(self.owned.starts.diff())
        by_item = Sparse(self.owned.columns, users, self.n_items).csr
        size = max(1, CELLS // (self.n_users + self.n_items))
        for part in torch.arange(self.n_items, device=users.device).split(size):
            has = by_item.rows(part).dense(self.n_users)  # [b, n_users]
            yield int(part[0]), sums(has.T, by_item).T
