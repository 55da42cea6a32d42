"""How alike two lists of the same user are, before and after something: one value a list.

before, after: int `[B, K]`, the items of each list, best first, none twice, -1 past its end. NaN where both are empty.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from robustbench_rec.running import running

PERSISTENCE = 0.9
"""p of RBO: the weight of a place is p times that of the one above."""
ROWS = 2**24  # cells of pairs of places compared at once

Stability = Callable[[Tensor, Tensor], Tensor]


def jaccard(before: Tensor, after: Tensor) -> Tensor:
    """Items in both lists as a share of those in either."""
    common = _equal(before, after).sum((1, 2)).double()
    return common / (_length(before) + _length(after) - common)


def rbo(before: Tensor, after: Tensor, p: float = PERSISTENCE) -> Tensor:
    """Rank-biased overlap up to the end of the longer list: (1 - p) Σ_d p^(d-1) A_d, A_d the overlap at depth d over d.

    1 - p^K for equal lists of K items. Webber et al., TOIS 2010, truncated.
    """
    depth = torch.arange(1, before.shape[1] + 1, device=before.device)
    longest = torch.maximum(_length(before), _length(after))[:, None]
    equal = _equal(before, after)
    deeper = torch.maximum(depth[:, None], depth[None, :]).flatten() - 1  # the depth from which a pair is in both
    found = torch.zeros(before.shape, dtype=torch.double, device=before.device)
    overlap = running(found.index_add(1, deeper, equal.flatten(1).double()), 1)  # [B, K]
    weights = (1 - p) * p ** (depth - 1).double() / depth
    return (overlap * weights * (depth <= longest)).sum(1).masked_fill(longest[:, 0] == 0, float("nan"))


def frbo(before: Tensor, after: Tensor, p: float = PERSISTENCE) -> Tensor:
    """RBO over what equal lists have, 1 - p^K: 1 for equal lists, 0 for disjoint ones."""
    longest = torch.maximum(_length(before), _length(after)).double()
    return rbo(before, after, p) / (1 - p**longest)


def kendall(before: Tensor, after: Tensor) -> Tensor:
    """Kendall's τ-b over the items of either list, those that one lacks tied at place K + 1 of it.

    1 for equal lists, also of a single item, where τ is not defined.
    """
    size = max(1, ROWS // (4 * before.shape[1] ** 2))
    pieces = zip(before.split(size), after.split(size), strict=True)
    return torch.cat([_kendall(one, two) for one, two in pieces])


def top1(before: Tensor, after: Tensor) -> Tensor:
    """1 where the first item is the same."""
    both = (before[:, 0] == after[:, 0]).double()
    return both.masked_fill((before[:, 0] < 0) & (after[:, 0] < 0), float("nan"))


def _kendall(before: Tensor, after: Tensor) -> Tensor:
    k = before.shape[1]
    places = torch.arange(1, k + 1, device=before.device).expand_as(before)
    equal = _equal(before, after)
    end = torch.full_like(places, k + 1)
    there = equal.any(2), equal.any(1)
    other = end.where(~there[0], equal.byte().argmax(2) + 1)  # where an item of `before` stands in `after`
    first = torch.cat([places, end], 1)  # [B, 2K]: the items of `before`, then those of `after` alone
    second = torch.cat([other, places], 1)
    counted = torch.cat([before >= 0, (after >= 0) & ~there[1]], 1)
    both = counted[:, :, None] & counted[:, None, :]
    one = (first[:, :, None] - first[:, None, :]).sign() * both
    two = (second[:, :, None] - second[:, None, :]).sign() * both
    found = (one * two).sum((1, 2)) / (one.abs().sum((1, 2)).double() * two.abs().sum((1, 2))).sqrt()
    same = (before == after).all(1)
    return found.masked_fill(same, 1.0).masked_fill(~counted.any(1), float("nan"))


def _equal(before: Tensor, after: Tensor) -> Tensor:
    """Which places hold the same item, bool `[B, K, K]`."""
    return (before[:, :, None] == after[:, None, :]) & (before[:, :, None] >= 0)


def _length(lists: Tensor) -> Tensor:
    return (lists >= 0).sum(1)


STABILITY: dict[str, Stability] = {"frbo": frbo, "jaccard": jaccard, "kendall": kendall}
"""By name, for the first K places."""
