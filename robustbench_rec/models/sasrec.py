import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.batch import Batch, History, Output, filled
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

    Blocks as in the paper's formulas: norm before each part, residual around it, no projection after the heads. The
    released code differs from them (only queries are normed, and the residual starts from the normed queries); as there
    item vectors are multiplied by √dim before positions are added. The default loss is softmax over the whole
    catalogue; that of the paper is loss=bce negatives=1.
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
        self.widths = {f"blocks.{number}.fed": config.dim for number in range(config.layers)}
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
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        users: Tensor = self.norm(last(x, batch.history))
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

    def forward(self, x: Tensor, history: History | None = None) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`; given whose history it is, to what speaks for the rows of scores `[N, D]`."""
        query, key, value = self._heads(self.attention_norm(x))
        share, sees = self.dropout.p if self.training else 0.0, None
        if history is not None and history.steps is None:  # the last step of each row alone asks: L = 1
            query, x = history.read(query.transpose(1, 2))[:, :, None], history.read(x)[:, None]
            sees = filled(history.lengths.clamp_min(1), key.shape[2])[:, None, None]  # [B, 1, 1, L]
        around = F.scaled_dot_product_attention(query, key, value, sees, share, is_causal=sees is None)
        x = self.attended(x + self.dropout(around.transpose(1, 2).flatten(2)))
        inner = self.hidden(self.dropout(F.relu(self.first(self.feed_norm(x)))))
        found: Tensor = self.fed(x + self.dropout(self.last(inner)))
        if history is None:
            return found
        return found[:, 0] if sees is not None else history.read(found)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, each `[B, H, L, D/H]`; a step sees itself and those before, so no padding."""
        return self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[no-any-return]
