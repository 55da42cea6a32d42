"""Ranks the candidates of every user and judges the lists."""

from abc import abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_rec import aims
from robustbench_rec.batch import Batch
from robustbench_rec.config import Judge
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.base import PARTS, Evaluator, Moved, Portion, Result, Shown, together
from robustbench_rec.goal import Goal
from robustbench_rec.largest import largest
from robustbench_rec.losses import CUT, Loss
from robustbench_rec.metrics import popularity, ranking
from robustbench_rec.shifted import Shifted

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lists(Portion):
    """Relevant and excluded candidates as index pairs (row, column), not as dense matrices."""

    relevant: Pairs
    excluded: Pairs


class Ranking(Evaluator[Lists]):
    """Lists of the best candidates. Ties are broken against the relevant item; means are over users."""

    metrics: ClassVar[tuple[str, ...]] = (
        *("ndcg", "recall", "precision", "hr", "mrr", "map", "auc"),
        *("coverage", "gini", "entropy", "arp", "aplt"),
    )
    monitor: ClassVar[str] = "ndcg@10"
    neutral: ClassVar[frozenset[str]] = ranking.NEUTRAL
    losses: ClassVar[tuple[str, ...]] = ("margin", "softmax", "bce", "topk", "dlr")
    ensemble: ClassVar[tuple[str, ...]] = ("softmax", "dlr", "margin")

    def __init__(self, data: Data, judge: Judge, *, seed: int = 0, alone: bool = False) -> None:
        super().__init__(data, judge, seed=seed, alone=alone)
        ranking.check(judge.metrics or self.metrics, judge.top_k, self.n_candidates)

    @property
    @abstractmethod
    def n_candidates(self) -> int:
        """Of each list."""

    def climbed(self, name: str | None, goal: Goal | None = None, *, part: str = "test") -> Loss:
        if goal is not None and (name or (goal.losses or self.losses)[0]) in (*CUT, *aims.CUT):
            most = self.n_candidates - 1  # behind the cut of a list there must be something
            if not 1 <= goal.k <= most:
                raise RrecError(f"goal.k={goal.k}: between 1 and {most}, one less than the candidates of a list")
        return super().climbed(name, goal, part=part)

    def label(self, portion: Lists, batch: Batch) -> Batch:
        labels = torch.zeros(len(portion.users), self.n_candidates, device=portion.users.device)
        mask = torch.ones_like(labels, dtype=torch.bool)
        labels[portion.relevant], mask[portion.excluded] = 1.0, False
        return replace(batch, labels=labels, mask=mask)

    def names(self) -> list[str]:
        chosen = self.judge.metrics or self.metrics
        whole = [name for name in chosen if name in ranking.WHOLE]
        return [f"{name}@{k}" for k in self.judge.top_k for name in chosen if name not in whole] + whole

    def known(self, part: str) -> Tensor:
        """Keys of what users had before a part, whatever a noise put there or took away, in order."""
        before = [self.data.taught, *([] if part == "valid" else [self.data.valid])]
        return _noiseless(self.data, before)

    def wanted(self, part: str) -> Interactions:
        """The relevant events of a part: without `seen` those of items that their users did not have before."""
        liked = self.data.part(part).liked()
        if not len(liked):
            raise RrecError(f"{part}: none of its events has label 1, there is nothing to find")
        if self.judge.seen:
            return liked
        new = liked.where(~torch.isin(liked.users * self.data.n_items + liked.items, self.known(part)))
        if not len(new):
            raise RrecError(f"{part}: its users had all of its items before, and seen=false leaves none to find")
        return new

    @cached_property
    def popularity(self) -> Tensor:
        """Training events of each item `[n_items]`, those of fake users left out."""
        return torch.bincount(self.data.clicks().items, minlength=self.data.n_items)

    def measure(self, scores: Iterator[Tensor], portions: list[Lists], names: list[str]) -> Result:
        cut = {name: int(name.partition("@")[2]) for name in names if "@" in name}
        depth = max(cut.values(), default=max(self.judge.top_k))  # others read the lists too
        lists: list[tuple[Tensor, ...]] = []
        values: dict[str, list[Tensor]] = {name: [] for name in names if name in ranking.WHOLE}
        for chunk, found in zip(portions, scores, strict=True):
            found[chunk.excluded] = float("-inf")
            order = _ordered(found) if values else None
            lists.append((chunk.users, *_ranked(found, chunk, depth, order)))
            if order is not None:
                for name, each in self._whole(values, found, order, chunk, lists[-1][-1]).items():
                    values[name].append(each)
        users, items, best, hits, relevant = (torch.cat(each) for each in zip(*lists, strict=True))
        shown = Shown(users, items, best, hits)
        per_list = {name: torch.cat(each) for name, each in values.items()}
        means: dict[str, float] = {}
        depths = {k for name, k in cut.items() if name.partition("@")[0] in popularity.OF_ALL}
        exposure = {k: popularity.exposure(items[:, :k], self.data.n_items) for k in depths}
        for name, k in cut.items():
            kind = name.partition("@")[0]
            if kind in ranking.TOP_K:
                per_list[name] = ranking.TOP_K[kind](hits[:, :k], relevant)
            elif kind in popularity.OF_LISTS:
                per_list[name] = popularity.OF_LISTS[kind](items[:, :k], self.popularity)
            else:
                means[name] = popularity.OF_ALL[kind](exposure[k]).item()
        owners, per_user = means_by_user(users, per_list)
        if per_user:
            means |= dict(zip(per_user, torch.stack(list(per_user.values())).nanmean(1).tolist(), strict=True))
        ordered = {name: per_user[name] for name in names if name in per_user}
        return Result({name: means[name] for name in names}, owners, ordered, shown=shown)

    def _whole(
        self, wanted: Container[str], scores: Tensor, order: Tensor, chunk: Lists, relevant: Tensor
    ) -> dict[str, Tensor]:
        """Those of `ranking.WHOLE` that are wanted `[B]`. scores: -inf for what is excluded; order: the same sorted."""
        found: dict[str, Tensor] = {}
        rows, columns = chunk.relevant
        hidden = torch.bincount(chunk.excluded[0], minlength=len(scores))
        low, high = _bounds(order, rows, scores[rows, columns])
        if "auc" in wanted:
            others = scores.shape[1] - hidden - relevant
            found["auc"] = ranking.auc(low - hidden[rows], high - low, relevant, others, rows)
        if "pru" in wanted:
            items = columns if chunk.items is None else chunk.items[rows, columns]
            found["pru"] = popularity.pru(rows, scores.shape[1] - low, self.popularity[items], len(scores))
        return found


