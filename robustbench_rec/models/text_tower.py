import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustbench_rec.adapters import Adaptation, add_low_rank
from robustbench_rec.batch import Batch, History, Output, filled
from robustbench_rec.blocks import TOKENS, Backbone, projections, recomputed, widths
from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.lookup import rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.pretrained import Origin, Pretrained, joined, kept, mean, texts, whole_words
from robustbench_rec.reader import Reader
from robustbench_rec.running import running
from robustbench_rec.shifted import Site

if TYPE_CHECKING:
    import pandas as pd

USERS = ("embedding", "history")


@models.register
class TextTower(RecModel):
    """Two towers, the item's on a pretrained text encoder (Reimers & Gurevych, EMNLP 2019; as UniSRec, KDD 2022).

    encoder: a folder, a packaged encoder or a name on the Hugging Face hub, of which safetensors alone are read.
    columns: of the item table, null for all that hold text. max_tokens: of a text, the rest is cut off. user:
    embedding, or history, the mean of the latest `window` items through a linear map. dim: size of the vectors that
    are multiplied. hidden: sizes of the hidden layers of the item head, whose dropout is `dropout`. lora: on the
    attention projections of the encoder, as adaptation=lora has it for a model with rank 0.

    An item is its text and nothing else, so one that training never saw can be ranked; with user=history, so can a
    user. Where training compares with the whole catalogue, items without a training event are left out, or their texts
    would be learnt as those of items that nobody wants; not where one is itself the target. Without adapters the texts
    are encoded once, are kept in the data directory, and are the feature surface. With LoRA or bottlenecks the encoder
    runs in the graph, over the texts that a batch names or, in evaluation, over all of them; its word embeddings are
    then part of the embedding surface. The backbone is never changed and never stored. [R] Put together from these
    papers' ideas; none of them has this very model. Vectors are centred and scaled by what the frozen encoder says of
    the catalogue.
    """

    @dataclass
    class Config:
        encoder: str
        columns: list[str] | None
        max_tokens: int
        user: str
        window: int
        dim: int
        hidden: list[int]
        dropout: float
        lora: Adaptation

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    causal: ClassVar[bool] = True
    counts_events: ClassVar[bool] = True
    piecewise: ClassVar[bool] = True
    body: ClassVar[tuple[str, ...]] = ("backbone",)
    given: ClassVar[tuple[str, ...]] = ("feature_text",)

    centre: Tensor
    unseen: Tensor
    tokens: Tensor
    lengths: Tensor
    feature_text: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if config.user not in USERS:
            raise unknown("user of text_tower", config.user, USERS)
        sizes = {"dim": config.dim, "max_tokens": config.max_tokens, "window": config.window}
        if min(*sizes.values(), *config.hidden) < 1 or not 0 <= config.dropout < 1:
            told = ", ".join(f"{key}={value}" for key, value in sizes.items())
            raise RrecError(
                f"text_tower with {told}, hidden={config.hidden}, dropout={config.dropout}: "
                "sizes are at least 1, dropout is in [0, 1)"
            )
        config.lora.check("model.lora", 0)
        self.config, self.n_items = config, data.n_items
        self.window = config.window if config.user == "history" else 0
        pretrained = Pretrained.find(config.encoder)
        pretrained.check_length(config.max_tokens, f"max_tokens={config.max_tokens}")
        pretrained.check_encoder(config.max_tokens)
        self.origin = Origin(pretrained)
        frozen = self._once(pretrained, data)  # [n_items, H]
        self.register_buffer("centre", frozen.mean(0), persistent=False)
        self.scale = 1 / (frozen - self.centre).square().mean().sqrt().clamp_min(1e-6).item()
        self.backbone: Backbone | None = None
        self.asked_once = pretrained.numbers
        self.register_buffer("feature_text", (frozen - self.centre) * self.scale, persistent=False)
        if config.lora.rank:
            self.embody(data)
            add_low_rank(self, self.projections, config.lora)
        unseen = torch.bincount(data.train.items, minlength=data.n_items) == 0
        self.register_buffer("unseen", unseen, persistent=False)
        self.text = Site()
        steps = list(pairwise([frozen.shape[1], *config.hidden, config.dim]))
        self.head = nn.ModuleList(nn.Linear(a, b) for a, b in steps)
        self.sites = nn.ModuleList(Site() for _ in steps)
        self.dropout, self.meeting = Dropout(config.dropout), Meeting(listed=False)
        if config.user == "embedding":
            self.user = nn.Embedding(data.n_users, config.dim)
            nn.init.xavier_normal_(self.user.weight)
        else:
            self.pooled = Site()
            self.reader = nn.Linear(config.dim, config.dim)

    def encode(self) -> Tensor | None:
        """All item vectors `[n_items, D]`; None in training, where those of the batch are enough."""
        return None if self.training else self._items(None)

    def forward(self, batch: Batch, encoded: Tensor | None) -> Output:
        named = self._asked(batch, encoded)
        table = self._items(named) if encoded is None else encoded  # [M, D]
        users = self._users(batch, table, named)  # [B, D]
        if batch.items is None:
            scores = self.meeting(users, None, table, None)  # [B, n_items]
            if batch.targets is not None:
                own = batch.targets[:, None]  # noise that is drawn in each epoch may have put it in
                scores = scores.masked_fill(self.unseen, -torch.inf).scatter(1, own, scores.gather(1, own))
            return Output(scores, {"user": users})
        return Output(self.meeting(users, None, table, _places(batch.items, named)), {"user": users})

    def user_states(self, batch: Batch, encoded: Tensor | None) -> Tensor:
        if batch.history is None or encoded is not None:
            return self._users(batch, self.centre if encoded is None else encoded, None)
        named = self._named(batch.users[:0], batch.history)
        return self._users(batch, self._items(named), named)

    def item_states(self, items: Tensor, encoded: Tensor | None) -> Tensor:
        return self._items(items) if encoded is None else rows(encoded, items)

    def read_lengths(self, batch: Batch, encoded: Tensor | None) -> Tensor:
        named = self._asked(batch, encoded)
        return self.lengths if named is None else self.lengths[named]

    def text_reader(self, data: Data) -> Reader:
        """Of tokens with LoRA, else of what the encoder says, which it loads."""
        return _Reader(self, data)

    def embody(self, data: Data) -> None:
        """Encode in the graph."""
        if self.backbone is not None:
            return
        pretrained, device = self.origin.pretrained, data.train.users.device
        tokens, lengths = self._tokens(pretrained.tokenizer(), texts(data, self.config.columns), device)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("lengths", lengths, persistent=False)
        self.backbone = self._encoder(pretrained, device)
        self.projections = projections(self.backbone, "backbone")
        self.widths = widths(self.backbone, "backbone", len(self.centre))
        self.asked_once = 0
        del self.feature_text

    def _asked(self, batch: Batch, encoded: Tensor | None) -> Tensor | None:
        """The items whose texts are read for a batch, None for all."""
        return None if encoded is not None or batch.items is None else self._named(batch.items, batch.history)

    def _named(self, items: Tensor, history: History | None) -> Tensor:
        """The items of a batch, each once, ascending."""
        asked = items.flatten() if history is None else torch.cat([items.flatten(), history.items[history.real]])
        named: Tensor = torch.unique(asked)
        return named

    def _users(self, batch: Batch, table: Tensor, named: Tensor | None) -> Tensor:
        if batch.history is None:
            return rows(self.user.weight, batch.users)
        places = _places(batch.history.items, named)  # padding comes last
        states = running(rows(F.pad(table, (0, 0, 0, 1)), places), 1)  # [B, L, D]
        counts = torch.arange(1, states.shape[1] + 1, device=states.device)
        users: Tensor = self.reader(self.pooled(batch.history.read(states / counts[:, None])))
        return users  # [B, D]

    def _items(self, index: Tensor | None) -> Tensor:
        """Vectors of the given items, or of all `[M, D]`."""
        x: Tensor = self.text(self._texts(index))
        for number, (layer, site) in enumerate(zip(self.head, self.sites, strict=True)):
            x = layer(self.dropout(F.gelu(x)) if number else x)
            x = site(x)
        return x

    def _texts(self, index: Tensor | None) -> Tensor:
        if self.backbone is None:
            return self.feature_text if index is None else rows(self.feature_text, index)
        tokens, lengths = (each if index is None else each[index] for each in (self.tokens, self.lengths))
        if all(each.idle for each in self.backbone.modules() if isinstance(each, Site)):
            found = _by_length(partial(recomputed, self.backbone), tokens, lengths)
        else:  # a site is shifted for all texts at once
            found = _encoded(self.backbone, tokens, lengths)
        return (found - self.centre) * self.scale

    def _tokens(self, tokenizer: Any, lines: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens `[n, max_tokens]`, padded on the right, and how many each text has."""
        read = tokenizer(lines, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        padding = tokenizer.pad_token_id or 0  # some have none; what stands there is never read
        tokens = torch.full((len(read), self.config.max_tokens), padding)
        lengths = torch.tensor([len(each) for each in read])
        tokens[filled(lengths, self.config.max_tokens)] = torch.tensor([*chain.from_iterable(read)], dtype=torch.long)
        return tokens.to(device), lengths.to(device)

    def _encoder(self, pretrained: Pretrained, device: torch.device) -> Backbone:
        return Backbone(pretrained.model("AutoModel", device), self.config.encoder)

    def _once(self, pretrained: Pretrained, data: Data) -> Tensor:
        """What the frozen encoder says of each item `[n_items, H]`, computed for these texts only once."""
        told = [pretrained.digest, self.config.max_tokens, texts(data, self.config.columns)]
        key = sha256(json.dumps(told).encode()).hexdigest()[:32]

        @torch.no_grad()
        def compute() -> Tensor:
            device = data.train.users.device
            tokens, lengths = self._tokens(pretrained.tokenizer(), texts(data, self.config.columns), device)
            backbone = self._encoder(pretrained, device).eval()
            return _by_length(backbone, tokens, lengths)

        return kept(data.place and data.place / "texts", key, compute).to(data.train.users.device)


class _Reader(Reader):
    """Tokens, encoded at once where the encoder is not in the graph."""

    def __init__(self, model: TextTower, data: Data) -> None:
        self.model, device = model, data.train.users.device
        pretrained = model.origin.pretrained
        self.columns = tuple(data.text_columns if model.config.columns is None else model.config.columns)
        self.tokenizer = pretrained.tokenizer()
        words, codes = whole_words(self.tokenizer)
        self.words, self.codes = tuple(words), torch.tensor(codes, device=device)
        self.backbone = model.backbone or model._encoder(pretrained, device).eval()
        self.table = next(name for name, each in self.backbone.named_modules() if each is self._embeddings) + ".weight"
        self.vectors = self._embeddings.weight
        self.embedding = None if model.backbone is None else f"backbone.{self.table}"

    @property
    def _embeddings(self) -> Any:
        return self.backbone.model.get_input_embeddings()  # type: ignore[operator]

    def joined(self, table: "pd.DataFrame") -> list[str]:
        return joined(table, self.columns)

    def read(self, table: "pd.DataFrame", added: Tensor | None = None) -> dict[str, Tensor]:
        tokens, lengths = self.model._tokens(self.tokenizer, self.joined(table), self.codes.device)
        if self.model.backbone is not None:
            return {"tokens": tokens, "lengths": lengths}
        changed = {} if added is None else {self.table: self.vectors + added}

        def states(ids: Tensor, real: Tensor) -> Tensor:
            found: Tensor = functional_call(self.backbone, changed, (ids, real))
            return found

        with torch.set_grad_enabled(added is not None):
            encoded = _by_length(states, tokens, lengths)
        return {"feature_text": (encoded - self.model.centre) * self.model.scale}

    def begins(self, text: str, starts: Sequence[int]) -> list[int | None]:
        read = self.tokenizer(
            text, truncation=True, max_length=self.model.config.max_tokens, return_offsets_mapping=True
        )
        tokens = {
            start: code
            for code, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True)
            if end > start
        }
        return [tokens.get(each) for each in starts]


def _by_length(backbone: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, lengths: Tensor) -> Tensor:
    """`_encoded` in pieces of texts of about one length, which need little padding."""
    order = lengths.argsort(stable=True)
    pieces = order.split(max(1, TOKENS // tokens.shape[1]))
    return torch.cat([_encoded(backbone, tokens[part], lengths[part]) for part in pieces])[order.argsort()]


def _encoded(backbone: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, lengths: Tensor) -> Tensor:
    longest = max(1, int(lengths.max()))  # where no text has a token
    real = filled(lengths, longest)
    return mean(backbone(tokens[:, :longest], real), real)


def _places(items: Tensor, named: Tensor | None) -> Tensor:
    """Where each item stands in the table of the named ones; what is not an item comes last."""
    return items if named is None else torch.searchsorted(named, items)
