"""Rows of tables and the dot products of pairs of rows, with gradients as fast as a CPU allows.

A batch names few different rows, each several times. Sorting the names once makes the gradient of a table a sum over
runs, which is cheaper than scattering, never writes a row twice, and is the same on every run.
"""

import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustbench_rec.batch import Batch, History
from robustbench_rec.traced import plain

ROWS_ONLY = "rows_only"

with warnings.catch_warnings():  # torch says once a process that CSR is in beta: let it be now, not in every call
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


def rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table `[n, D]` for an index of any shape `[…]`: `[…, D]`."""
    if plain(table):
        return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])
    found: Tensor = _Rows.apply(table, index)  # type: ignore[no-untyped-call]
    return found


def pairs(left: Tensor, index: Tensor | None, right: Tensor, candidates: Tensor) -> Tensor:
    """Dot products of row index[b] of `left` `[n, D]` with rows candidates[b] `[B, C]` of `right` `[m, D]`: `[B, C]`.

    index: None where the rows of `left` are those of the batch. It is fastest in ascending order.
    """
    crowded = candidates.numel() > len(left) * len(right)  # more places than a sparse matrix has
    if plain(left) or plain(right) or crowded:
        chosen = left if index is None else rows(left, index)
        return (chosen[:, None] * rows(right, candidates)).sum(2)
    if index is not None and not _ascending(index):
        order = index.argsort()
        return pairs(left, index[order], right, candidates[order])[order.argsort()]
    found: Tensor = _Pairs.apply(left, index, right, candidates.contiguous())  # type: ignore[no-untyped-call]
    return found


def half_square(table: Tensor, index: Tensor) -> Tensor:
    """½‖·‖² of the rows that an index names, summed over the index."""
    if plain(table):
        return 0.5 * rows(table, index).square().sum()
    found: Tensor = _HalfSquare.apply(table, index)  # type: ignore[no-untyped-call]
    return found


def touched(batch: Batch, users: Tensor, items: Tensor, first: int = 0) -> Tensor:
    """½‖·‖² of the vectors of a training batch, summed over its events; items begin at row `first` of theirs."""
    named = batch.items if batch.targets is None else batch.targets
    assert named is not None
    return half_square(users, batch.users) + half_square(items, named + first if first else named)


def rows_only(table: Tensor) -> None:
    """From now on the gradient of `table` is sparse: the rows of a batch alone, for optimisers that know it."""
    setattr(table, ROWS_ONLY, True)


class Events(nn.Module):
    """Rows of an item table `[n_items, D]` for the events of a history `[B, L, D]`, 0 where there is none.

    A module, so that an attack can see what a model reads of a history, and the gradient there.
    """

    def forward(self, table: Tensor, history: History) -> Tensor:
        found = rows(table, history.items.clamp_max(len(table) - 1))
        return found * history.real[..., None]


class _Runs:
    """The places of an index `[…]` by the row that they name, for every row of a table or for every row named.

    order: `[N]`, places sorted by row. ends: where each run begins in it, and the end of the last. named: the rows that
    have a run, ascending; None where all have.
    """

    def __init__(self, index: Tensor, n: int, sparse: bool) -> None:
        flat = index.flatten().numpy()
        order = np.argsort(flat.astype(np.uint16) if n <= 2**16 else flat, kind="stable")  # 16 bits: by digits
        self.named: Tensor | None = None
        if sparse:
            ordered = flat[order]
            first = np.flatnonzero(np.diff(ordered, prepend=-1))
            self.named, ends = torch.from_numpy(ordered[first]), np.append(first, len(flat))
        else:
            ends = _ends(flat, n)
        self.order, self.ends = torch.from_numpy(order), torch.from_numpy(ends)

    def sum(self, table: Tensor, places: Tensor, weights: Tensor | None, n: int) -> Tensor:
        """The gradient `[n, D]` that adds up rows `places` of `table`, given in sorted order."""
        total = _bags(table, places, self.ends, weights)
        return total if self.named is None else _some(self.named, total, n)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        ctx.index, ctx.n, ctx.sparse = index, len(table), getattr(table, ROWS_ONLY, False)
        return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        runs = _Runs(ctx.index, ctx.n, ctx.sparse)
        return runs.sum(outer.reshape(-1, outer.shape[-1]), runs.order, None, ctx.n), None


class _Pairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, index: Tensor | None, right: Tensor, candidates: Tensor) -> Tensor:
        count, width = candidates.shape
        sparse, ctx.sparse = (getattr(each, ROWS_ONLY, False) for each in (left, right))
        ctx.n, ctx.named, left, right = len(left), None, left.detach(), right.detach()
        distinct = _distinct(index) if index is not None and sparse else None
        if index is None:
            row, starts = torch.arange(count), torch.arange(0, count * width + 1, width)
        elif distinct is not None and count * width <= len(distinct[0]) * len(right):
            ctx.named, row, starts = distinct
            left, starts = left.index_select(0, ctx.named), starts * width
        else:
            row, starts = index, torch.from_numpy(_ends(index.numpy(), len(left)) * width)
        ctx.save_for_backward(left, right, row, starts, candidates)
        size, nothing = (len(left), len(right)), left.new_zeros(count * width)  # garbage times β = 0 could be NaN
        places = torch.sparse_csr_tensor(starts, candidates.view(-1), nothing, size, check_invariants=False)
        found: Tensor = torch.sparse.sampled_addmm(places, left, right.t(), beta=0.0).values()
        return found.view(count, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        left, right, row, starts, candidates = ctx.saved_tensors
        weights, to_left, to_right = outer.reshape(-1), None, None
        if ctx.needs_input_grad[0]:
            to_left = _bags(right, candidates.view(-1), starts, weights)
            to_left = to_left if ctx.named is None else _some(ctx.named, to_left, ctx.n)
        if ctx.needs_input_grad[2]:
            runs = _Runs(candidates, len(right), ctx.sparse)
            places = row.index_select(0, torch.div(runs.order, candidates.shape[1], rounding_mode="floor"))
            to_right = runs.sum(left, places, weights.index_select(0, runs.order), len(right))
        return to_left, None, to_right, None


class _HalfSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor) -> Tensor:
        if getattr(table, ROWS_ONLY, False):
            runs = _Runs(index, len(table), True)
            ctx.named, counts = runs.named, runs.ends.diff()
        else:
            ctx.named, counts = None, torch.bincount(index.flatten(), minlength=len(table))
        ctx.counts = counts.to(table.dtype)
        ctx.save_for_backward(table)
        touched = table if ctx.named is None else table[ctx.named]
        total: Tensor = ctx.counts @ touched.square()
        return 0.5 * total.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        table, scale = ctx.saved_tensors[0].detach(), (outer * ctx.counts)[:, None]
        if ctx.named is None:
            return scale * table, None
        return _some(ctx.named, scale * table[ctx.named], len(table)), None


def _ascending(index: Tensor) -> bool:
    flat = index.numpy()  # ten times faster than asking torch, where an index is short
    return bool((flat[1:] >= flat[:-1]).all())


def _distinct(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of an ascending index `[N]`: the rows that it names, which of them at each place, and the ends of their runs."""
    flat = index.numpy()
    new = np.diff(flat, prepend=-1) > 0
    first = np.flatnonzero(new)
    found = (flat[first], new.cumsum() - 1, np.append(first, len(flat)))
    return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


def _ends(flat: Any, n: int) -> Any:
    """Where the runs of 0 … n-1 begin in a sorted index, and the end of the last `[n + 1]`."""
    ends = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(flat, minlength=n), out=ends[1:])
    return ends


def _bags(table: Tensor, places: Tensor, ends: Tensor, weights: Tensor | None) -> Tensor:
    return F.embedding_bag(places, table, ends, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _some(named: Tensor, values: Tensor, n: int) -> Tensor:
    """Rows `named` of a matrix with n rows, the others zero, as a sparse tensor."""
    size = (n, values.shape[1])
    return torch.sparse_coo_tensor(named[None], values, size, is_coalesced=True, check_invariants=False)
