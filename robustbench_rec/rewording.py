"""Attacks that edit texts of items: what they edit, what comes out, what it costs."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import cleanings
from robustbench_rec.attack import Attack, Scope
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.features import is_prose
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.reader import Reader, rows_of
from robustbench_rec.shifted import Delta, Shifted
from robustbench_rec.spliced import Spliced
from robustbench_rec.text.distances import Similarity, levenshtein, overlap
from robustbench_rec.text.edits import popular_words
from robustbench_rec.text.recipes import Limits
from robustbench_rec.threat import Threat

TITLES = 50  # of the most popular items, whose words are worth copying
A = TypeVar("A", bound="Rewording")


@dataclass(frozen=True)
class Column:
    """A text column of the item table, and how a model reads its rows.

    Texts are told and compared as they are written. Where a cleaning left rules before the model, what the model is
    given of a written text is what they leave of it: see `passed`.
    """

    data: Data
    name: str
    reader: Reader

    @classmethod
    def of(cls, data: Data, name: str | None, model: RecModel) -> "Column":
        """The named column, or the first of prose that the model reads, or the first that it reads."""
        if name is not None and name not in data.text_columns:
            raise unknown(f"text column of the items of dataset '{data.name}'", name, data.text_columns)
        reader = model.text_reader(data)
        if name is not None and name not in reader.columns:
            raise RrecError(f"attack.column={name}: the model does not read it (it reads: {', '.join(reader.columns)})")
        return cls(data, name or next(filter(is_prose, reader.columns), reader.columns[0]), reader)

    @property
    def table(self) -> pd.DataFrame:
        """Of all items."""
        assert self.data.item_table is not None
        return self.data.item_table

    @cached_property
    def texts(self) -> list[str]:
        """Of all items, empty where there is none."""
        column = self.table[self.name]
        found: list[str] = column.astype("object").where(column.notna(), "").astype("str").tolist()
        return found

    @cached_property
    def similarity(self) -> Similarity:
        """Fitted on the texts of all items."""
        return Similarity(self.reader.joined(self.table))

    @cached_property
    def popular(self) -> list[str]:
        """Words of the texts of the items with the most training events."""
        counts = torch.bincount(self.data.train.liked().items, minlength=self.data.n_items)
        order = counts.argsort(descending=True, stable=True)[:TITLES].tolist()
        return popular_words([self.texts[item] for item in order])

    def rows(self, items: Sequence[int], texts: Sequence[str]) -> pd.DataFrame:
        """Of the items, with other texts in this column, as they are written."""
        return self.table.iloc[list(items)].assign(**{self.name: pd.Series(list(texts), dtype="object").to_numpy()})

    @property
    def ruled(self) -> bool:
        """Whether rules of a cleaning stand before the model in this column."""
        return self.data.cleaning is not None and self.name in self.data.cleaning.rules

    def passed(self, items: Sequence[int], texts: Sequence[str]) -> list[str]:
        """What the rules of the cleaning leave of texts that these items get."""
        return cleanings.as_read(self.data, self.name, items, texts)

    def joined(self, item: int, texts: Sequence[str]) -> list[str]:
        """All that the model reads of one item, joined, with each of these texts as it is written."""
        return self.reader.joined(self.rows([item] * len(texts), texts))

    def start(self, item: int, text: str) -> int:
        """Where this text, without white space around it, begins in what the model reads of the item."""
        columns, text = self.reader.columns, text.strip()
        row = self.rows([item], [text])
        (before,) = self.reader.joined(row.assign(**dict.fromkeys(columns[columns.index(self.name) :], "")))
        (read,) = self.reader.joined(row)
        return read.index(text, len(before.rstrip()))

    def delta(self, at: Shifted, items: Sequence[int], texts: Sequence[str], added: Tensor | None = None) -> Delta:
        """From the point to the one where these items have these texts; added: see `Reader.read`."""
        found = self.reader.read(self.rows(items, self.passed(items, texts)), added)
        return {name: rows_of(each, items, found[name]) for name, each in at.tensors(found).items()}

    def deltas(self, at: Shifted, item: int, texts: Sequence[str]) -> list[Delta]:
        """The same for one item with each of these texts, which are read at once."""
        same = [item] * len(texts)
        found = self.reader.read(self.rows(same, self.passed(same, texts)))
        base = at.tensors(found)
        return [
            {name: rows_of(each, [item], found[name][[row]]) for name, each in base.items()}
            for row in range(len(texts))
        ]


@dataclass(frozen=True, kw_only=True)
class Reworded(Shifted):
    """A model some of whose items have other texts; old, new: of `items`. queries: that each of them took."""

    column: Column
    items: tuple[int, ...]
    old: tuple[str, ...]
    new: tuple[str, ...]
    queries: tuple[int, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """Original item ids, the texts before and after, and what is read where rules stand before the model."""
        ids = [self.column.data.item_ids[each] for each in self.items]
        found = pd.DataFrame({"item": ids, "before": self.old, "after": self.new, "queries": self.queries})
        return found.assign(read=self.column.passed(self.items, self.new)) if self.column.ruled else found


class Rewording(Attack):
    """An attack that gives items other texts in one column, for everybody; all else of an item stays.

    column: of the item table; None for the first of prose that the model reads. It needs to be `prepared`.
    natural: whether it edits texts where a goal is about none, as a training is.
    """

    natural: ClassVar[bool] = False

    threat: ClassVar[Threat] = Threat(
        surface="texts of items", knowledge="none", scope="all users at once", budget="edits"
    )

    def __init__(self, column: str | None, seed: int) -> None:
        self.column, self.seed = column, seed
        self._ready: Column | None = None

    @property
    def ready(self) -> Column:
        """What it edits, once it is prepared."""
        assert self._ready is not None, "it is not prepared"
        return self._ready

    @property
    def declared(self) -> Threat:
        where = "texts of items" if self.column is None else f"texts of items ({self.column})"
        return replace(self.threat, surface=where, budget=self.budget)

    @property
    def budget(self) -> str:
        """What may change, in words."""
        raise NotImplementedError

    def check(self, model: RecModel) -> None:
        if type(model).text_reader is RecModel.text_reader:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' does not read texts of items: there is no text to edit")

    def check_training(self, model: RecModel) -> None:
        super().check_training(model)
        if not self.natural:
            name = type(self).__module__.rpartition(".")[2]
            raise RrecError(
                f"defense.attack={name} edits the texts of items that a goal is about, and a training is about none; "
                "take defense.attack=text_noise, or an attack with a surface, such as pgd"
            )

    def prepared(self: A, model: RecModel, data: Data) -> A:
        self.check(model)
        found = copy(self)
        found._ready = Column.of(data, self.column, model)
        return found

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        return "all"

    def reworded(self, at: Shifted, items: Sequence[int], texts: Sequence[str], queries: Sequence[int]) -> Reworded:
        """The model where these items have these texts."""
        worse = at.shift(self.ready.delta(at, items, texts)) if items else at
        old = tuple(self.ready.texts[item] for item in items)
        return Reworded(
            worse.model,
            worse.delta,
            column=self.ready,
            items=tuple(items),
            old=old,
            new=tuple(texts),
            queries=tuple(queries),
        )

    def generator(self, item: int, seed: int) -> np.random.Generator:
        """For one item, whichever others there are."""
        return np.random.default_rng([seed, item])

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Of each item: Levenshtein distance in characters, in words, as a share of the characters; likeness; queries.

        Of the texts as they are written. similarity: of all that the model reads of an item, cosine of character
        trigrams. overlap: of the words of the column.
        """
        assert isinstance(worse, Reworded)
        column, device = worse.column, batch.users.device
        characters = levenshtein(worse.old, worse.new)
        before = column.reader.joined(column.rows(worse.items, worse.old))
        after = column.reader.joined(column.rows(worse.items, worse.new))
        values = {
            "characters": characters,
            "words": levenshtein(worse.old, worse.new, "words"),
            "edit_rate": characters / np.maximum(1, [len(each) for each in worse.old]),
            "similarity": [column.similarity(*pair) for pair in zip(before, after, strict=True)],
            "overlap": [overlap(*pair) for pair in zip(worse.old, worse.new, strict=True)],
            "queries": worse.queries,
        }
        return {name: torch.tensor(np.array(each, dtype=float), device=device) for name, each in values.items()}


