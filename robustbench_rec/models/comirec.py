from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.catalogue import larger
from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.lookup import Events, rows
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models
from robustbench_rec.models._sequences import checked, dots, from_the_end
from robustbench_rec.shifted import Embedded, Site


@models.register
class ComiRec(RecModel):
    """Several interests of a user by self-attention over the latest events (Cen et al., KDD 2020: ComiRec-SA).

    dim: size of the vectors. hidden: of the attention's layer, 4 dim in the paper. interests: how many. window: how
    many of a user's events are read; the latest always has the last position. dropout: of the embedded events, 0 in
    the paper.

    The score is the best over the interests, in training too: the released code compares the positive and the negatives
    by the interest that suits the positive best, where the score of a negative depends on the positive. Softmax over
    the whole catalogue in the place of sampled softmax. Without the greedy choice of diverse lists.
    """

    @dataclass
    class Config:
        dim: int
        hidden: int
        interests: int
        window: int
        dropout: float

    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("item", "position", "dropout", "first", "interests")

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        checked("comirec", config)
        self.window, self.widths = config.window, {"interests": config.dim}
        self.item = nn.Embedding(data.n_items, config.dim)
        self.position = nn.Embedding(config.window, config.dim)
        self.first = nn.Linear(config.dim, config.hidden, bias=False)
        self.last = nn.Linear(config.hidden, config.interests, bias=False)
        self.events, self.dropout = Events(), Dropout(config.dropout)
        self.embedded, self.hidden, self.interests = Embedded(), Site(places=True), Site()
        for each in (self.item, self.position, self.first, self.last):
            nn.init.xavier_normal_(each.weight)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        interests = self._interests(batch)
        if batch.items is None:
            return Output(batch.products(interests, self.item.weight), {"interests": interests})
        scores = reduce(larger, (dots(each, self.item.weight, batch.items) for each in interests.unbind(1)))
        return Output(scores, {"interests": interests})

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        return self._interests(batch).mean(1)  # interests have no order

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        return rows(self.item.weight, items)

    def _interests(self, batch: Batch) -> Tensor:
        assert batch.history is not None
        events = self.embedded(self.dropout(self.events(self.item.weight, batch.history)))  # [B, L, D]
        found: Tensor = self.interests(self.attention(batch, events) @ events)  # [B, K, D], values without positions
        return found

    def attention(self, batch: Batch, events: Tensor) -> Tensor:
        """How much each interest takes from each event `[B, K, L]`; nothing where there is none."""
        assert batch.history is not None
        placed = events + rows(self.position.weight, from_the_end(batch.history, self.window))
        logits: Tensor = self.last(self.hidden(torch.tanh(self.first(placed)))).transpose(1, 2)  # [B, K, L]
        return logits.masked_fill(~batch.history.real[:, None], -1e9).softmax(2)  # -∞ would be NaN without events