class Full(Ranking):
    """Full ranking of the catalogue, for every user with something relevant in the part.

    What a user has in train (and, for test, in valid), or had there before a noise, is neither a candidate nor relevant
    unless `seen` is set: the only known item among unknown ones would give itself away.
    """

    @property
    def n_candidates(self) -> int:
        return self.data.n_items

    def split(self, part: str) -> Iterator[Lists]:
        data, known = self.data, self.known(part)
        relevant, had = (
            _lists_of_keys(each, data.n_items, data.n_users)
            for each in (_keys(data, self.wanted(part)), known[:0] if self.judge.seen else known)
        )
        users = torch.unique(self.wanted(part).users)
        for chosen in users.split(1 if self.alone else together(data.n_items)):
            yield Lists(chosen, None, None, relevant.of(chosen), had.of(chosen))

    @torch.no_grad()
    def exposure(
        self, at: Shifted | Moved, part: str, targets: Tensor, *, top_k: Sequence[int] | None = None
    ) -> Result:
        """How far up target items `[T]` stand in the lists of those who do not have them yet.

        t_hr@k: share of the users with a target in the first k, mean over the targets; t_ndcg@k; t_rank: the place,
        from 1; t_score. Users are those of the part; who has the target in train or in the part, liked or not, is not
        counted for it. per_user: means over the targets, NaN for a user who has them all. Ties are broken against the
        target.
        """
        portions, values = self.portions(part), []
        owned = torch.cat([self.known(part), _keys(self.data, self.data.part(part))])
        with self.judged(at, part) as scores:
            for chunk, found in zip(portions, scores, strict=True):
                found[chunk.excluded] = float("-inf")
                own = found[:, targets]  # [B, T]
                rank = torch.stack([(found >= each[:, None]).sum(1) for each in own.T], 1).double()
                counted = ~torch.isin(chunk.users[:, None] * self.data.n_items + targets, owned)
                values.append(torch.stack([rank, own.double()]).masked_fill(~counted, float("nan")))
        rank, score = torch.cat(values, 1)
        measured = {}
        for k in top_k or self.judge.top_k:
            measured[f"t_hr@{k}"] = (rank <= k).double()
            measured[f"t_ndcg@{k}"] = (rank <= k) / (1 + rank).log2()
        measured = {name: each.masked_fill(rank.isnan(), float("nan")) for name, each in measured.items()}
        measured |= {"t_rank": rank, "t_score": score}
        users = torch.cat([each.users for each in portions])
        return Result(
            {name: over_targets(each) for name, each in measured.items()},
            users,
            {name: each.nanmean(1) for name, each in measured.items()},
            pairs=measured,
        )


