"""Ranks the candidates of a part of the data with a model at any point, and judges the lists."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.ascent import Attack
from robustbench_rec.batch import Batch
from robustbench_rec.config import Judge
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.losses import Loss
from robustbench_rec.metrics import ranking
from robustbench_rec.model import RecModel
from robustbench_rec.objective import streamed
from robustbench_rec.shifted import Shifted

PROTOCOLS = ("full", "sampled")
PARTS = ("valid", "test")
CELLS = 2**25  # scores held at once: 128 MiB of float32


@dataclass(frozen=True)
class Chunk:
    """Some users of a part and their candidates, as index pairs (row, column) instead of dense matrices."""

    users: Tensor  # [B]
    items: Tensor | None  # [B, C], None for the whole catalogue
    relevant: tuple[Tensor, Tensor]
    excluded: tuple[Tensor, Tensor]
    n_candidates: int

    def batch(self) -> Batch:
        """The same with dense labels and mask, as losses want it."""
        labels = torch.zeros(len(self.users), self.n_candidates, device=self.users.device)
        mask = torch.ones_like(labels, dtype=torch.bool)
        labels[self.relevant], mask[self.excluded] = 1.0, False
        return Batch(self.users, self.items, labels, mask)


@dataclass(frozen=True)
class Result:
    """metrics: means over users, e.g. "ndcg@10". users: indices `[N]`; per_user: each metric of each of them, `[N]`."""

    metrics: dict[str, float]
    users: Tensor
    per_user: dict[str, Tensor]


class Evaluator:
    """Full ranking of the catalogue, or of sampled candidates, for every user with an event in the part.

    full: what a user has in train (and, for test, in valid) is no candidate; everything the user has in the part is
    relevant. sampled: each event of the part is ranked against `n_negatives` items that the user has nowhere, drawn
    once from `seed`; a user's value is the mean over the user's events. Ties are broken against the relevant item.
    Means are over users. Numbers of the two protocols cannot be compared.
    """

    def __init__(self, data: Data, judge: Judge, *, seed: int = 0) -> None:
        if judge.protocol not in PROTOCOLS:
            raise unknown("protocol", judge.protocol, PROTOCOLS)
        if judge.protocol == "sampled" and judge.n_negatives < 1:
            raise RrecError(f"n_negatives={judge.n_negatives}: must be at least 1")
        self.data, self.judge, self.seed = data, judge, seed
        self.n_candidates = data.n_items if judge.protocol == "full" else 1 + judge.n_negatives
        ranking.check(judge.metrics, judge.top_k, self.n_candidates)
        self._parts: dict[str, list[Chunk]] = {}

    def chunks(self, part: str) -> list[Chunk]:
        """The users of a part in portions that fit into memory; built once."""
        if part not in self._parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
            if not len(self.data.part(part)):
                raise RrecError(f"dataset '{self.data.name}' has no {part} events after the split: nothing to evaluate")
            build = self._full if self.judge.protocol == "full" else self._sampled
            self._parts[part] = list(build(part))
        return self._parts[part]

    def batches(self, part: str) -> Iterator[Batch]:
        """The same candidates and labels as dense batches, for attacks."""
        return (chunk.batch() for chunk in self.chunks(part))

    @torch.no_grad()
    def evaluate(self, at: Shifted, part: str, *, metrics: list[str] | None = None) -> Result:
        """Judge the model at `at`, in evaluation mode.

        metrics: names as in the result ("ndcg@10", "auc"); None for all of the config. RrecError when a score is not
        finite.
        """
        names = metrics or self.names()
        with _judged(at.model):
            return self._evaluate(Shifted(at.model, at.delta), part, names)

    def attack(
        self, at: Shifted, attack: Attack, part: str, loss: Loss, on_pass: Callable[[], object] = lambda: None
    ) -> tuple[Shifted, dict[str, float]]:
        """One perturbation for all users of the part, climbing the loss on exactly the candidates that are ranked.

        on_pass: called at each of the `attack.passes` evaluations. Returns the worse point and the budget spent.
        """

        def objective(at: Shifted, batch: Batch) -> Tensor:
            on_pass()
            return streamed(at, self.batches(part), loss)

        with _judged(at.model):
            start, chunks = Shifted(at.model, at.delta), self.chunks(part)
            first = chunks[0].batch()
            if len(chunks) > 1:
                attack.check_shared(start, first, chunks[-1].batch())
            worse, _ = attack(start, first, objective)
            return worse, attack.spent(start, worse, first)

    def names(self) -> list[str]:
        """Every metric of the config, by its name in results."""
        whole = [name for name in self.judge.metrics if name == "auc"]
        top = [name for name in self.judge.metrics if name != "auc"]
        return [f"{name}@{k}" for k in self.judge.top_k for name in top] + whole

    def _evaluate(self, at: Shifted, part: str, names: list[str]) -> Result:
        cut = {name: int(name.partition("@")[2]) for name in names if "@" in name}
        depth = max(cut.values(), default=1)
        users: list[Tensor] = []
        values: dict[str, list[Tensor]] = {name: [] for name in names if not name.startswith("coverage")}
        shown = {k: torch.zeros(self.data.n_items, dtype=torch.bool) for name, k in cut.items() if "coverage" in name}
        for chunk in self.chunks(part):
            scores = at(Batch.unlabelled(chunk.users, chunk.items)).scores.float()  # [B, C]
            scores[chunk.excluded] = float("-inf")
            top, hits, relevant = _ranked(scores, chunk, depth)
            users.append(chunk.users)
            for name, kept in values.items():
                if name == "auc":
                    kept.append(_auc(scores, chunk, relevant))
                else:
                    kept.append(ranking.TOP_K[name.partition("@")[0]](hits[:, : cut[name]], relevant))
            for k, seen in shown.items():
                listed = top[:, :k] if chunk.items is None else chunk.items.gather(1, top[:, :k])
                there = scores.gather(1, top[:, :k]).isfinite()  # a user may have fewer than k candidates
                seen[listed[there].cpu()] = True
        every = torch.cat(users)
        owners, row = torch.unique(every, return_inverse=True)
        counts = torch.bincount(row, minlength=len(owners))
        per_user = {
            name: torch.zeros(len(owners), dtype=torch.float64, device=row.device).index_add(
                0, row, torch.cat(kept).double()
            )
            / counts
            for name, kept in values.items()
        }
        means = {name: per_user[name].nanmean().item() for name in values}
        means |= {f"coverage@{k}": seen.float().mean().item() for k, seen in shown.items()}
        return Result({name: means[name] for name in names}, owners, per_user)

    def _full(self, part: str) -> Iterator[Chunk]:
        data = self.data
        wanted = _lists(data.part(part), data)
        seen = _lists(data.train, data) if part == "valid" else _lists(data.train, data, data.valid)
        users = torch.unique(data.part(part).users)
        for chosen in users.split(max(1, CELLS // data.n_items)):
            relevant, excluded = wanted.of(chosen), seen.of(chosen)
            yield Chunk(chosen, None, relevant, _without(excluded, relevant, data.n_items), data.n_items)

    def _sampled(self, part: str) -> Iterator[Chunk]:
        data, n = self.data, self.judge.n_negatives
        keys = torch.unique(
            torch.cat([each.users * data.n_items + each.items for each in map(data.part, ("train", *PARTS))])
        )
        owned = torch.bincount(keys // data.n_items, minlength=data.n_users)
        users, items = data.part(part).users, data.part(part).items
        free = data.n_items - owned[users]
        if bool((free < n).any()):
            user = data.user_ids[int(users[free.argmin()])]
            raise RrecError(
                f"n_negatives={n}: user '{user}' has only {int(free.min())} items without an event to draw from; "
                "lower n_negatives or use protocol=full"
            )
        generator = torch.Generator().manual_seed(self.seed)
        for rows in torch.arange(len(users)).split(max(1, CELLS // data.n_items)):
            chosen = users[rows]
            weights = torch.rand(len(rows), data.n_items, generator=generator).to(users.device)
            seen = _lists_of_keys(keys, data.n_items, data.n_users).of(chosen)
            weights[seen] = -1.0
            drawn = weights.topk(n, 1).indices  # without replacement
            first = torch.zeros_like(chosen)
            relevant = (torch.arange(len(chosen), device=chosen.device), first)
            nothing = (first[:0], first[:0])
            yield Chunk(chosen, torch.cat([items[rows][:, None], drawn], 1), relevant, nothing, 1 + n)


@contextmanager
def _judged(model: RecModel) -> Iterator[None]:
    """Evaluation mode, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


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


