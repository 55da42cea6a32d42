"""What every certificate is, and how bounds on single items become bounds on lists."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.metrics import ranking
from robustbench_rec.running import running
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

CELLS = 2**24  # numbers held at once: 128 MiB of float64
Joint = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Budgets:
    """The part of a config that all certificates share.

    budgets: how much the attacker may change, ascending. empirical: also attack what is certified, at every budget.
    """

    budgets: list[float]
    empirical: bool


def vectors(at: Shifted, batch: Batch, n_items: int) -> tuple[Tensor, Tensor]:
    """Vectors of a batch's users `[B, D]` and of all items `[n_items, D]` whose dot products are the scores.

    RrecError for a model whose scores are none.
    """
    model = at.model
    if not model.inner_product:
        name = type(model).__module__.rpartition(".")[2]
        raise RrecError(f"model '{name}': its scores are no dot products of vectors, which this certificate is about")
    everything = torch.arange(n_items, device=batch.users.device)
    return model.user_states(batch, at.encoded), model.item_states(everything, at.encoded)


@dataclass(frozen=True)
class Certified:
    """What is proven of a predictor.

    clean: what it reaches without an attack. above: how many irrelevant candidates can stand above each relevant one
    `[n_budgets, P]`, pairs in the order of the portions. notes: numbers beside.
    """

    clean: Result
    above: Tensor
    notes: dict[str, float] = field(default_factory=dict)


class Certificate(ABC):
    """A proof of how far an attacker can spoil the lists, constructed as `cls(config)`.

    unit: what a budget counts. trains: it trains models of its own, on the data of the checkpoint.
    """

    threat: ClassVar[Threat]
    unit: ClassVar[str]
    trains: ClassVar[bool] = False

    def __init__(self, config: Budgets) -> None:
        budgets = config.budgets
        if not budgets or sorted(set(budgets)) != budgets or not 0 <= budgets[0] <= budgets[-1] < float("inf"):
            raise RrecError(f"certify.budgets={budgets}: ascending numbers of at least 0 are needed")
        self.budgets, self.attacked = budgets, config.empirical

    @property
    def declared(self) -> Threat:
        """The threat with what the config has settled."""
        return self.threat

    @abstractmethod
    def certify(self, loaded: Loaded, judging: Full, part: str) -> Certified:
        """The bounds for every user of the part."""

    @abstractmethod
    def attack(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Result:
        """What the best attack at hand of the same threat leaves of the same predictor."""


def whole(budgets: Sequence[float]) -> list[int]:
    """Budgets that count something; RrecError where one is no whole number."""
    if any(each != int(each) for each in budgets):
        raise RrecError(f"certify.budgets={list(budgets)}: whole numbers are needed here")
    return [int(each) for each in budgets]


def certifiable(judging: Full) -> list[str]:
    """The metrics of the config that cannot rise where a relevant item falls; RrecError where there is none."""
    names = [each for each in judging.names() if each.partition("@")[0] in ranking.TOP_K]
    if not names:
        raise RrecError(f"no metric of {', '.join(judging.names())} can be certified: {', '.join(ranking.TOP_K)} can")
    return names


def guaranteed(judging: Full, part: str, above: Tensor) -> Result:
    """The metrics of the worst lists in which at most `above` `[P]` irrelevant items stand above each relevant one.

    With N_t irrelevant items above t at most, the j-th relevant item of any list stands at place j + N_(j) or better,
    N_(1) ≤ N_(2) ≤ … being the bounds in ascending order.
    """
    names, portions = certifiable(judging), judging.portions(part)
    deepest = max(judging.judge.top_k)
    parts = above.split([len(each.relevant[0]) for each in portions])
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    for portion, bounds in zip(portions, parts, strict=True):
        hits, relevant = worst_lists(portion.relevant[0], bounds, len(portion.users), deepest)
        for name, kept in values.items():
            metric, _, k = name.partition("@")
            kept.append(ranking.TOP_K[metric](hits[:, : int(k)], relevant).double())
    per_user = {name: torch.cat(kept) for name, kept in values.items()}
    users = torch.cat([each.users for each in portions])
    return Result({name: each.mean().item() for name, each in per_user.items()}, users, per_user)


def worst_lists(rows: Tensor, above: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Hits `[n, k]` where relevant items, of users rows `[P]`, stand as low as `above` `[P]` lets them, and counts."""
    order = above.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    owner, counts = rows[order], torch.bincount(rows, minlength=n)
    first = F.pad(counts.cumsum(0), (1, 0))[owner]
    places = torch.arange(len(rows), device=rows.device) - first + above[order]  # from 0, ascending within a user
    hits = torch.zeros(n, k, dtype=torch.bool, device=rows.device)
    inside = places < k
    hits[owner[inside], places[inside]] = True
    return hits, counts


