import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.lookup import Events, rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models
from robustbench_rec.models._sequences import checked, from_the_end
from robustbench_rec.shifted import Embedded, Site


@models.register
class SASRec(RecModel):
    """Self-attention over the latest events (Kang & McAuley, ICDM 2018).

    dim: size of the vectors, in the blocks too. heads: of the attention, which divide dim; the paper has one. layers:
    blocks. window: how many of a user's events are read; the latest always has the last position. dropout: of the
    embedded events, the attention, and both parts of a block.

    As the paper's formulas: norm before each part of a block, residual around it, no projection after the heads. The
    released code differs from them (only queries are normed, and the residual starts from the normed queries). The
    default loss is softmax over the whole catalogue; that of the paper is loss=bce negatives=1.
    """

    @dataclass
    class Config:
        dim: int
        heads: int
        layers: int
        window: int
        dropout: float

    inner_product: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("item", "position", "dropout", "blocks")
    causal: ClassVar[bool] = True

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        checked("sasrec", config, normed=True)
        self.window = config.window
        self.widths = {f"blocks.{number}": config.dim for number in range(config.layers)}
        self.item = nn.Embedding(data.n_items, config.dim)
        self.position = nn.Embedding(config.window, config.dim)
        self.events, self.dropout = Events(), Dropout(config.dropout)
        self.embedded, self.meeting = Embedded(), Meeting(listed=False)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        for table in (self.item, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        users = self.user_states(batch, encoded)  # [N, D]
        return self.meeting.output(users, None, self.item.weight, batch, user=users)

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        assert batch.history is not None
        x = self.events(self.item.weight, batch.history)  # [B, L, D]
        x = x * math.sqrt(x.shape[2]) + rows(self.position.weight, from_the_end(batch.history, self.window))
        x = self.embedded(self.dropout(x))
        for block in self.blocks:
            x = block(x)
        users: Tensor = self.norm(batch.history.read(x))
        return users

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        return rows(self.item.weight, items)


class Block(nn.Module):
    """Causal self-attention, then two layers for each step; each behind a norm and beside a way around."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.first, self.last = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.attended, self.hidden, self.fed = (Site(places=True) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attended(x + self.dropout(self._attend(self.attention_norm(x))))
        inner = self.hidden(self.dropout(F.relu(self.first(self.feed_norm(x)))))
        return self.fed(x + self.dropout(self.last(inner)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        """Every step over itself and the steps before it; padding, on the right, is after all of them."""
        heads = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, L, D/H]
        query, key, value = heads.unbind(0)
        share = self.dropout.p if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=share)
        return found.transpose(1, 2).flatten(2)
