"""Balls: how large a perturbation may be, in which norm, counted over what; and noise of such a size."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError, unknown

NORMS = ("l2", "linf")
UNITS = ("row", "example", "layer", "element")
SCALES = ("no", "own", "median")
LARGEST = 1e9
"""Of a budget: far above it norms overflow in single precision, and no perturbation would seem to fit."""


def budget(key: str, value: float) -> float:
    """The value; RrecError names its key where it is no budget."""
    if not 0 <= value <= LARGEST:
        raise RrecError(f"{key}={value}: a budget is a number from 0 to {LARGEST:g}")
    return value


@dataclass(frozen=True, kw_only=True)
class Ball:
    """All δ whose norm, taken over each unit of a tensor, is at most the radius of that unit.

    norm: l2 or linf. per: the unit, a row (last dimension), an example (all but the first dimension), a whole layer or
    a single element. relative: "no" makes eps the radius itself; "own" multiplies it by the same norm of the unit that
    is perturbed, "median" by the median over the tensor's units.
    """

    eps: float
    norm: str
    per: str
    relative: str

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("norm", self.norm, NORMS),
            ("per", self.per, UNITS),
            ("relative", self.relative, SCALES),
        ):
            if value not in choices:
                raise unknown(what, value, choices)
        budget("eps", self.eps)

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each unit, with the reduced dimensions kept."""
        if self.per == "element":
            return delta.abs()
        order = 2 if self.norm == "l2" else float("inf")
        size: Tensor = torch.linalg.vector_norm(delta, order, dim=self.dims(delta), keepdim=True)
        return size

    def radius(self, base: Tensor, real: Tensor | None = None) -> Tensor:
        """Radius of each unit of the tensor that is perturbed; broadcasts against it.

        real: what may be moved, bool `[n, L, 1]` (None: all); the radius is 0 elsewhere, and no median counts it.
        """
        size = self.size(base.detach())
        match self.relative:
            case "no":
                found = torch.full_like(size, self.eps)
            case "own":
                found = self.eps * size
            case _:
                by_place = real is not None and size.shape[1] == real.shape[1]
                counted = size[real.expand_as(size)] if real is not None and by_place else size
                found = self.eps * (counted.median() if counted.numel() else size.new_zeros(())).expand_as(size)
        return found if real is None else found * real

    def steepest(self, gradient: Tensor, radius: Tensor | float = 1.0) -> Tensor:
        """The δ of norm `radius` in each unit that raises a linear function most; zero where the gradient is."""
        if self.norm == "linf" or self.per == "element":
            return radius * gradient.sign()
        # in float64, since the squares of a saturated loss's gradient underflow in float32
        length: Tensor = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=torch.float64)
        if self.per != "row" or gradient.ndim == 1:
            length = torch.linalg.vector_norm(length, dim=self.dims(gradient), keepdim=True)
        limits = torch.finfo(gradient.dtype)
        # at most the largest number: infinity times the zeros of a unit without gradient would be NaN
        return gradient * (radius / length.clamp_min(limits.tiny)).clamp_max(limits.max).to(gradient.dtype)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """The nearest point of the ball."""
        if self.norm == "linf" or self.per == "element":
            return delta.clamp(-radius, radius)
        tiny = torch.finfo(delta.dtype).tiny
        return delta * (radius / self.size(delta).clamp_min(tiny)).clamp_max(1)

    def surface(self, base: Tensor, generator: torch.Generator, real: Tensor | None = None) -> Tensor:
        """A random direction of unit norm in each unit: uniform on the l2 sphere, a random corner of the linf box.

        real: what may be moved, bool, broadcasts (None: all); the direction is 0 elsewhere.
        """
        drawn = torch.randn(base.shape, generator=generator, dtype=base.dtype, device=generator.device).to(base.device)
        return self.steepest(drawn if real is None else drawn * real)

    def inside(self, base: Tensor, generator: torch.Generator, real: Tensor | None = None) -> Tensor:
        """A random point of the unit ball of each unit, uniform in volume; real: as for `surface`."""
        if self.norm == "linf" or self.per == "element":
            drawn = torch.rand(base.shape, generator=generator, dtype=base.dtype, device=generator.device)
            point = (2 * drawn - 1).to(base.device)
            return point if real is None else point * real
        direction = self.surface(base, generator, real)
        size = self.size(direction)
        drawn = torch.rand(size.shape, generator=generator, dtype=base.dtype, device=generator.device).to(base.device)
        if real is None:
            return direction * drawn ** (size.numel() / direction.numel())
        numbers = real.expand_as(direction).sum(self.dims(direction), keepdim=True)
        return direction * drawn ** (1 / numbers.clamp_min(1))

    def total(self, delta: Tensor) -> Tensor:
        """Sum of the absolute values of each unit, with the reduced dimensions kept."""
        return delta.abs() if self.per == "element" else delta.abs().sum(self.dims(delta), keepdim=True)

    def __str__(self) -> str:
        of = {"no": "", "own": " × own norm", "median": " × median norm"}[self.relative]
        return f"{self.norm} ≤ {self.eps:g}{of}, each {self.per}"

    def dims(self, x: Tensor) -> tuple[int, ...]:
        """Dimensions that make up a unit."""
        if x.ndim == 1 or self.per == "layer":
            return tuple(range(x.ndim))
        return (-1,) if self.per == "row" else tuple(range(1, x.ndim))


def gaussian(vectors: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Noise for vectors `[…, D]`: sigma · rms(vector) · N(0, 1), whose norm is about sigma times that of the vector."""
    drawn = torch.randn(vectors.shape, generator=generator).to(vectors)
    return sigma * vectors.square().mean(-1, keepdim=True).sqrt() * drawn
