"""What the models share that spread vectors over a graph and take dot products of what comes out."""

from typing import ClassVar

from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.lookup import rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import RecModel


class Propagated(RecModel):
    """Users and items are rows of the two tables that `encode` makes; `dots` is where they meet."""

    inner_product: ClassVar[bool] = True
    reads_events: ClassVar[bool] = True
    reads_graph: ClassVar[bool] = True
    newcomers: ClassVar[tuple[str, ...]] = ("dots.user.shift",)

    dots: Meeting

    def forward(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> Output:
        users, items = encoded
        return self.dots.output(users, batch.users, items, batch)

    def user_states(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> Tensor:
        return rows(encoded[0], batch.users)

    def item_states(self, items: Tensor, encoded: tuple[Tensor, Tensor]) -> Tensor:
        return rows(encoded[1], items)
