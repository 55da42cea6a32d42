"""The largest scores of a whole catalogue, some times faster than torch's on a CPU."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_rec.traced import plain

Places = tuple[NDArray[np.int64], NDArray[np.int64]]

CROWDED = 8
"""Times as many candidates as are asked for, at most: with more, equal scores are everywhere."""


def largest(scores: Tensor, count: int, *, ordered: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row `[B, n]`, descending, and their columns, both `[B, count]`; as `topk` of torch.

    The peaks of runs of scores, which are quick to find, tell a bound and the few runs that have something above it.
    Among equal scores at the end of a list any may be taken, as there. NaN counts as the largest.
    ordered: the rows in ascending order `[B, n]`, where somebody has them; they tell the bound.
    """
    if not plain(scores):
        columns = _above_a_bound(scores.detach(), count, ordered)
        if columns is not None:
            return scores.gather(1, columns), columns
    found = scores.topk(count, 1)
    return found.values, found.indices


def _above_a_bound(scores: Tensor, count: int, ordered: Tensor | None) -> Tensor | None:
    """None where equal or infinite scores leave too many, or the rows are too short."""
    rows = len(scores)
    if not rows or not count:
        return None
    found = _among_runs(scores, count) if ordered is None else _among_all(scores.numpy(), ordered.numpy(), count)
    if found is None or len(found[0]) > CROWDED * count * rows:
        return None
    owner, columns = found
    counts = np.bincount(owner, minlength=rows)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = scores.numpy()
    table = np.full((rows, int(counts.max())), -np.inf, dtype=values.dtype)
    named = np.zeros(table.shape, dtype=np.int64)
    table[owner, within], named[owner, within] = values[owner, columns], columns
    best = torch.from_numpy(table).sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.from_numpy(named).gather(1, best)


def _among_all(scores: NDArray[Any], ordered: NDArray[Any], count: int) -> Places | None:
    """Rows, in order, and columns of what is not below the last of the largest."""
    bound = ordered[:, -count]
    if not np.isfinite(bound).all() or np.isnan(ordered[:, -1]).any():
        return None
    return _where(scores >= bound[:, None])


def _among_runs(scores: Tensor, count: int) -> Places | None:
    """The same with a bound that is lower."""
    rows, n = scores.shape
    width = 64 if n >= 2**15 else 32  # fewer peaks to sort, or fewer scores to look at
    if n < 2 * count * width:
        return None
    end = n // width * width
    runs = scores[:, :end].unflatten(1, (-1, width))
    peaks = runs.amax(2).numpy()
    ordered = np.sort(peaks, axis=1)
    bound = ordered[:, -count]  # at least `count` scores are not below it
    rest = scores[:, end:].numpy()
    if not np.isfinite(bound).all() or np.isnan(ordered[:, -1]).any() or np.isnan(rest).any():
        return None
    row, run = _where(peaks >= bound[:, None])
    if len(row) > 2 * count * rows:
        return None
    inside, place = _where(runs.numpy()[row, run] >= bound[row, None])
    behind, late = _where(rest >= bound[:, None])
    owner = np.concatenate([row[inside], behind])
    columns = np.concatenate([run[inside] * width + place, late + end])
    order = np.argsort(owner, kind="stable")
    return owner[order], columns[order]


def _where(true: NDArray[np.bool_]) -> Places:
    """Rows and columns; in one dimension numpy finds few among many much faster."""
    row, column = np.divmod(np.flatnonzero(true), max(true.shape[1], 1))
    return row, column
