"""What goes into a model and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.catalogue import Products


def filled(lengths: Tensor, width: int) -> Tensor:
    """Which places of rows that are padded on the right hold something, bool `[n, width]`, by their lengths `[n]`."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class History:
    """What B users did before, oldest first, for models that read it.

    items: `[B, L]`, n_items where a row has ended (padding stands on the right). lengths: `[B]`, 0 for nothing known.
    steps: places `[N]` in the flattened `[B · L]` rows whose next item is scored (None: the last event of each row).
    """

    items: Tensor
    lengths: Tensor
    steps: Tensor | None = None

    def read(self, states: Tensor) -> Tensor:
        """The states `[B, L, …]` that speak for the rows of scores, `[N, …]`."""
        if self.steps is not None:
            return states.flatten(0, 1).index_select(0, self.steps)
        last = (self.lengths - 1).clamp_min(0)
        return states[torch.arange(len(last), device=last.device), last]

    def latest(self, count: int) -> tuple[Tensor, "History"]:
        """The places `[B, S]` of the last `count` events of each row, and a history of these alone, S <= count."""
        width = min(count, self.items.shape[1])
        places = (self.lengths - width).clamp_min(0)[:, None] + torch.arange(width, device=self.lengths.device)
        return places, History(self.items.gather(1, places), self.lengths.clamp_max(width))

    @property
    def real(self) -> Tensor:
        """Which places hold an event, bool `[B, L]`."""
        return filled(self.lengths, self.items.shape[1])


@dataclass(frozen=True)
class Batch:
    """B users, each with C candidates to score.

    users: `[B]`. items: `[B, C]`, or None for the whole catalogue (C = n_items). labels: `[B, C]`, 1 for a positive; in
    training for ranking column 0 is the positive and the others are sampled negatives; ratings or clicks with C = 1 for
    a model of single events; `[B, 0]` where a batch is only scored. mask: `[B, C]`, False where a candidate does not
    count (None: all count). targets: `[B]`, the positive's index where the whole catalogue is scored in training.
    aims: `[B, T]`, columns of the candidates that an attacker is about. context: `[B, K]`, codes of the circumstances
    of the event. history: of the users, for a model that reads it; where it has steps, every step is an example of its
    own: items, labels, mask and targets have a row for each, users not.
    """

    users: Tensor
    items: Tensor | None
    labels: Tensor
    mask: Tensor | None = None
    targets: Tensor | None = None
    aims: Tensor | None = None
    context: Tensor | None = None
    history: History | None = None

    def __len__(self) -> int:
        """Examples: rows of scores."""
        return len(self.users) if self.history is None or self.history.steps is None else len(self.history.steps)

    @property
    def owners(self) -> Tensor:
        """The user of each example `[N]`."""
        if self.history is None or self.history.steps is None:
            return self.users
        return self.users[torch.div(self.history.steps, self.history.items.shape[1], rounding_mode="floor")]

    @property
    def aimed(self) -> Tensor | None:
        """The items that an attacker is about, each once, ascending `[T]`; None without aims."""
        if self.aims is None:
            return None
        items: Tensor = (self.aims if self.items is None else self.items.gather(1, self.aims)).unique()
        return items

    @classmethod
    def unlabelled(
        cls,
        users: Tensor,
        items: Tensor | None = None,
        *,
        context: Tensor | None = None,
        history: History | None = None,
    ) -> "Batch":
        """A batch to score."""
        return cls(users, items, users.new_empty((len(users), 0)), context=context, history=history)

    def products(self, left: Tensor, right: Tensor) -> Tensor | Products:
        """Of the examples, `Products.left`, and the whole catalogue; not multiplied out where that is trained on."""
        found = Products(left, right)
        return found if self.targets is not None and torch.is_grad_enabled() else found.multiplied()

    def rows(self, index: Tensor | slice) -> "Batch":
        """Only the given users `[n]`, of a batch whose examples are its users."""
        fields: dict[str, Any] = {name: each[index] for name, each in vars(self).items() if isinstance(each, Tensor)}
        if self.history is not None:
            assert self.history.steps is None
            fields["history"] = History(self.history.items[index], self.history.lengths[index])
        return replace(self, **fields)

    def question(self) -> "Batch":
        """The same without the answers."""
        return Batch.unlabelled(self.users, self.items, context=self.context, history=self.history)


@dataclass(frozen=True)
class Output:
    """What a model says about a batch.

    given: scores `[B, C]`, one row an example, or what they are products of. hidden: inner states by name, e.g. "user"
    `[B, D]`.
    """

    given: Tensor | Products
    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def scores(self) -> Tensor:
        """`[B, C]`."""
        if isinstance(self.given, Tensor):
            return self.given
        with torch.enable_grad():  # whoever asks first
            return self.given.multiplied()
