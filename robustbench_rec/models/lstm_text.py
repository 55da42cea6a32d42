"""LSTM over the words of item texts, beside profiles and item features."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.features import features
from robustbench_rec.lookup import rows
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.models._fields import Fields
from robustbench_rec.models._pairs import Pairs
from robustbench_rec.reader import Reader
from robustbench_rec.shifted import Embedded, Site
from robustbench_rec.vocabulary import PADDING, UNKNOWN, item_vocabulary, split

if TYPE_CHECKING:
    import pandas as pd

CELLS = 2**25  # numbers of embedded words held at once where nothing is to be differentiated: 128 MiB


@models.register
class LSTMText(RecModel):
    """LSTM text recommender: the last state of an LSTM over an item's words, with profile and item features.

    token_dim: size of the word vectors. state_dim: of the LSTM. min_count: items in training that have a word, for it
    to be known. max_tokens: words of a text that are read. text_columns, user_columns, item_columns: of the side
    tables, null for all texts, and for all that `features` takes. user_id: whether a user is more than the profile.
    field_dim: size of the vectors of ids and features. layers: hidden layers over all of it; [] for none. dropout:
    before each of them.

    Reconstructed from the description of a text recommender without code: word vectors, an LSTM, profile and features
    side by side, a linear readout as the logit. Such a readout adds up what is known of the user and of the item, and
    therefore ranks the items alike for everyone: the hidden layers and the user id are our additions (layers=[],
    user_id=false is the original). States are those of the last word, never of padding.
    """

    @dataclass
    class Config:
        token_dim: int
        state_dim: int
        min_count: int
        max_tokens: int
        text_columns: list[str] | None
        user_id: bool
        field_dim: int
        user_columns: list[str] | None
        item_columns: list[str] | None
        layers: list[int]
        dropout: float

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    loss: ClassVar[str] = "bce"
    piecewise: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("token", "lstm")

    tokens: Tensor
    lengths: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        sizes = [getattr(config, name) for name in ("token_dim", "state_dim", "min_count", "max_tokens", "field_dim")]
        if min(*sizes, *config.layers) < 1 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"lstm_text with token_dim, state_dim, min_count, max_tokens, field_dim={sizes}, "
                f"layers={config.layers}, dropout={config.dropout}: sizes and counts are at least 1, dropout is in "
                "[0, 1)"
            )
        assert data.item_table is not None
        self.vocabulary = item_vocabulary(
            data, config.text_columns, min_count=config.min_count, max_tokens=config.max_tokens
        )
        for name, each in zip(("tokens", "lengths"), self.vocabulary.read(data.item_table), strict=True):
            self.register_buffer(name, each.to(data.train.users.device), persistent=False)
        n_ids = data.n_users if config.user_id else 0
        self.users = Fields(features(data, "user", config.user_columns), n_ids=n_ids, dim=config.field_dim)
        self.items = Fields(features(data, "item", config.item_columns), n_ids=0, dim=config.field_dim)
        if not self.users.count:
            raise RrecError(f"lstm_text with user_id=false: dataset '{data.name}' has no features of its users")
        self.token = nn.Embedding(self.vocabulary.size, config.token_dim, padding_idx=PADDING)
        self.lstm, self.widths = LSTM(config.token_dim, config.state_dim), {"lstm": config.state_dim}
        self.embedded, self.state = Embedded(), Site()
        widths = self.users.count * config.field_dim, config.state_dim + self.items.count * config.field_dim
        self.user_readout, self.item_readout = nn.Linear(widths[0], 1), nn.Linear(widths[1], 1, bias=False)
        self.deep = Pairs(*widths, config.layers, config.dropout) if config.layers else None
        self.readout = nn.Linear(config.layers[-1], 1, bias=False) if config.layers else None

    def encode(self) -> tuple[Tensor, ...] | None:
        """All items, unless in training, which reads those of the batch alone."""
        return None if self.training else self._items(self._catalogue)

    def forward(self, batch: Batch, encoded: tuple[Tensor, ...] | None) -> Output:
        chosen = batch.items
        if encoded is None and chosen is not None:
            distinct, chosen = chosen.unique(return_inverse=True)
            encoded = self._items(distinct)
        item, *item_part = self._items(self._catalogue) if encoded is None else encoded
        user = self.user_states(batch, encoded)  # [B, W]
        scores = self.user_readout(user) + (item if chosen is None else item[chosen])
        if self.deep is not None and self.readout is not None:
            weight = self.readout.weight[0]
            scores = scores + self.deep.score(self.deep.user_part(user), item_part[0], chosen, weight)
        return Output(scores)

    def user_states(self, batch: Batch, encoded: tuple[Tensor, ...] | None) -> Tensor:
        """Their profiles."""
        profiles: Tensor = self.users(batch.users).flatten(1)
        return profiles

    def item_states(self, items: Tensor, encoded: tuple[Tensor, ...] | None) -> Tensor:
        """What the LSTM says of their texts, beside their features."""
        return self._known(items)

    def read_lengths(self, batch: Batch, encoded: tuple[Tensor, ...] | None) -> Tensor:
        return self.lengths if encoded is not None or batch.items is None else self.lengths[batch.items.unique()]

    def text_reader(self, data: Data) -> Reader:
        """Of the words alone: what `features` makes of a column stays what it is."""
        return _Reader(self)

    @property
    def _catalogue(self) -> Tensor:
        return torch.arange(len(self.tokens), device=self.tokens.device)

    def _items(self, items: Tensor) -> tuple[Tensor, ...]:
        """Items `[n]` as the linear part of their logit `[n]`, and their part of the first hidden layer."""
        item = self._known(items)
        linear = self.item_readout(item).squeeze(1)
        return (linear,) if self.deep is None else (linear, self.deep.item_part(item))

    def _known(self, items: Tensor) -> Tensor:
        return torch.cat([self.state(self._states(items)), self.items(items).flatten(1)], 1)

    def _states(self, items: Tensor) -> Tensor:
        size = max(1, CELLS // (max(1, int(self.lengths.max())) * self.token.embedding_dim))
        if len(items) <= size or torch.is_grad_enabled() or not self.embedded.idle:
            return self._read(items)
        return torch.cat([self._read(each) for each in items.split(size)])

    def _read(self, items: Tensor) -> Tensor:
        """The states at the last words of items `[n]`, 0 for an item without words: `[n, state_dim]`."""
        lengths = self.lengths[items]
        tokens = self.tokens[items, : max(1, int(lengths.max()))]
        words = self.embedded(rows(self.token.weight, tokens))  # [n, T, token_dim]
        last = self.lstm(words)[torch.arange(len(items), device=items.device), (lengths - 1).clamp_min(0)]
        read: Tensor = last * (lengths > 0)[:, None]
        return read


class LSTM(nn.Module):
    """A layer of long short-term memory, from zero; as `nn.LSTM`, but it reads its weights when it is called."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.weight_ih_l0 = nn.Parameter(torch.empty(4 * hidden, size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias_ih_l0, self.bias_hh_l0 = (nn.Parameter(torch.empty(4 * hidden)) for _ in range(2))
        for each in self.parameters():
            nn.init.uniform_(each, -(hidden**-0.5), hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, T, size]` to `[n, T, hidden]`."""
        start = x.new_zeros(1, len(x), self.hidden_size)
        weights: list[Tensor] = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        train = self.training or torch.is_grad_enabled()  # without it cuDNN keeps nothing to go back through
        single = x.device.type == "cpu"  # many CPUs have no LSTM in bf16
        with torch.autocast("cpu", enabled=False) if single else nullcontext():
            states, _, _ = torch.lstm(x, [start, start], weights, True, 1, 0.0, train, False, True)
        return states


class _Reader(Reader):
    """Codes of words of the vocabulary."""

    embedding = "token.weight"

    def __init__(self, model: LSTMText) -> None:
        self.vocabulary, self.vectors = model.vocabulary, model.token.weight.detach()
        self.columns, self.words = self.vocabulary.columns, self.vocabulary.words
        self.codes = torch.arange(UNKNOWN + 1, self.vocabulary.size, device=self.vectors.device)

    def joined(self, table: "pd.DataFrame") -> list[str]:
        return self.vocabulary.joined(table).tolist()

    def read(self, table: "pd.DataFrame", added: Tensor | None = None) -> dict[str, Tensor]:
        return dict(zip(("tokens", "lengths"), self.vocabulary.read(table), strict=True))

    def begins(self, text: str, starts: Sequence[int]) -> list[int | None]:
        import pandas as pd

        *before, words = split(pd.Series([*(text[:start] for start in starts), text])).tolist()
        codes = dict(zip(self.words, self.codes.tolist(), strict=True))
        most = self.vocabulary.max_tokens
        return [codes.get(words[len(each)], UNKNOWN) if len(each) < most else None for each in before]
