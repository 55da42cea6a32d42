"""What every kind of explanation shares, and how faithful it is to the model."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.metrics.explanation import comprehensiveness, curve_area, rank_fidelity, sparsity, sufficiency
from robustbench_rec.naming import Names
from robustbench_rec.recommendation import Recommender

STEPS = 10
"""Of the deletion and insertion curves, a tenth of the units each."""


class Units(ABC):
    """The score of one item for one user, as a function of units that can be left out.

    said: the units in words. note: what a person has to know about the scores, None for nothing.
    """

    kind: ClassVar[str]
    asked: Recommender
    user: int
    item: int
    said: list[str]
    note: str | None = None

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        self.asked, self.user, self.item, self.names = asked, user, item, Names(asked.data)
        self.users = torch.tensor([user], device=asked.data.train.users.device)

    def __len__(self) -> int:
        return len(self.said)

    @abstractmethod
    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        """Scores of all items with some of the units, bool `[M, n]`: `[M, n_items]`. All of them: the model's own.

        alone: without what could have been a unit and is none.
        """

    def slopes(self) -> Tensor | None:
        """Gradient × input of the item's score `[n]`; None where the model has no gradient in the units."""
        return None

    @torch.no_grad()
    def removal(self, some: Tensor | None = None) -> Tensor:
        """What the item's score loses with each unit, scored again without it `[n]`; or with each of `some`."""
        chosen = torch.arange(len(self), device=self.users.device) if some is None else some
        kept = torch.ones(1 + len(chosen), len(self), dtype=torch.bool, device=chosen.device)
        kept[1 + torch.arange(len(chosen), device=chosen.device), chosen] = False
        found = self.scores(kept)[:, self.item]
        return found[0] - found[1:]

    def importance(self, method: str) -> Tensor | None:
        """By removal or gradient `[n]`; None where the model has no gradient in the units."""
        return self.removal() if method == "removal" else self.slopes()

    def explained(self, order: Tensor, top: int) -> Tensor:
        """The units that are told, of all in their order: the first `top`."""
        return order[:top]


@dataclass(frozen=True)
class Faithfulness:
    """What an explanation is worth to the model that it explains, in units of the score.

    score, rank: of the item among what the user may be shown. comprehensiveness: what the score loses without the units
    that are told. sufficiency: what it loses with these alone. deletion, insertion: area under the score while more and
    more of the units, the most important first, are left out, or given back to nothing; *_random: the mean of random
    orders. ejected: whether the item leaves the first k without what is told. sparsity: share of the units not told.
    """

    score: float
    rank: int
    units: int
    comprehensiveness: float
    sufficiency: float
    deletion: float
    deletion_random: float
    insertion: float
    insertion_random: float
    ejected: float
    sparsity: float


@torch.no_grad()
def faithfulness(units: Units, order: Tensor, told: Tensor, *, k: int, draws: int, seed: int) -> Faithfulness:
    """Measured by scoring again: order: all units, the most important first `[n]`. told: those that are told."""
    n, item = len(order), units.item
    generator = torch.Generator().manual_seed(seed)
    orders = [order, *(torch.randperm(n, generator=generator).to(order.device) for _ in range(draws))]
    without = torch.ones(1, n, dtype=torch.bool, device=order.device).index_fill(1, told, False)
    less, alone = [torch.ones_like(without), without], [~without]
    counts = torch.tensor([math.ceil(n * step / STEPS) for step in range(1 + STEPS)], device=order.device)
    for each in orders:
        place = torch.empty_like(each).scatter_(0, each, torch.arange(n, device=each.device))
        first = place[None] < counts[:, None]  # [1 + STEPS, n]
        less.append(~first)
        alone.append(first)
    scores = units.scores(torch.cat(less))
    full, absent, *deletion = scores[:, item].double()
    told_alone, *insertion = units.scores(torch.cat(alone), alone=True)[:, item].double()
    curves = (torch.stack(each).view(1 + draws, 1 + STEPS) for each in (deletion, insertion))
    areas = [curve_area(each, counts / n) for each in curves]  # [orders]
    before, after = (torch.tensor([_rank(units, each)]) for each in scores[:2])
    return Faithfulness(
        score=full.item(),
        rank=int(before),
        units=n,
        comprehensiveness=comprehensiveness(full, absent).item(),
        sufficiency=sufficiency(full, told_alone).item(),
        deletion=areas[0][0].item(),
        deletion_random=areas[0][1:].mean().item(),
        insertion=areas[1][0].item(),
        insertion_random=areas[1][1:].mean().item(),
        ejected=rank_fidelity(before, after, k).item(),
        sparsity=sparsity(torch.tensor([len(told)]).double(), torch.tensor([n]).double()).item(),
    )


def _rank(units: Units, scores: Tensor) -> int:
    """Of the item among what the user has not had, from 1; a tie counts against it."""
    had = units.asked.had.rows(units.users).columns
    others = scores.index_fill(0, had, -torch.inf) if not units.asked.seen else scores.clone()
    others[units.item] = -torch.inf
    return 1 + int((others >= scores[units.item]).sum())
