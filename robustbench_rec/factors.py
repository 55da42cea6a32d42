"""Weighted matrix factorisation of a dense matrix of clicks, differentiable in the clicks: an attacker's surrogate.

Hu, Koren & Volinsky, ICDM 2008: every pair counts, a click with weight 1 + α. What is added is that the clicks may be
numbers between 0 and 1 with a gradient.
"""

from dataclasses import dataclass
from typing import Any

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


@dataclass
class Adam:
    """Adam over factors, differentiable where it is asked to be; what it remembers carries no gradient into a step.

    steps counts those that were made. Moments are those of Kingma & Ba, ICLR 2015, with their defaults.
    """

    lr: float
    steps: int = 0
    moments: Any = None

    def step(self, factors: Factors, loss: Tensor, *, differentiable: bool = False) -> Factors:
        """The factors one step further down; the graph leads back through it where it is differentiable."""
        gradients = torch.autograd.grad(loss, factors, create_graph=differentiable)
        if self.moments is None:
            self.moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in factors]
        self.steps += 1
        moved = []
        for index, (each, gradient) in enumerate(zip(factors, gradients, strict=True)):
            first, second = self.moments[index]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            self.moments[index] = (first, second)
            mean, square = first / (1 - 0.9**self.steps), second / (1 - 0.999**self.steps)
            moved.append(each - self.lr * mean / ((square + 1e-16).sqrt() + 1e-8))  # a root of 0 has no gradient
        users, items = moved
        return (users, items) if differentiable else (users.detach().requires_grad_(), items.detach().requires_grad_())
