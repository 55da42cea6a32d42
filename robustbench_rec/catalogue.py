"""Dot products with a whole catalogue, and cross-entropy over them without all of them in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
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

FEW, SHORT, MANY = 16, 32, 4096
"""Rows of a product at a time, where vectors are at most so long and items at least so many."""


@dataclass(frozen=True)
class Products:
    """Dot products `[B, n]` of `left` `[B, D]`, or the largest of K of `left` `[B, K, D]`, with `right` `[n, D]`."""

    left: Tensor
    right: Tensor

    def multiplied(self) -> Tensor:
        """All of them, one of the K after the other."""
        if self.left.ndim == 2:
            return product(self.left, self.right)
        return reduce(larger, (product(each, self.right) for each in self.left.unbind(1)))


def product(left: Tensor, right: Tensor) -> Tensor:
    """left · rightᵀ, `[B, n]`, for `left` `[B, D]` and `right` `[n, D]`."""
    if plain(left) or plain(right):
        return left @ right.T
    found: Tensor = _Product.apply(left, right)  # type: ignore[no-untyped-call]
    return found


def larger(one: Tensor, two: Tensor) -> Tensor:
    """Of each pair; at a tie the first has the gradient, where `torch.maximum` takes ten passes to halve it."""
    found: Tensor = _Larger.apply(one, two)  # type: ignore[no-untyped-call]
    return found


def surprise(products: Products, targets: Tensor) -> Tensor:
    """−log softmax(products) at the targets `[B]`: `[B]`.

    A few rows of scores at a time, and the same once more for the gradient: that is cheaper than to keep them.
    """
    if plain(products.left) or plain(products.right):
        return F.cross_entropy(products.multiplied().float(), targets, reduction="none")
    found: Tensor = _Surprise.apply(products.left, products.right, targets)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return _product(left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return outer @ right if wanted[0] else None, outer.T @ left if wanted[1] else None


class _Larger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, one: Tensor, two: Tensor) -> Tensor:
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(one >= two)
        return torch.maximum(one, two)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        (first,) = ctx.saved_tensors
        own = torch.where(first, outer, 0.0)
        return own, outer - own


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        several = left if left.ndim == 3 else left[:, None]
        total = left.new_empty(len(left))
        for part in _portions(len(left), len(right)):
            total[part] = _scores(several[part], right)[0].logsumexp(1)
        ctx.save_for_backward(left, right, targets, total)
        return total - (several * right.index_select(0, targets)[:, None]).sum(2).amax(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        left, right, targets, total = (each.detach() for each in ctx.saved_tensors)
        to_left, to_right = (
            torch.zeros_like(each) if wanted else None
            for each, wanted in zip((left, right), ctx.needs_input_grad, strict=False)
        )
        several = left if left.ndim == 3 else left[:, None]
        for part in _portions(len(left), len(right)):
            weights, owner = _scores(several[part], right)
            weights.sub_(total[part, None]).exp_().mul_(outer[part, None])
            weights.scatter_add_(1, targets[part, None], -outer[part, None])
            for k in range(several.shape[1]):
                own = weights if owner is None else weights * (owner == k)
                if to_left is not None:
                    torch.mm(own, right, out=to_left.view_as(several)[part, k])
                if to_right is not None:
                    to_right.addmm_(own.T, several[part, k])
        return to_left, to_right, None


def _scores(several: Tensor, right: Tensor) -> tuple[Tensor, Tensor | None]:
    """The largest of K products `[b, n]`, and which it is where there are several; the first at a tie."""
    best, owner = _product(several[:, 0], right), None
    for k in range(1, several.shape[1]):
        each = _product(several[:, k], right)
        owner = torch.zeros_like(best, dtype=torch.uint8) if owner is None else owner
        owner.masked_fill_(each > best, k)
        torch.maximum(best, each, out=best)
    return best, owner


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Few rows at a time: with short vectors a matrix product is as long as its writing, which is slow far apart."""
    if left.shape[1] > SHORT or len(right) < MANY:
        return left @ right.T
    found = left.new_empty(len(left), len(right))
    for start in range(0, len(left), FEW):
        torch.mm(left[start : start + FEW], right.T, out=found[start : start + FEW])
    return found


def _portions(n: int, width: int) -> Iterator[slice]:
    step = max(FEWEST, TOGETHER // width)
    return (slice(start, start + step) for start in range(0, n, step))
