"""What the models share that score a pair by the dot product of a user and an item vector."""

from torch import Tensor, nn

from robustbench_rec.lookup import pairs, rows
from robustbench_rec.shifted import Site


class Dots(nn.Module):
    """Dot products of rows of two tables; `user` is a site of the vectors of a batch's own users."""

    def __init__(self) -> None:
        super().__init__()
        self.user = Site()

    def forward(self, users: Tensor, index: Tensor, items: Tensor, candidates: Tensor | None) -> Tensor:
        """Of rows index `[B]` of users `[n, D]` with candidates `[B, C]` (None: all) of items `[m, D]`: `[B, C]`."""
        if candidates is not None and self.user.idle:
            return pairs(users, index, items, candidates)
        chosen: Tensor = self.user(rows(users, index))  # [B, D]
        return chosen @ items.T if candidates is None else pairs(chosen, None, items, candidates)
