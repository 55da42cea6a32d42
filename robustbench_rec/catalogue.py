"""Cross-entropy over a whole catalogue, without its scores in memory."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustbench_rec.traced import plain

TOGETHER = 2**19
"""Scores that are there at a time: 2 MiB, which stay in the cache of a core."""
FEWEST = 32
"""Rows of them at least; with fewer the catalogue is read too often."""


def surprise(left: Tensor, right: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(left · rightᵀ) at the targets `[B]`, for `left` `[B, D]` and `right` `[n, D]`: `[B]`.

    A few rows of scores at a time, and the same once more for the gradient: that is cheaper than to keep them.
    """
    if plain(left) or plain(right):
        return F.cross_entropy((left @ right.T).float(), targets, reduction="none")
    found: Tensor = _Surprise.apply(left, right, targets)  # type: ignore[no-untyped-call]
    return found


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        total = left.new_empty(len(left))
        for part in _portions(len(left), len(right)):
            total[part] = (left[part] @ right.T).logsumexp(1)
        ctx.save_for_backward(left, right, targets, total)
        return total - (left * right.index_select(0, targets)).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        left, right, targets, total = (each.detach() for each in ctx.saved_tensors)
        to_left, to_right = torch.empty_like(left), torch.zeros_like(right)
        for part in _portions(len(left), len(right)):
            weights = (left[part] @ right.T).sub_(total[part, None]).exp_().mul_(outer[part, None])
            weights.scatter_add_(1, targets[part, None], -outer[part, None])
            torch.mm(weights, right, out=to_left[part])
            to_right.addmm_(weights.T, left[part])
        return to_left, to_right, None


def _portions(n: int, width: int) -> Iterator[slice]:
    step = max(FEWEST, TOGETHER // width)
    return (slice(start, start + step) for start in range(0, n, step))
