"""Where the vectors of users and of their candidates meet."""

from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.catalogue import product
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import pairs, rows
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import SURFACES, Site


class Meeting(nn.Module):
    """Dot products of a user vector each with its candidates; `user` and `item` are sites of the two.

    listed: whether `user` is part of the activation surface. `item` is not, and is not passed where the whole catalogue
    is scored: there, no user has vectors of candidates of its own.
    """

    def __init__(self, *, listed: bool) -> None:
        super().__init__()
        self.user, self.item = Site(listed=listed), Site(listed=False)

    def forward(self, users: Tensor, index: Tensor | None, items: Tensor, candidates: Tensor | None) -> Tensor:
        """Of rows index `[B]` of users `[n, D]` with candidates `[B, C]` (None: all) of items `[m, D]`: `[B, C]`.

        index: None where the rows of users are those of the batch.
        """
        if candidates is not None and self.user.idle and self.item.idle:
            return pairs(users, index, items, candidates)
        chosen: Tensor = self.user(users if index is None else rows(users, index))  # [B, D]
        if candidates is None:
            return product(chosen, items)
        if self.item.idle:
            return pairs(chosen, None, items, candidates)
        products: Tensor = chosen[:, None] * self.item(rows(items, candidates))  # [B, C, D]
        return products.sum(2)

    def output(self, users: Tensor, index: Tensor | None, items: Tensor, batch: Batch, **hidden: Tensor) -> Output:
        """What a model says whose scores they are."""
        if batch.items is not None:
            return Output(self(users, index, items, batch.items), hidden)
        return Output(batch.products(self.user(users if index is None else rows(users, index)), items), hidden)


def vectors(model: RecModel) -> tuple[str, str]:
    """The sites of the vectors of a batch's users and candidates; RrecError for a model that has no such vectors."""
    for name, each in model.named_modules():
        if isinstance(each, Meeting):
            return f"{name}.user.shift", f"{name}.item.shift"
    has = ", ".join(kind for kind, find in SURFACES.items() if find(model)) or "none"
    raise RrecError(
        f"model '{type(model).__module__.rpartition('.')[2]}' has no user and item vectors whose dot product is the "
        f"score (its surfaces: {has})"
    )
