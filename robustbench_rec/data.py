"""The prepared dataset: indices and tensors inside, original ids for people."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.text.rules import TextRules


@dataclass(frozen=True)
class Interactions:
    """One part of a split, a row per event, ordered by (user, time, position in the file).

    users, items: int64 indices `[N]`. values: float32 ratings, or 1 and 0 for clicks, 1 where the data has none `[N]`.
    times: int64 seconds `[N]`, None where the data has none. context: int64 codes of the circumstances of each event
    `[N, K]`, None where the data has none.
    """

    users: Tensor
    items: Tensor
    values: Tensor
    times: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)

    def liked(self) -> "Interactions":
        """The events that are no refusals: where clicks have labels, those with label 1."""
        refused = self.values == 0
        clicks = bool((refused | (self.values == 1)).all())  # else 0 is a rating
        return self.where(~refused) if clicks and bool(refused.any()) else self

    def where(self, kept: Tensor) -> "Interactions":
        """The events with True `[N]`."""
        return self._each(lambda tensor: tensor[kept])

    def to(self, device: torch.device) -> "Interactions":
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Interactions":
        return Interactions(**{name: change(each) for name, each in vars(self).items() if each is not None})


@dataclass(frozen=True)
class KG:
    """A knowledge graph whose entities 0 … n_items-1 are the items; no inverse edges.

    heads, relations, tails: int64 `[T]`. entity_ids: original names of all entities (an unlinked item has its item id).
    linked: bool `[n_items]`, items that the link table ties to an entity.
    """

    heads: Tensor
    relations: Tensor
    tails: Tensor
    entity_ids: list[str]
    relation_ids: list[str]
    linked: Tensor

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def n_entities(self) -> int:
        return len(self.entity_ids)

    @property
    def n_relations(self) -> int:
        return len(self.relation_ids)

    def to(self, device: torch.device) -> "KG":
        moved = {name: getattr(self, name).to(device) for name in ("heads", "relations", "tails", "linked")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Profiles:
    """Fake users that an attacker adds to the training data.

    events: theirs, users counted from 0 to n-1. targets: items that they are about `[T]`. about: how they were made and
    for which data, as JSON can hold it.
    """

    events: Interactions
    n: int
    targets: Tensor
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Cleaning:
    """What cleaning changed in the training data.

    kept: the training events that stay, bool `[N]`. edges: users and items of the graph, where it is not that of the
    training events `[2, E]`. texts: changed cells of the item table, by column and row. about: the steps and what they
    found, as JSON can hold it. rules: that stand before the model from then on, by column of the item table, in their
    order.
    """

    kept: Tensor
    edges: Tensor | None = None
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, tuple[TextRules, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """What models, trainer and evaluator see of a dataset.

    fingerprint: sha256 over the prepared arrays and ids; equal fingerprints mean equal data and split.
    uncleaned_fingerprint: of the data before cleaning, with the noise that came afterwards (None: there was none).
    item_table, user_table: side information, row i belongs to index i (None where the source has none).
    ordered: the events of a user stand in the order in which they happened. context_sizes: number of codes of each
    context column, by its name. report: what cleaning found, `{"duplicates": 3, …}` in the order of the rules.
    truth: ground truth of synthetic data, named tensors. hidden: events that a noise took out of train, which nothing
    learns from and which are no candidates of a ranking (None: there are none). learnt: what stood in train before a
    noise that came after training (None: there was none). reworded: the item table as such a noise left it (None: there
    was none), for what was made of the item table of the training. disliked: events below `prepare.threshold`, which
    nothing learns from or is judged by, but whose items are not recommended to their users (None: there are none).
    place: folder for what is computed once from the data (None: it is kept nowhere). fakes: the fake users, if there
    are any, which are the last ones and in train alone. cleaning: what was done to train before. edges: users and items
    of the edges that models on a graph have, `[2, E]`, where they are not those of the training events.
    """

    name: str
    fingerprint: str
    train: Interactions
    valid: Interactions
    test: Interactions
    user_ids: list[str]
    item_ids: list[str]
    item_table: pd.DataFrame | None = None
    user_table: pd.DataFrame | None = None
    kg: KG | None = None
    ordered: bool = False
    context_sizes: Mapping[str, int] = field(default_factory=dict)
    report: Mapping[str, int] = field(default_factory=dict)
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Interactions | None = None
    learnt: Interactions | None = None
    reworded: pd.DataFrame | None = None
    disliked: Interactions | None = None
    place: Path | None = None
    fakes: Profiles | None = None
    cleaning: Cleaning | None = None
    edges: Tensor | None = None
    uncleaned_fingerprint: str | None = None

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_genuine(self) -> int:
        """Users who are no fakes; they come first."""
        return self.n_users - (0 if self.fakes is None else self.fakes.n)

    @property
    def taught(self) -> Interactions:
        """The training events that the model learnt from, whatever a noise did to them afterwards."""
        return self.train if self.learnt is None else self.learnt

    def clicks(self) -> Interactions:
        """Events of `taught` that are liked, those of fake users left out."""
        liked = self.taught.liked()
        return liked if self.fakes is None else liked.where(liked.users < self.n_genuine)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @cached_property
    def has(self) -> frozenset[str]:
        """What a model may need: a subset of {"kg", "order", "rating", "text", "time"}."""
        found = {
            "kg": self.kg is not None,
            "order": self.ordered,
            "text": bool(self.text_columns),
            "time": self.train.times is not None,
            "rating": bool((self.train.values != 1).any()),
        }
        return frozenset(name for name, there in found.items() if there)

    @cached_property
    def text_columns(self) -> list[str]:
        """Columns of the item table that hold text."""
        columns = {} if self.item_table is None else dict(self.item_table.items())
        return [
            str(name)
            for name, each in columns.items()
            if pd.api.types.is_string_dtype(each) or pd.api.types.is_object_dtype(each)
        ]

    @property
    def known(self) -> "Data":
        """What a training may know: no held-out or hidden events, no truth, and not who is fake."""
        nothing = self.train.where(torch.zeros_like(self.train.users, dtype=torch.bool))
        return replace(self, valid=nothing, test=nothing, hidden=None, disliked=None, fakes=None, truth={})

    def part(self, name: str) -> Interactions:
        """`train`, `valid` or `test`."""
        parts: dict[str, Interactions] = {"train": self.train, "valid": self.valid, "test": self.test}
        return parts[name]

    def to(self, device: torch.device) -> "Data":
        train, valid, test = (self.part(name).to(device) for name in ("train", "valid", "test"))
        kg, edges = self.kg and self.kg.to(device), None if self.edges is None else self.edges.to(device)
        hidden, learnt, disliked = (
            None if each is None else each.to(device) for each in (self.hidden, self.learnt, self.disliked)
        )
        parts = replace(self, train=train, valid=valid, test=test, hidden=hidden, learnt=learnt, disliked=disliked)
        return replace(parts, kg=kg, edges=edges)