def _lists(part: Interactions, data: Data, *more: Interactions) -> _Lists:
    keys = torch.cat([each.users * data.n_items + each.items for each in (part, *more)])
    return _lists_of_keys(torch.unique(keys), data.n_items, data.n_users)


def _lists_of_keys(keys: Tensor, n_items: int, n_users: int) -> _Lists:
    counts = torch.bincount(keys // n_items, minlength=n_users)
    return _Lists(torch.nn.functional.pad(counts.cumsum(0), (1, 0)), keys % n_items)


def _without(pairs: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Pairs that are not among `other`: an item bought again is a candidate."""
    keep = ~torch.isin(pairs[0] * width + pairs[1], other[0] * width + other[1])
    return pairs[0][keep], pairs[1][keep]


def _ranked(scores: Tensor, chunk: Chunk, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Best columns `[B, depth]`, whether each is relevant, and the number of relevant candidates `[B]`."""
    rows, columns = chunk.relevant
    relevant = torch.zeros(len(scores), dtype=torch.long, device=scores.device).index_add(
        0, rows, torch.ones_like(rows)
    )
    best = scores.topk(min(depth + 1, scores.shape[1]), 1)
    finite = scores[rows, columns].isfinite().all()
    if bool(best.values.isnan().any() | (best.values == float("inf")).any() | ~finite):  # both sort before numbers
        raise RrecError("a score is NaN or infinite: such a model cannot be ranked (lower lr or eps)")
    top = best.indices[:, :depth]
    tied = ((best.values[:, 1:] == best.values[:, :-1]) & best.values[:, 1:].isfinite()).any(1).nonzero().squeeze(1)
    flags = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    flags[rows, columns] = True
    if len(tied):  # among equals, the relevant come last
        order = flags[tied].byte().argsort(dim=1, stable=True)
        again = scores[tied].gather(1, order).sort(dim=1, descending=True, stable=True).indices[:, :depth]
        top[tied] = order.gather(1, again)
    return top, flags.gather(1, top), relevant


def _auc(scores: Tensor, chunk: Chunk, relevant: Tensor) -> Tensor:
    """Share of (relevant, other) candidate pairs in the right order, a tie counting half; NaN without others."""
    rows, columns = chunk.relevant
    order = scores.sort(1).values  # excluded candidates stand first, at -inf
    own = scores[rows, columns]
    keys = order[rows] if len(rows) * scores.shape[1] <= CELLS else None
    low = torch.empty(len(rows), dtype=torch.long, device=scores.device)
    high = torch.empty_like(low)
    for part in torch.arange(len(rows), device=rows.device).split(max(1, CELLS // scores.shape[1])):
        sorted_rows = order[rows[part]] if keys is None else keys[part]
        low[part] = torch.searchsorted(sorted_rows, own[part][:, None]).squeeze(1)
        high[part] = torch.searchsorted(sorted_rows, own[part][:, None], right=True).squeeze(1)
    hidden = torch.bincount(chunk.excluded[0], minlength=len(scores))
    wins = (low + high).double() / 2 - hidden[rows] - 0.5  # candidates below, ties half; itself is one of the ties
    total = torch.zeros(len(scores), dtype=torch.float64, device=scores.device).index_add(0, rows, wins)
    among = relevant * (relevant - 1) / 2  # pairs of relevant items, each counted once whatever their order
    others = scores.shape[1] - hidden - relevant
    return (total - among) / (relevant * others)
