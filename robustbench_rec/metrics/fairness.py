"""How evenly quality and exposure are shared out.

values: a metric of each user `[N]`, NaN where it is not defined. groups: the group of each, `[N]`, -1 for none.
"""

import torch
from torch import Tensor

WORST = 0.1
"""Share of the users that CVaR is about."""


def by_group(values: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Mean of each group `[G]`, NaN for an empty one, and how many users it is a mean of `[G]`."""
    counted = (groups >= 0) & ~values.isnan()
    index, nothing = groups.clamp_min(0), values.new_zeros(n_groups, dtype=torch.double)
    total = nothing.index_add(0, index, values.double().nan_to_num() * counted)
    count = nothing.index_add(0, index, counted.double())
    return total / count, count.long()


def gap(means: Tensor) -> Tensor:
    """Largest minus smallest mean among groups `[G]`, those without a value left out; NaN for fewer than two."""
    return _several(means, _most(means) - _least(means))


def ratio(means: Tensor) -> Tensor:
    """Smallest over largest mean among groups `[G]`: 1 is even; NaN where all are 0, and for fewer than two."""
    return _several(means, _least(means) / _most(means))


def worst(means: Tensor, *, smaller: bool = False) -> Tensor:
    """The mean `[G]` of the group that is served worst; NaN where none has one. smaller: whether less is better."""
    return _most(means) if smaller else _least(means)


def cvar(values: Tensor, share: float = WORST) -> Tensor:
    """Mean over the ⌈share · N⌉ users with the smallest values (conditional value at risk)."""
    known = values[~values.isnan()].double()
    count = -int(-len(known) * share // 1)  # ⌈ ⌉
    return known.sort().values[:count].mean()


def spread(values: Tensor) -> Tensor:
    """Standard deviation over users, with N in the denominator."""
    return values[~values.isnan()].double().std(correction=0)


def parity(exposure: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Demographic parity of exposure: |share of the exposure - share of the catalogue| of each item group `[G]`.

    exposure: `[n_items]`, groups: `[n_items]`; shares are those among the items that have a group.
    """
    kept = groups >= 0
    shown = torch.zeros(n_groups, dtype=torch.double, device=groups.device)
    shown = shown.index_add(0, groups[kept], exposure[kept].double())
    size = torch.bincount(groups[kept], minlength=n_groups).double()
    return (shown / shown.sum() - size / size.sum()).abs()


def true_positive_rates(hit: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """Share of the relevant (user, item) pairs `[R]` of each group that are in the list `[G]`; NaN without any.

    Equal opportunity is the `gap` between them.
    """
    return by_group(hit.double(), groups, n_groups)[0]


def _several(means: Tensor, value: Tensor) -> Tensor:
    return value.masked_fill((~means.isnan()).sum() < 2, float("nan"))


def _least(means: Tensor) -> Tensor:
    found = means.masked_fill(means.isnan(), float("inf")).amin()
    return found.masked_fill(found.isinf(), float("nan"))


def _most(means: Tensor) -> Tensor:
    found = means.masked_fill(means.isnan(), float("-inf")).amax()
    return found.masked_fill(found.isinf(), float("nan"))