class Sampled(Ranking):
    """Ranking of each event against `n_negatives` (99) items that its user has nowhere, drawn once.

    A user's value is the mean over the user's events. Numbers cannot be compared with those of full ranking. An event
    of an item that the user had before is left out, unless `seen` is set: the others may be known items then.
    """

    draws: ClassVar[bool] = True

    def __init__(self, data: Data, judge: Judge, *, seed: int = 0, alone: bool = False) -> None:
        self.n = 99 if judge.n_negatives is None else judge.n_negatives
        if self.n < 1:
            raise RrecError(f"n_negatives={self.n}: must be at least 1")
        if "pru" in (judge.metrics or ()):
            raise RrecError("metric pru compares the relevant items of a list; protocol=sampled has one in each")
        super().__init__(data, judge, seed=seed, alone=alone)

    @property
    def n_candidates(self) -> int:
        return 1 + self.n

    def split(self, part: str) -> Iterator[Lists]:
        data, n = self.data, self.n
        if self.judge.seen:
            keys = _keys(data, data.part(part))
        else:
            keys = _noiseless(data, [data.taught, *(data.part(each) for each in PARTS)])
        owned = torch.bincount(keys // data.n_items, minlength=data.n_users)
        wanted = self.wanted(part)
        users, items = wanted.users, wanted.items
        free = data.n_items - owned[users]
        if bool((free < n).any()):
            user = data.user_ids[int(users[free.argmin()])]
            raise RrecError(
                f"n_negatives={n}: user '{user}' has only {int(free.min())} items to draw from; "
                "lower n_negatives or use protocol=full"
            )
        generator = torch.Generator().manual_seed(self.seed)
        for rows in torch.arange(len(users)).split(1 if self.alone else together(data.n_items)):
            chosen = users[rows]
            weights = torch.rand(len(rows), data.n_items, generator=generator).to(users.device)
            seen = _lists_of_keys(keys, data.n_items, data.n_users).of(chosen)
            weights[seen] = -1.0
            drawn = weights.topk(n, 1).indices  # without replacement
            first = torch.zeros_like(chosen)
            relevant = (torch.arange(len(chosen), device=chosen.device), first)
            nothing = (first[:0], first[:0])
            candidates = torch.cat([items[rows][:, None], drawn], 1)
            yield Lists(chosen, candidates, _rows(wanted.context, rows), relevant, nothing)


@dataclass(frozen=True)
class _Lists:
    """Sorted item lists of all users as one array with pointers."""

    pointers: Tensor  # [n_users + 1]
    items: Tensor

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(row, item) pairs of the given users, row counted within them."""
        sizes = self.pointers[users + 1] - self.pointers[users]
        rows = torch.repeat_interleave(torch.arange(len(users), device=users.device), sizes)
        within = torch.arange(len(rows), device=users.device) - (sizes.cumsum(0) - sizes)[rows]
        return rows, self.items[self.pointers[users][rows] + within]


def _rows(table: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if table is None else table[rows]


def _keys(data: Data, *parts: Interactions) -> Tensor:
    """User and item of each event as one number, sorted, each once."""
    keys: Tensor = torch.unique(torch.cat([each.users * data.n_items + each.items for each in parts]))
    return keys


def _noiseless(data: Data, parts: list[Interactions]) -> Tensor:
    """`_keys` with what a noise hid."""
    return _keys(data, *parts, *([] if data.hidden is None else [data.hidden]))


def _lists_of_keys(keys: Tensor, n_items: int, n_users: int) -> _Lists:
    counts = torch.bincount(keys // n_items, minlength=n_users)
    return _Lists(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), keys % n_items)


def over_targets(values: Tensor) -> float:
    """Mean over targets of the mean over users, of `[N, T]`; NaN does not count."""
    return values.nanmean(0).nanmean().item()


def means_by_user(users: Tensor, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Who there is `[N]`, in order, and the mean of each user's values `[R]`: `[N]`."""
    owners, row, counts = torch.unique(users, return_inverse=True, return_counts=True)
    if not values:
        return owners, {}
    table = torch.stack([each.double() for each in values.values()])  # [M, R]
    if len(owners) == len(users):  # one list a user, as always in full ranking
        found = table[:, row.argsort()]
    else:
        found = torch.stack([each.new_zeros(len(owners)).index_add(0, row, each) for each in table]) / counts
    return owners, dict(zip(values, found, strict=True))


def _ranked(scores: Tensor, chunk: Lists, depth: int, order: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Best items, their scores, whether each is relevant, all `[B, depth]`, and the number of relevant items `[B]`.

    order: the scores with each row in ascending order, where somebody wants them so.
    Where there are fewer candidates than that the items are -1 and their scores -inf.
    """
    rows, columns = chunk.relevant
    relevant = torch.zeros(len(scores), dtype=torch.long, device=scores.device).index_add(
        0, rows, torch.ones_like(rows)
    )
    best, places = largest(scores, min(depth + 1, scores.shape[1]), ordered=order)
    finite = scores[rows, columns].isfinite().all()
    if bool(best.isnan().any() | (best == float("inf")).any() | ~finite):  # both sort before numbers
        raise RrecError("a score is NaN or infinite: such a model cannot be ranked (lower lr or eps)")
    top, values = places[:, :depth], best[:, :depth]
    tied = ((best[:, 1:] == best[:, :-1]) & best[:, 1:].isfinite()).any(1).nonzero().squeeze(1)
    flags = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    flags[rows, columns] = True
    if len(tied):  # among equals, the relevant come last
        order = flags[tied].byte().argsort(dim=1, stable=True)
        again = scores[tied].gather(1, order).sort(dim=1, descending=True, stable=True).indices[:, :depth]
        top[tied] = order.gather(1, again)
    items = top if chunk.items is None else chunk.items.gather(1, top)
    return items.masked_fill(values.isinf(), -1), values, flags.gather(1, top), relevant


def _ordered(scores: Tensor) -> Tensor:
    """Rows `[B, C]` in ascending order: numpy's sort is many times faster than torch's on a CPU."""
    if scores.device.type == "cpu":
        ordered = scores.clone()
        parts = np.array_split(ordered.numpy(), torch.get_num_threads())
        with ThreadPoolExecutor(len(parts)) as pool:  # numpy sorts in one thread, but lets others run beside it
            list(pool.map(partial(np.ndarray.sort, axis=1), parts))
        return ordered
    return scores.sort(1).values


def _bounds(order: Tensor, rows: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Of scores `[R]` of the given rows: how many in the sorted row `[B, C]` are smaller, and how many not larger."""
    low = _count(order, rows, own, torch.lt)
    after = order[rows, (low + 1).clamp_max(order.shape[1] - 1)]
    tied = bool(((after == own) & (low + 1 < order.shape[1])).any())
    return low, _count(order, rows, own, torch.le) if tied else low + 1


def _count(order: Tensor, rows: Tensor, own: Tensor, before: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How many of the sorted row stand before each, all found by one binary search side by side."""
    flat, start = order.flatten(), rows * order.shape[1]
    at, size = start, order.shape[1]
    while size > 1:
        half = size // 2
        at = at.add(before(flat.take(at + (half - 1)), own), alpha=half)
        size -= half
    return at - start + before(flat.take(at), own)
