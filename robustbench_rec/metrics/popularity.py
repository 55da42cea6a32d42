"""What is recommended rather than how well: popularity and spread of the items in the lists.

lists: int `[B, K]`, the items of each list, best first, -1 past its end. popularity: `[n_items]`, training events of an
item. exposure: `[n_items]`, in how many lists an item stands.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_rec.running import running

HEAD = 0.8
"""Share of the training events that the most popular items, the head, have; the others are the long tail."""

ListMetric = Callable[[Tensor, Tensor], Tensor]
SpreadMetric = Callable[[Tensor], Tensor]


def arp(lists: Tensor, popularity: Tensor) -> Tensor:
    """Average recommendation popularity: mean training events of the items of each list; NaN for an empty one.

    Yin et al., VLDB 2012; Abdollahpouri et al., 2019.
    """
    return _mean(popularity.double(), lists)


def log_arp(lists: Tensor, popularity: Tensor) -> Tensor:
    """Mean ln(1 + training events) of the items of each list, which one blockbuster does not decide."""
    return _mean(popularity.double().log1p(), lists)


def aplt(lists: Tensor, popularity: Tensor) -> Tensor:
    """Average share of long-tail items in each list; NaN for an empty one (Abdollahpouri et al., FLAIRS 2019)."""
    return _mean(tail(popularity).double(), lists)


def tail(popularity: Tensor) -> Tensor:
    """Which items are the long tail, bool `[n_items]`.

    The head is the fewest most popular items that have `HEAD` of the training events together; who is as popular as the
    last of them belongs to it too, so that the order of the items does not matter.
    """
    ordered = popularity.double().sort(descending=True).values
    before = running(ordered, 0) - ordered  # events of the more popular ones
    head = int((before < HEAD * ordered.sum()).sum())
    return popularity < (ordered[head - 1] if head else float("inf"))


def exposure(lists: Tensor, n_items: int) -> Tensor:
    """In how many lists each item stands, int `[n_items]`."""
    return torch.bincount(lists.flatten() + 1, minlength=n_items + 1)[1:]  # -1 where a list ends


def coverage(exposure: Tensor) -> Tensor:
    """Share of the catalogue that is in at least one list."""
    return (exposure > 0).double().mean()


def gini(exposure: Tensor) -> Tensor:
    """Gini coefficient over the whole catalogue: 0 if all items are shown alike, 1 - 1/n_items if one is alone.

    NaN where nothing is shown.
    """
    ordered = exposure.double().sort().values
    n = len(ordered)
    weights = 2 * torch.arange(1, n + 1, device=ordered.device, dtype=torch.double) - n - 1
    return (weights * ordered).sum() / (n * ordered.sum())


def entropy(exposure: Tensor) -> Tensor:
    """Shannon entropy of the exposure in nats, at most ln n_items; NaN where nothing is shown."""
    shares = exposure.double() / exposure.sum()
    found: Tensor = torch.special.xlogy(shares, shares).sum()
    return -found


def pru(rows: Tensor, places: Tensor, popularity: Tensor, n_rows: int) -> Tensor:
    """Popularity-rank correlation of users: minus Spearman's ρ between popularity and place of the relevant items.

    `[n_rows]`. Of the relevant items: rows `[R]` whose they are, places `[R]` among all candidates, popularity `[R]`.
    1 where the more popular stand further up, 0 for no bias; NaN for a user with fewer than two of them or equal ones
    alone. Zhu et al., WSDM 2021.
    """
    first, second = _centred(rows, places, n_rows), _centred(rows, popularity, n_rows)
    both, one, two = (
        first.new_zeros(n_rows).index_add(0, rows, each) for each in (first * second, first * first, second * second)
    )
    return -both / (one * two).sqrt()


def _mean(values: Tensor, lists: Tensor) -> Tensor:
    there = lists >= 0
    found = values[lists.clamp_min(0)] * there
    return found.sum(1) / there.sum(1)


def _centred(rows: Tensor, values: Tensor, n_rows: int) -> Tensor:
    """Mean rank of each value among those of its row, less the row's mean rank; float64 `[R]`. values: from 0."""
    keys = rows * (values.max() + 1) + values if len(rows) else rows  # by row, then by value
    _, group, sizes = keys.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = (sizes.cumsum(0) - (sizes - 1) / 2).double()[group]
    counts = torch.bincount(rows, minlength=n_rows)
    means = ranks.new_zeros(n_rows).index_add(0, rows, ranks) / counts
    return ranks - means[rows]


OF_LISTS: dict[str, ListMetric] = {"aplt": aplt, "arp": arp, "log_arp": log_arp}
OF_ALL: dict[str, SpreadMetric] = {"coverage": coverage, "entropy": entropy, "gini": gini}
