from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import rows, touched
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import Encoded, RecModel, check_penalties
from robustbench_rec.models import models


@models.register
class MF(RecModel):
    """Matrix factorisation: the dot product of a user and an item vector (Rendle et al., UAI 2009: BPR-MF).

    dim: size of the vectors. l2: weight of ½‖·‖² of the vectors in a batch, summed over its events and divided by their
    number. Initialisation is Xavier-normal; there are no biases, so that the closed forms of robustness hold.
    """

    @dataclass
    class Config:
        dim: int
        l2: float

    newcomers: ClassVar[tuple[str, ...]] = ("dots.user.shift",)
    inner_product: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("item",)

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2")
        if config.dim < 1:
            raise RrecError(f"model.dim={config.dim}: must be at least 1")
        self.l2 = config.l2
        self.user = nn.Embedding(data.n_users, config.dim)
        self.item = nn.Embedding(data.n_items, config.dim)
        self.dots = Meeting(listed=True)
        for table in (self.user, self.item):
            nn.init.xavier_normal_(table.weight)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        return self.dots.output(self.user.weight, batch.users, self.item.weight, batch)

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        return rows(self.user.weight, batch.users)

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        return rows(self.item.weight, items)

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        return self.l2 / len(batch) * touched(batch, self.user.weight, self.item.weight) if self.l2 else 0.0