def aimed_at(batch: Batch, name: str) -> list[int]:
    """The items that the goal is about, each once; RrecError where it is about none."""
    if batch.aims is None or batch.items is not None:
        raise RrecError(f"{name} edits the texts of given items: goal=promote or goal=demote, and protocol=full")
    found: list[int] = torch.unique(batch.aims).tolist()
    return found


def queries_each(queries: int, items: Sequence[int], name: str) -> int:
    """An equal part of the queries for each item; RrecError where it would be none."""
    if queries < len(items):
        raise RrecError(f"{name} with queries={queries}: there are {len(items)} target items, each takes one at least")
    return queries // len(items)


class Probe:
    """What an attacker learns about one item by editing its text: the loss of all users, a query for each text.

    old: its text. used: queries so far, at most `queries`.
    """

    def __init__(
        self, column: Column, at: Shifted, item: int, batch: Batch, objective: Scalar, *, queries: int
    ) -> None:
        self.column, self.at, self.item, self.queries, self.used = column, Spliced.of(at, item), item, queries, 0
        self.batch, self.objective = batch, objective
        self.old = column.texts[item]
        (self.read,) = column.joined(item, [self.old])

    @property
    def left(self) -> int:
        """Queries that may still be asked."""
        return self.queries - self.used

    def values(self, texts: Sequence[str]) -> list[float]:
        """The loss with each text, as far as the queries reach."""
        asked = texts[: self.left]
        self.used += len(asked)
        deltas = self.column.deltas(self.at, self.item, asked) if asked else []
        return [self.objective(self.at.shift(each), self.batch).item() for each in deltas]

    def slopes(self, text: str) -> Tensor:
        """The gradient of the loss in the vectors of all tokens, where they stand in the text of this item `[N, D]`.

        It is 0 for a token that rules before the model take out.
        """
        reader = self.column.reader
        added = torch.zeros_like(reader.vectors).requires_grad_()
        with torch.enable_grad():
            if reader.embedding is None:
                delta = self.column.delta(self.at, [self.item], [text], added)
            else:
                delta = {**self.column.delta(self.at, [self.item], [text]), reader.embedding: added}
            value = self.objective(self.at.shift(delta), self.batch)
            (found,) = torch.autograd.grad(value, added)
        self.used += 1
        return found.to_dense()

    def allowed(self, texts: Sequence[str], limits: Limits) -> list[str]:
        """Those of the texts that keep to the limits, each once; `Limits.words` is the search's own to keep."""
        texts = list(dict.fromkeys(texts))
        fits = np.ones(len(texts), dtype=bool)
        if limits.characters is not None:
            fits &= levenshtein([self.old] * len(texts), texts) <= limits.characters
        if limits.added is not None:
            fits &= levenshtein([self.old] * len(texts), texts, "words") <= limits.added
        if limits.similarity is not None and texts:
            read = self.column.joined(self.item, texts)
            fits &= np.array([self.column.similarity(self.read, each) for each in read]) >= limits.similarity
        return [each for each, there in zip(texts, fits, strict=True) if there]
