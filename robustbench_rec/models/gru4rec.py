from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.lookup import Events, rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models
from robustbench_rec.models._sequences import checked
from robustbench_rec.shifted import Embedded, Site


@models.register
class GRU4Rec(RecModel):
    """A recurrent network over the latest events (Hidasi et al., ICLR 2016; dropout of events: Tan et al., DLRS 2016).

    dim: size of the item vectors. hidden: of the recurrent states. layers: recurrent ones. window: how many of a user's
    events are read. dropout: of the embedded events.

    The architecture of RecBole: GRU without biases, a dense layer back to the size of the item vectors, the same item
    vectors at both ends, softmax over the whole catalogue. The papers learn from sessions in parallel, with the
    pairwise losses TOP1 and BPR on negatives of the batch.
    """

    @dataclass
    class Config:
        dim: int
        hidden: int
        layers: int
        window: int
        dropout: float

    inner_product: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("item", "dropout", "layers")
    causal: ClassVar[bool] = True

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        checked("gru4rec", config)
        self.window = config.window
        self.widths = {f"layers.{number}": config.hidden for number in range(config.layers)}
        self.item = nn.Embedding(data.n_items, config.dim)
        self.events, self.dropout = Events(), Dropout(config.dropout)
        sizes = [config.dim, *[config.hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList(GRU(size, config.hidden) for size in sizes)
        self.dense = nn.Linear(config.hidden, config.dim)
        self.embedded, self.user, self.meeting = Embedded(), Site(), Meeting(listed=False)
        nn.init.xavier_normal_(self.item.weight)
        nn.init.xavier_normal_(self.dense.weight)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        users = self.user_states(batch, encoded)  # [N, D]
        return self.meeting.output(users, None, self.item.weight, batch, user=users)

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        assert batch.history is not None
        x = self.embedded(self.dropout(self.events(self.item.weight, batch.history)))  # [B, L, D]
        for layer in self.layers:
            x = layer(x)  # [B, L, H]
        users: Tensor = self.user(self.dense(batch.history.read(x)))
        return users

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        return rows(self.item.weight, items)


class GRU(nn.Module):
    """A layer of gated recurrent units, from zero; unlike `nn.GRU` it reads its weights when it is called."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(3 * hidden, size))
        self.recurrent = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.hidden, self.states = hidden, Site(places=True)
        for each in (self.input, self.recurrent):
            nn.init.xavier_uniform_(each)

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), self.hidden)
        train = self.training or torch.is_grad_enabled()  # without it cuDNN keeps nothing to go back through
        states, _ = torch.gru(x, start, (self.input, self.recurrent), False, 1, 0.0, train, False, True)
        return self.states(states)  # type: ignore[no-any-return]
