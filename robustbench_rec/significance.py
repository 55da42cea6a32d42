"""What a difference is worth beside chance: paired bootstrap over users, noise of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the two-sided p of its being 0 (NaN: there is nothing to resample)."""

    value: float
    low: float
    high: float
    p: float

    @property
    def above(self) -> bool:
        """Whether it is above 0 beyond chance."""
        return self.low > 0


def estimate(value: float, resampled: Tensor) -> Estimate:
    """Of a value and what it is in bootstrap samples `[R]`; percentile interval."""
    if len(resampled) < 2:
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    tail = min((resampled <= 0).double().mean().item(), (resampled >= 0).double().mean().item())
    return Estimate(value, low, high, min(1.0, max(2 * tail, 1 / len(resampled))))


def resamples(n: int, *, seed: int = 0, size: int = RESAMPLES) -> Tensor:
    """How often each of n users is drawn in each bootstrap sample, float64 `[R, n]`; the same for all that is paired.

    One user cannot be resampled: there are no samples then.
    """
    if n < 2:
        return torch.empty(0, n, dtype=torch.double)
    drawn = torch.randint(n, (size, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(size, n, dtype=torch.double).scatter_add_(1, drawn, torch.ones(size, n, dtype=torch.double))


def means(values: Tensor, weights: Tensor) -> Tensor:
    """Means `[R, E]` of values `[E, N]` under the weights `[R, N]` of users; NaN values do not count."""
    there = (~values.isnan()).double()
    return (weights @ values.double().nan_to_num().T) / (weights @ there.T)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and their standard deviation with n - 1 in the denominator (NaN for one seed)."""

    mean: float
    std: float
    n: int


def over_seeds(values: Sequence[float]) -> Spread:
    """Of one run a seed; seeds without a value do not count."""
    known = torch.tensor([each for each in values if each == each], dtype=torch.double)
    nan = float("nan")
    return Spread(known.mean().item(), known.std().item() if len(known) > 1 else nan, len(known))


def within_noise(one: Spread, other: Spread) -> bool | None:
    """Whether two means differ by less than runs that differ in their seeds alone: √(std² + std²).

    None where one side has a single seed: it is not known.
    """
    if one.n < 2 or other.n < 2:
        return None
    return abs(one.mean - other.mean) <= math.hypot(one.std, other.std)
