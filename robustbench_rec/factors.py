"""Weighted matrix factorisation of a dense matrix of clicks, differentiable in the clicks: an attacker's surrogate.

Hu, Koren & Volinsky, ICDM 2008: every pair counts, a click with weight 1 + α. What is added is that the clicks may be
numbers between 0 and 1 with a gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Factorisation:
    """The part of a config that poisons with a surrogate share.

    dim: size of the vectors. alpha: weight of a click beside that of any pair, 1. l2: weight of the squared vectors, in
    units of a pair.
    """

    dim: int
    alpha: float
    l2: float

    @property
    def sound(self) -> bool:
        """Whether it can be fitted: dim at least 1, alpha not negative, l2 positive."""
        return self.dim >= 1 and self.alpha >= 0 and self.l2 > 0


Factors = tuple[Tensor, Tensor]


def start(users: int, items: int, config: Factorisation, generator: torch.Generator, device: torch.device) -> Factors:
    """Small random vectors `[users, D]`, `[items, D]`."""
    sizes = ((users, config.dim), (items, config.dim))
    first, second = ((0.1 * torch.randn(size, generator=generator)).to(device) for size in sizes)
    return first, second


def alternate(clicks: Tensor, factors: Factors, config: Factorisation, sweeps: int) -> Factors:
    """Sweeps of alternating least squares over clicks `[n, m]`, users first."""
    users, items = factors
    for _ in range(sweeps):
        users = _solved(clicks, items, config)
        items = _solved(clicks.T, users, config)
    return users, items


def _solved(clicks: Tensor, other: Tensor, config: Factorisation) -> Tensor:
    """The rows `[n, D]` that fit clicks `[n, m]` best, given the other side `[m, D]`."""
    d = other.shape[1]
    outer = (other[:, :, None] * other[:, None, :]).flatten(1)  # [m, D²]
    gram = (outer.sum(0) + config.alpha * (clicks @ outer)).view(-1, d, d)
    gram = gram + config.l2 * torch.eye(d, dtype=other.dtype, device=other.device)
    fitted: Tensor = torch.linalg.solve(gram, (1 + config.alpha) * (clicks @ other))
    return fitted


def misfit(clicks: Tensor, factors: Factors, config: Factorisation) -> Tensor:
    """What is minimised, a pair on average."""
    users, items = factors
    error = (1 + config.alpha * clicks) * (clicks - users @ items.T).square()
    return (error.sum() + config.l2 * (users.square().sum() + items.square().sum())) / clicks.numel()
