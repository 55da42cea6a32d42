"""Ranking metrics of a top-K list, one value a user.

hits: bool `[B, K]`, whether the item at each rank is relevant. relevant: int `[B]`, how many relevant items the user
has, at least 1. Definitions are the standard ones; the ideal of NDCG is min(K, relevant) hits at the top, not the best
order of what was retrieved.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.metrics.popularity import OF_ALL, OF_LISTS
from robustbench_rec.running import running

RankingMetric = Callable[[Tensor, Tensor], Tensor]


def hr(hits: Tensor, relevant: Tensor) -> Tensor:
    """Hit rate: 1 if any relevant item is in the list."""
    return hits.any(1).float()


def precision(hits: Tensor, relevant: Tensor) -> Tensor:
    """Share of the K ranks that are relevant."""
    return hits.float().mean(1)


def recall(hits: Tensor, relevant: Tensor) -> Tensor:
    """Share of the relevant items that are in the list."""
    return hits.sum(1) / relevant


def mrr(hits: Tensor, relevant: Tensor) -> Tensor:
    """Reciprocal rank of the first relevant item, 0 if there is none in the list."""
    return (hits.float() / _ranks(hits)).amax(1)


def map(hits: Tensor, relevant: Tensor) -> Tensor:  # noqa: A001 - the metric's name
    """Average precision over the relevant items, normalised by min(K, relevant)."""
    at_hits = hits.cumsum(1) / _ranks(hits) * hits
    return at_hits.sum(1) / relevant.clamp_max(hits.shape[1])


def ndcg(hits: Tensor, relevant: Tensor) -> Tensor:
    """Normalised discounted cumulative gain with binary gains."""
    discounts = 1 / torch.log2(_ranks(hits) + 1)
    ideal = running(discounts, 0)[relevant.clamp_max(hits.shape[1]) - 1]
    return (hits * discounts).sum(1) / ideal


TOP_K: dict[str, RankingMetric] = {
    "hr": hr,
    "map": map,
    "mrr": mrr,
    "ndcg": ndcg,
    "precision": precision,
    "recall": recall,
}
WHOLE = ("auc", "pru")
"""Metrics over all candidates of a user, not of a list."""
NEUTRAL = frozenset({*OF_LISTS, *OF_ALL, "pru"} - {"coverage"})
"""Of which neither more nor less is better: they say what is recommended, not how well."""
KNOWN = (*TOP_K, *OF_LISTS, *OF_ALL, *WHOLE)


def check(names: Iterable[str], top_k: list[int], n_candidates: int) -> None:
    """RrecError for an unknown metric, no K at all or one that is not between 1 and the number of candidates."""
    for name in names:
        if name not in KNOWN:
            raise unknown("metric", name, KNOWN)
    if not top_k:
        raise RrecError("top_k=[]: at least one K is needed, as top_k=[10]")
    for k in top_k:
        if not 1 <= k <= n_candidates:
            told = f"K must be between 1 and the {n_candidates} candidates of a list"
            raise RrecError(f"top_k={k}: {told}, as top_k=[{min(10, n_candidates)}]")


def neutral(name: str) -> bool:
    """Whether a metric, named as in results ("arp@10"), is no quality."""
    return name.partition("@")[0] in NEUTRAL


def auc(below: Tensor, equal: Tensor, relevant: Tensor, others: Tensor, rows: Tensor) -> Tensor:
    """Share of (relevant, other) pairs of candidates in the right order, a tie counting half; NaN without others.

    `[B]`. Of each relevant candidate, rows `[R]` of the users: how many candidates stand below and how many have its
    score, it among them, both `[R]`. others: candidates that are not relevant `[B]`.
    """
    wins = below.double() + (equal - 1) / 2
    total = wins.new_zeros(len(relevant)).index_add(0, rows, wins)
    among = relevant * (relevant - 1) / 2  # pairs of relevant items, each counted once whatever their order
    return (total - among) / (relevant * others)


def _ranks(hits: Tensor) -> Tensor:
    return torch.arange(1, hits.shape[1] + 1, device=hits.device)
