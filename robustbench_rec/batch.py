"""What goes into a model and what comes out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B users, each with C candidates to score.

    users: `[B]`. items: `[B, C]`, or None for the whole catalogue (C = n_items). labels: `[B, C]`, 1 for a positive; in
    training for ranking column 0 is the positive and the others are sampled negatives; `[B, 0]` where a batch is only
    scored. mask: `[B, C]`, False where a candidate does not count (None: all count).
    """

    users: Tensor
    items: Tensor | None
    labels: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def unlabelled(cls, users: Tensor, items: Tensor | None = None) -> "Batch":
        """A batch to score."""
        return cls(users, items, users.new_empty((len(users), 0)))


@dataclass(frozen=True)
class Output:
    """What a model says about a batch.

    scores: `[B, C]`. hidden: inner states by name, e.g. "user" `[B, D]`.
    """

    scores: Tensor
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
