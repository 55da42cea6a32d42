from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import History
from robustbench_rec.certificates import certificates
from robustbench_rec.certified import (
    Ballot,
    Budgets,
    Certificate,
    Certified,
    barriers,
    clopper_pearson,
    outvoted,
    vectors,
    whole,
)
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.evaluation.ranking import Lists
from robustbench_rec.graph import Csr, pointers
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted, surface
from robustbench_rec.threat import Threat

NOISES = ("deletion", "flips", "gaussian", "masking")
SURFACES = ("user", "embedding", "weight", "feature")
CHANGES = ("delete", "insert", "replace")


@certificates.register
class Smoothing(Certificate):
    """Randomised smoothing: the list of the items that a model most often puts on top when its input is noisy.

    noise: gaussian, N(0, sigma²) on the vectors of `surface`: the user's own (user, dot-product models), or all tensors
    of a surface together; budgets are l2 norms (Cohen et al., ICML 2019; top K: Jia et al., ICLR 2020). deletion: each
    event of a history is dropped with probability p_minus; budgets are events that are deleted, inserted or replaced
    (changes), anywhere in it. masking: `kept` events of a history stay; budgets are replaced events, of which a sample
    sees one with probability Δ = 1 − C(L − r, k) / C(L, k). flips: of the 0/1 history of an item-based model, 1 → 0
    with p_minus, 0 → 1 with p_plus, the regions of constant likelihood ratio (Bojchevski et al., ICML 2020).

    votes: items on top of a sample's list that it votes for. samples, seed: how many, drawn from what. alpha: the whole
    curve is wrong with probability alpha at most, divided by users times items for each Clopper–Pearson bound. A vote's
    probability moves to the worst that its noise allows (Neyman–Pearson), and so does the sum over c items in units of
    min(c, votes), for which `barriers` takes the best c.

    The empirical side is simple: a step of the vector from the relevant items to the best others; the latest events
    deleted, replaced or followed by random ones; random flips.
    """

    @dataclass
    class Config(Budgets):
        noise: str
        surface: str
        sigma: float
        p_minus: float
        p_plus: float
        kept: int
        changes: str
        votes: int
        samples: int
        alpha: float
        seed: int

    threat: ClassVar[Threat] = Threat(
        surface="vectors | features | histories", knowledge="white-box", scope="each user", budget="l2 norm | events"
    )
    unit: ClassVar[str] = "budget"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for key, value, choices in (
            ("noise", config.noise, NOISES),
            ("surface", config.surface, SURFACES),
            ("changes", config.changes, CHANGES),
        ):
            if value not in choices:
                raise unknown(f"certify.{key}", value, choices)
        c = config
        shares = 0 < c.p_minus < 1 and 0 <= c.p_plus < 1 and 0 < c.alpha < 1
        if not (shares and min(c.kept, c.votes, c.samples) >= 1 and c.sigma > 0 and c.seed >= 0):
            raise RrecError(
                f"certify.p_minus={c.p_minus}, p_plus={c.p_plus}, alpha={c.alpha}, kept={c.kept}, votes={c.votes}, "
                f"samples={c.samples}, sigma={c.sigma}, seed={c.seed}: probabilities, counts of at least 1, sigma > 0 "
                "and seed >= 0 are needed"
            )
        if c.noise == "masking" and c.changes != "replace":
            raise RrecError("certify.noise=masking keeps the length of a history: set certify.changes=replace")
        if c.noise != "gaussian":
            whole(c.budgets)
        self.config = config

    @property
    def declared(self) -> Threat:
        c = self.config
        if c.noise == "gaussian":
            who = ("the user's vector", "each user") if c.surface == "user" else (c.surface, "all users at once")
            return replace(self.threat, surface=who[0], scope=who[1], budget="l2 norm of all that is changed")
        return replace(self.threat, surface="history", budget=f"events that it can {c.changes}")

    def certify(self, loaded: Loaded, judging: Full, part: str) -> Certified:
        c = self.config
        if self.attacked and any(self.budgets):  # what cannot be done is refused before the samples, which take long
            self._attackable()
        ballot = self._elect(loaded, judging, part, 0)
        alpha = c.alpha / ballot.counts.numel()
        own, rows, others = ballot.bounds(judging, part, *clopper_pearson(ballot.n, alpha))
        lengths = self._lengths(judging, part)
        above = []
        for budget in self.budgets:

            def joint(total: Tensor, number: Tensor, budget: float = budget) -> Tensor:
                width = number.clamp_max(c.votes)
                share = (total / width).clamp_max(1)
                return width * (1 - self.least(1 - share, budget, lengths[:, None, None]))

            above.append(outvoted(self.least(own, budget, lengths[rows]), rows, barriers(others, joint)))
        return Certified(ballot.clean(judging, part), torch.stack(above), {"samples": float(ballot.n)})

    def attack(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Result:
        self._attackable()
        return self._elect(loaded, judging, part, budget).clean(judging, part)

    def _attackable(self) -> None:
        if self.config.noise == "gaussian" and self.config.surface != "user":
            raise RrecError(f"certify.empirical: no attack for surface={self.config.surface}, leave it false")

    def least(self, p: Tensor, budget: float, lengths: Tensor) -> Tensor:
        """The least that a probability p can become within the budget. lengths: of the histories, for masking."""
        c = self.config
        if c.noise == "gaussian":
            worst: Tensor = torch.special.ndtr(torch.special.ndtri(p) - budget / c.sigma)
            return worst
        count = int(budget)
        if c.noise == "masking":
            table = torch.tensor([seen(length, count, c.kept) for length in range(int(lengths.max()) + 1)])
            return (p - table.double().to(p.device)[lengths]).clamp_min(0)
        if c.noise == "deletion":
            away = c.p_minus**count  # that none of the events of a change is seen
            if c.changes == "insert":
                return away * p
            return ((p - (1 - away)) / (away if c.changes == "delete" else 1)).clamp_min(0)
        before, after = regions(count * (c.changes != "delete"), count * (c.changes != "insert"), c.p_plus, c.p_minus)
        return _interpolated(p, before.to(p.device), after.to(p.device))

    def _lengths(self, judging: Full, part: str) -> Tensor:
        """Events of each user's history `[U]`, 0 where none is read."""
        portions = judging.portions(part)
        if self.config.noise not in ("masking", "deletion"):
            return torch.cat([torch.zeros_like(each.users) for each in portions])
        found = [judging.history(each.users, LONGEST, part) for each in portions]
        return torch.cat([each.lengths for each in found if each is not None])

    @torch.no_grad()
    def _elect(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Ballot:
        """The votes for inputs that are changed within the budget."""
        c, model = self.config, loaded.model.eval()
        draw = torch.Generator().manual_seed(c.seed)
        portions = judging.portions(part)
        counts = [
            torch.zeros(len(each.users), judging.data.n_items, dtype=torch.int32, device=each.users.device)
            for each in portions
        ]
        for number, scores in self._noisy(model, judging, part, budget, draw):
            portion, found = portions[number], counts[number]
            scores[portion.excluded] = float("-inf")
            best = scores.topk(min(c.votes, scores.shape[1]), 1)
            found.scatter_add_(1, best.indices, best.values.isfinite().int())
        return Ballot(torch.cat(counts), c.samples, c.votes)

    def _noisy(
        self, model: RecModel, judging: Full, part: str, budget: float, draw: torch.Generator
    ) -> Iterator[tuple[int, Tensor]]:
        """Number of a portion and its scores, for every sample."""
        c = self.config
        if c.noise == "gaussian" and c.surface != "user":
            names = surface(model, c.surface)
            for _ in range(c.samples):
                base = Shifted(model).tensors(names)
                noise = {name: c.sigma * _normal(each, draw) for name, each in base.items()}
                at = Shifted(model, noise)
                for number, batch in enumerate(judging.inputs(model, part)):
                    yield number, at(batch).scores.double()
            return
        at = Shifted(model)
        for number, (portion, batch) in enumerate(
            zip(judging.portions(part), judging.inputs(model, part), strict=True)
        ):
            if c.noise == "gaussian":
                users, items = vectors(at, batch, judging.data.n_items)
                users = users + budget * _away(users, items, portion)
                for _ in range(c.samples):
                    yield number, (users + c.sigma * _normal(users, draw)) @ items.T
            elif c.noise == "flips":
                for scores in self._flipped(model, portion, judging.data.n_items, int(budget), draw):
                    yield number, scores
            else:
                if not model.window:
                    raise RrecError(f"certify.noise={c.noise}: {_name(model)} reads no histories, sasrec does")
                whole_history = judging.history(portion.users, LONGEST, part)
                assert whole_history is not None
                changed = self._changed(whole_history, int(budget), judging.data.n_items, draw)
                for _ in range(c.samples):
                    seen_history = _latest(self._thinned(changed, draw), model.window, judging.data.n_items)
                    yield number, at(replace(batch, history=seen_history)).scores.float().clone()

    def _changed(self, history: History, count: int, n_items: int, draw: torch.Generator) -> History:
        """The empirical attack: the latest events go, are random ones, or are followed by random ones."""
        if not count:
            return history
        items, lengths = history.items, history.lengths
        if self.config.changes == "insert":
            items = torch.nn.functional.pad(items, (0, count), value=n_items)
            lengths = lengths + count
        places = torch.arange(items.shape[1], device=items.device)
        latest = (places >= (lengths - count)[:, None]) & (places < lengths[:, None])
        if self.config.changes == "delete":
            return History(items.masked_fill(latest, n_items), (lengths - count).clamp_min(0))
        drawn = torch.randint(n_items, items.shape, generator=draw).to(items.device)
        return History(torch.where(latest, drawn, items), lengths)

    def _thinned(self, history: History, draw: torch.Generator) -> Tensor:
        """The events that a sample sees, in their places `[B, L]`, −1 elsewhere."""
        c, real = self.config, history.real
        keys = torch.rand(history.items.shape, generator=draw).to(real.device)
        if c.noise == "deletion":
            keep = real & (keys >= c.p_minus)
        else:
            keys = keys.masked_fill(~real, 2.0)
            keep = real & (keys.argsort(1).argsort(1) < c.kept)
        return torch.where(keep, history.items, -1)

    def _flipped(
        self, model: RecModel, portion: Lists, n_items: int, count: int, draw: torch.Generator
    ) -> Iterator[Tensor]:
        owned = model.training_rows
        if owned is None or not model.row_alone:
            why = "reads no 0/1 history" if owned is None else "reads more than the 0/1 history of a user"
            raise RrecError(f"certify.noise=flips: {_name(model)} {why}; take itemknn or ease")
        c = self.config
        has = owned.rows(portion.users).dense(n_items).clamp_max(1).bool()  # [B, n_items]
        for change, old in (("delete", True), ("insert", False)):
            if count and c.changes in (change, "replace"):
                keys = torch.rand(has.shape, generator=draw).to(has.device).masked_fill(has != old, -1)
                best = keys.topk(min(count, n_items), 1)
                has = has.scatter(1, best.indices, torch.where(best.values >= 0, not old, has.gather(1, best.indices)))
        for _ in range(c.samples):
            keys = torch.rand(has.shape, generator=draw).to(has.device)
            sample = torch.where(has, keys >= c.p_minus, keys < c.p_plus)
            rows, columns = sample.nonzero().unbind(1)
            yield model.of_rows(Csr(pointers(rows, len(sample)), columns), None)


LONGEST = 2**31  # events of a history: all of them


def seen(length: int, changed: int, kept: int) -> float:
    """Δ: how likely one of the changed events is among the kept ones."""
    kept = min(kept, length)
    return 1 - comb(max(length - changed, 0), kept) / comb(length, kept)


def regions(added: int, deleted: int, p_plus: float, p_minus: float) -> tuple[Tensor, Tensor]:
    """Probabilities of the regions of constant likelihood ratio before and after, summed from the best for an attacker.

    Of a region i of the added and j of the deleted coordinates are 1. Before the change the former are 0, the latter 1.
    """
    from scipy.stats import binom

    table = []
    for i in range(added + 1):
        for j in range(deleted + 1):
            before = binom.pmf(i, added, p_plus) * binom.pmf(j, deleted, 1 - p_minus)
            after = binom.pmf(i, added, 1 - p_minus) * binom.pmf(j, deleted, p_plus)
            table.append((after / before if before else float("inf"), before, after))
    _, before, after = torch.tensor(sorted(table), dtype=torch.float64).unbind(1)
    return torch.nn.functional.pad(before.cumsum(0), (1, 0)), torch.nn.functional.pad(after.cumsum(0), (1, 0))


def _interpolated(p: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The attacker keeps p where it weighs least afterwards: piecewise linear."""
    index = torch.searchsorted(before, p.contiguous()).clamp(1, len(before) - 1)
    low, width = before[index - 1], before[index] - before[index - 1]
    share = torch.where(width > 0, (p - low) / width, 0.0).clamp(0, 1)
    return after[index - 1] + share * (after[index] - after[index - 1])


def _latest(items: Tensor, window: int, n_items: int) -> History:
    """The last `window` events of rows with −1 for none anywhere, padded on the right."""
    there = items >= 0
    lengths = there.sum(1)
    order = (~there).long().argsort(dim=1, stable=True)  # events first, in their order
    packed = items.gather(1, order)
    size = lengths.clamp_max(window)
    places = torch.arange(max(int(size.max()), 1), device=items.device)
    at = (lengths - size)[:, None] + places
    found = packed.gather(1, at.clamp_max(items.shape[1] - 1)).masked_fill(places >= size[:, None], n_items)
    return History(found, size)


def _away(users: Tensor, items: Tensor, portion: Lists) -> Tensor:
    """Unit steps of the users' vectors from the relevant items to the ten best others `[B, D]`."""
    scores = users @ items.T
    scores[portion.excluded] = float("-inf")
    scores[portion.relevant] = float("-inf")
    rows, columns = portion.relevant
    own = torch.zeros_like(users).index_add(0, rows, items[columns])
    own = own / torch.bincount(rows, minlength=len(users))[:, None]
    others = items[scores.topk(min(10, scores.shape[1]), 1).indices].mean(1)
    return torch.nn.functional.normalize(others - own, dim=1)


def _normal(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw).to(like)


def _name(model: RecModel) -> str:
    return f"model '{type(model).__module__.rpartition('.')[2]}'"
