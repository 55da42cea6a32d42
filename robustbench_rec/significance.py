"""What a difference is worth beside chance: paired bootstrap over users, families of tests, noise of seeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.05
"""A p below it is no chance."""
CHANCE = "may be chance"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and the two-sided p of its being 0 (NaN: there is nothing to resample)."""

    value: float
    low: float
    high: float
    p: float


def estimate(value: float, resampled: Tensor) -> Estimate:
    """Of a value and what it is in bootstrap samples `[R]`, those without a value left out; percentile interval."""
    resampled = resampled[~resampled.isnan()]
    if len(resampled) < 2 or math.isnan(value):
        return Estimate(value, float("nan"), float("nan"), float("nan"))
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=resampled.dtype)).tolist()
    tail = min((resampled <= 0).double().mean().item(), (resampled >= 0).double().mean().item())
    return Estimate(value, low, high, min(1.0, max(2 * tail, 1 / len(resampled))))


def resamples(n: int, *, seed: int = 0, size: int = RESAMPLES) -> Iterator[Tensor]:
    """How often each of n users is drawn in each bootstrap sample, float64 `[R, n]`, some samples at a time.

    They are the same for all that is paired. One user cannot be resampled: there are no samples then.
    """
    if n < 2:
        return
    generator, at_once = torch.Generator().manual_seed(seed), max(1, 2**24 // n)
    for first in range(0, size, at_once):
        shape = (min(at_once, size - first), n)
        drawn = torch.randint(n, shape, generator=generator)
        ones = torch.ones(shape, dtype=torch.double)
        yield torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def means(values: Tensor, weights: Tensor) -> Tensor:
    """Means `[R, E]` of values `[E, N]` under the weights `[R, N]` of users; NaN values do not count."""
    there = (~values.isnan()).double()
    return (weights @ values.double().nan_to_num().T) / (weights @ there.T)


@dataclass(frozen=True)
class Comparison:
    """A paired difference, ours less theirs.

    difference: its mean over users. d: it over the pooled standard deviation of the users (Cohen's d). dz: over the
    standard deviation of the users' differences. NaN where that is 0.
    """

    difference: Estimate
    d: float
    dz: float


def paired(ours: Tensor, theirs: Tensor, *, seed: int = 0, size: int = RESAMPLES) -> list[Comparison]:
    """Of the same users' metrics `[M, N]`; a user without a value on one side does not count for that metric.

    The bootstrap samples of users are the same for all metrics.
    """
    ours, theirs = ours.double(), theirs.double()
    differences = ours - theirs
    there = ~differences.isnan()
    ours, theirs = (each.masked_fill(~there, float("nan")) for each in (ours, theirs))
    drawn = bootstrap(differences, seed=seed, size=size)  # [R, M]
    effects = zip(*(each.tolist() for each in _effects(ours, theirs)), strict=True)
    values = differences.nanmean(1).tolist()
    return [
        Comparison(estimate(value, drawn[:, index]), *effect)
        for index, (value, effect) in enumerate(zip(values, effects, strict=True))
    ]


def paired_events(
    ours: Tensor, theirs: Tensor, users: Tensor, *, seed: int = 0, size: int = RESAMPLES
) -> list[Comparison]:
    """The same of metrics that are means over events `[M, E]`; users `[E]` are drawn with all their events.

    Effect sizes are those of the users' means.
    """
    _, row, counts = users.unique(return_inverse=True, return_counts=True)
    nothing = torch.zeros(len(ours), len(counts), dtype=torch.double)
    one, two = (nothing.index_add(1, row, each.double()) for each in (ours, theirs))
    drawn = bootstrap(torch.cat([one - two, counts[None].double()]), seed=seed, size=size)
    effects = zip(*(each.tolist() for each in _effects(one / counts, two / counts)), strict=True)
    values = (ours.double() - theirs.double()).mean(1).tolist()
    return [
        Comparison(estimate(value, drawn[:, index] / drawn[:, -1]), *effect)
        for index, (value, effect) in enumerate(zip(values, effects, strict=True))
    ]


def bootstrap(values: Tensor, *, seed: int = 0, size: int = RESAMPLES) -> Tensor:
    """Means `[R, M]` of values `[M, N]` in bootstrap samples of the users."""
    parts = [means(values, each) for each in resamples(values.shape[1], seed=seed, size=size)]
    return torch.cat([values.new_empty(0, len(values), dtype=torch.double), *parts])


def enough(family: int) -> int:
    """So many bootstrap samples that the smallest p that they can tell is no chance after Holm over so many tests."""
    return max(RESAMPLES, round(2 * family / LEVEL))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for being a family, step down (Holm, 1979); NaN stays NaN and is not counted."""
    values = torch.tensor(p, dtype=torch.double)
    known = (~values.isnan()).nonzero().squeeze(1)
    ordered, order = values[known].sort()
    factors = torch.arange(len(known), 0, -1, dtype=torch.double)
    if len(known):
        values[known[order]] = (ordered * factors).cummax(0).values.clamp_max(1)
    found: list[float] = values.tolist()
    return found


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


def worth(difference: float, word: str, *, noise: bool | None, chance: bool | None) -> str:
    """What a difference is worth, in words: `word` where it is beyond chance among users and beyond seed noise.

    noise: whether it is within that of seeds; None for one seed. chance: whether it may be that of users; None where
    their values are not there.
    """
    if difference == 0:
        return "the same"
    if noise:
        return "within seed noise"
    if chance is None:
        return "unknown: one seed" if noise is None else word
    if chance:
        return CHANCE
    return f"{word}, one seed" if noise is None else word


def _effects(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """d and dz `[M]` of `[M, N]`."""
    value = (ours - theirs).nanmean(1)
    pooled, own = ((_variance(ours) + _variance(theirs)) / 2).sqrt(), _variance(ours - theirs).sqrt()
    d, dz = (torch.where(each > 0, value / each, float("nan")) for each in (pooled, own))
    return d, dz


def _variance(values: Tensor) -> Tensor:
    """Of `[M, N]` over N, n - 1 in the denominator, NaN values left out."""
    n = (~values.isnan()).sum(1)
    centred = (values - values.nanmean(1, keepdim=True)).nan_to_num()
    return centred.square().sum(1) / (n - 1)
