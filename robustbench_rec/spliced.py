"""A model of which one item changes, so that a change costs the scores of one column."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.model import Encoded
from robustbench_rec.shifted import Delta, Shifted

CELLS = 2**27  # scores remembered: 512 MiB of float32


@dataclass(frozen=True)
class Remembered:
    """What a point said about batches of the whole catalogue, as long as there is room."""

    at: Shifted
    scores: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # by users, who have one history each

    def __call__(self, batch: Batch) -> Tensor:
        users = tuple(batch.users.tolist())
        if users in self.scores:
            return self.scores[users]
        with torch.no_grad():
            found = self.at(batch.question()).scores
        if sum(each.numel() for each in self.scores.values()) + found.numel() <= CELLS:
            self.scores[users] = found
        return found


@dataclass(frozen=True, kw_only=True)
class Spliced(Shifted):
    """A point whose δ to another concerns the text of one item: its column is computed, the others are remembered.

    Users who read the item in their history, and of whom something is asked all the same, are scored anew. The model
    scores a batch with items given None for `encoded`, as one that reads texts does (`RecModel.text_reader`).
    """

    item: int
    others: Remembered

    @classmethod
    def of(cls, at: Shifted, item: int) -> "Spliced":
        """`at`, until it is shifted."""
        return cls(at.model, at.delta, item=item, others=Remembered(at))

    @cached_property
    def encoded(self) -> Encoded:
        """Nothing: the item is read in every forward."""
        return None

    def __call__(self, batch: Batch) -> Output:
        here = Shifted(self.model, self.delta)
        if batch.items is not None:
            return here(batch)
        column = torch.tensor([self.item], device=batch.users.device)
        asked = replace(batch.question(), items=column.repeat(len(batch), 1))
        others, own = self.others(batch), here.holding(None)(asked).scores
        found = others.index_copy(1, column, own.to(others.dtype))
        readers = self._readers(batch)
        if len(readers):
            found = found.index_copy(0, readers, here(batch.rows(readers).question()).scores.to(found.dtype))
        return Output(found)

    def _readers(self, batch: Batch) -> Tensor:
        """Rows that read the item, but for those of whom no aim counts."""
        if batch.history is None:
            return torch.zeros(0, dtype=torch.long, device=batch.users.device)
        asked = (batch.history.items == self.item).any(1)
        if batch.aims is not None and batch.mask is not None:
            asked = asked & batch.mask.gather(1, batch.aims).any(1)
        return asked.nonzero().squeeze(1)

    def shift(self, delta: Delta) -> "Spliced":
        return replace(self, delta=super().shift(delta).delta)
