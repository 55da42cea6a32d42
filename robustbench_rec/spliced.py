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
    scores: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # users stay, so that their id is no other's

    def __call__(self, batch: Batch) -> Tensor:
        if id(batch.users) in self.scores:
            return self.scores[id(batch.users)][1]
        with torch.no_grad():
            found = self.at(batch.question()).scores
        if sum(each.numel() for _, each in self.scores.values()) + found.numel() <= CELLS:
            self.scores[id(batch.users)] = batch.users, found
        return found


@dataclass(frozen=True, kw_only=True)
class Spliced(Shifted):
    """A point whose δ to another concerns the text of one item: its column is computed, the others are remembered.

    Exact for users whose history the item is not in, who are all that a goal about the item counts. The model scores
    a batch with items given None for `encoded`, as one that reads texts does (`RecModel.text_reader`).
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
        return Output(others.index_copy(1, column, own.to(others.dtype)))

    def shift(self, delta: Delta) -> "Spliced":
        return replace(self, delta=super().shift(delta).delta)