def barriers(upper: Tensor, joint: Joint) -> Tensor:
    """What the votes of an item must exceed for at most 0, 1, … A-1 others to stand above it `[B, A]`, descending.

    upper: the A largest bounds of the others before the attack, descending, −∞ where there are no more `[B, A]`. joint:
    of the sum of the bounds `[…, A]` of so many items `[A]`, a bound on the sum of their votes after the attack. If a +
    1 items stand above, so do the weakest c of the strongest a + 1, whose mean is then no less; c is the best of all.
    """
    depth = upper.shape[1]
    known = upper.isfinite()
    sums = F.pad(running(upper.masked_fill(~known, 0.0), 1), (1, 0))  # [B, A + 1]
    place = torch.arange(1, depth + 1, device=upper.device)
    start = place[:, None] - place  # [A, C], where the weakest c of the strongest a + 1 begin
    totals = sums[:, 1:, None] - sums[:, start.clamp_min(0)]  # [B, A, C]
    means = joint(totals, place) / place
    found = means.masked_fill(start < 0, float("inf")).amin(2)
    return found.masked_fill(~known, float("-inf"))  # there are not so many others


def outvoted(lower: Tensor, rows: Tensor, barrier: Tensor) -> Tensor:
    """How many others can stand above relevant items, given bounds `[P]` on their votes after the attack: `[P]`.

    As many as the list is long stands for any number.
    """
    return (lower[:, None] <= barrier[rows]).sum(1)


def clopper_pearson(n: int, alpha: float) -> tuple[Tensor, Tensor]:
    """One-sided bounds on a probability, wrong with probability alpha each, by successes of n: `[n + 1]` each."""
    import numpy as np
    from scipy.stats import beta

    count = np.arange(n + 1)
    lower = np.where(count > 0, beta.ppf(alpha, np.maximum(count, 1e-9), n - count + 1), 0.0)
    upper = np.where(count < n, beta.isf(alpha, count + 1, np.maximum(n - count, 1e-9)), 1.0)
    return torch.from_numpy(lower), torch.from_numpy(upper)


@dataclass(frozen=True)
class Ballot:
    """How often each candidate of each user of a part was voted for, in how many elections.

    counts: int `[U, n_items]` in the order of the portions. n: elections. each: votes of a user in one of them.
    """

    counts: Tensor
    n: int
    each: int

    def clean(self, judging: Full, part: str) -> Result:
        """What the predictor reaches that ranks by votes."""
        portions = judging.portions(part)
        scores = self.counts.float().split([len(each.users) for each in portions])
        return judging.measure((each.clone() for each in scores), portions, certifiable(judging))

    def bounds(self, judging: Full, part: str, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds `[P]` of relevant pairs, their rows, the largest of the others `[U, A]`; given by count `[n + 1]`."""
        depth = min(max(judging.judge.top_k), self.counts.shape[1])
        lower, upper = lower.to(self.counts.device), upper.to(self.counts.device)
        own, rows, others, first = [], [], [], 0
        for portion in judging.portions(part):
            row, column = portion.relevant
            counts = self.counts[first : first + len(portion.users)]
            own.append(lower[counts[row, column].long()])
            rows.append(row + first)
            high = upper[counts.long()]
            high[portion.relevant] = float("-inf")
            high[portion.excluded] = float("-inf")
            others.append(high.topk(depth, 1).values)
            first += len(portion.users)
        return torch.cat(own), torch.cat(rows), torch.cat(others)


def candidates(judging: Full, part: str) -> tuple[Tensor, Tensor]:
    """Users `[U]` of a part, and what is a candidate of theirs, bool `[U, n_items]`."""
    portions, users = judging.portions(part), []
    masks = []
    for portion in portions:
        mask = torch.ones(len(portion.users), judging.data.n_items, dtype=torch.bool, device=portion.users.device)
        mask[portion.excluded] = False
        users.append(portion.users)
        masks.append(mask)
    return torch.cat(users), torch.cat(masks)
