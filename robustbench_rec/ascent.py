"""Attacks as gradient ascent on a surface, inside a ball."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Scalar, known
from robustbench_rec.shifted import Delta, Shifted, surface


class Attack(ABC):
    """Maps a model at a point and a batch to a worse point and a worse batch, within a budget."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often the objective is evaluated."""

    @abstractmethod
    def check(self, model: RecModel) -> None:
        """RrecError if the model has nothing that this attack can move."""

    @abstractmethod
    def shared(self, at: Shifted, batch: Batch) -> bool:
        """Whether one perturbation serves all batches, or each row of a batch has its own."""

    @abstractmethod
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        """Raise `objective`."""

    @abstractmethod
    def spent(self, at: Shifted, worse: Shifted, batch: Batch) -> dict[str, float]:
        """The budget actually used between a point and a worse one."""

    def drawing_from(self, generator: torch.Generator) -> "Attack":
        """The same attack with its randomness from a stream, anew at every call, instead of from its seed."""
        return self

    def beside(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Tensor, Shifted, Batch]:
        """The objective at the start, ready for backward, and the attack; adversarial training needs both."""
        return objective(at, batch), *self(at, batch, objective)


@dataclass
class Budget:
    """The part of a config that every gradient attack shares: where, how far, and the attack's own seed."""

    surface: str
    modules: list[str] | None
    eps: float
    norm: str
    per: str
    relative: str
    seed: int

    def ascent(self) -> dict[str, Any]:
        """As arguments of `Ascent`."""
        ball = Ball(eps=self.eps, norm=self.norm, per=self.per, relative=self.relative)
        modules = None if self.modules is None else tuple(self.modules)
        return {"surface": self.surface, "modules": modules, "ball": ball, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Ascent(Attack):
    """FGSM, FGM, PGD and the inner steps of APR and AWP: δ ← Π(δ + α·radius·steepest(∇)).

    surface: a kind of `SURFACES`. modules: exactly these modules of it (None: all). steps: 0 leaves δ at its start.
    step_size: α, in radii. random_start: uniform in the ball, else δ starts at 0. restarts: the best of so many runs.
    best: keep the best δ seen, the last one included (one more forward pass), else the last. names: exactly these
    tensors, whatever the surface has, and whether or not they reach the scores. direction: what to climb along instead
    of the gradient, of (name, gradient).
    """

    surface: str
    ball: Ball
    steps: int
    step_size: float = 1.0
    random_start: bool = False
    restarts: int = 1
    best: bool = False
    seed: int = 0
    modules: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    direction: Callable[[str, Tensor], Tensor] | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1 or self.step_size <= 0:
            raise RrecError(
                f"steps={self.steps}, restarts={self.restarts}, step_size={self.step_size}: "
                "steps >= 0, restarts >= 1 and step_size > 0 are needed"
            )

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base = self.base(at, batch)
        if not base:
            return at, batch
        generator = self.stream()
        best, best_value = self._run(at, batch, objective, base, self._start(base, generator), self.steps)
        for _ in range(self.restarts - 1):
            delta, value = self._run(at, batch, objective, base, self._start(base, generator), self.steps)
            if value > best_value:
                best, best_value = delta, value
        return at.shift(best), batch

    def beside(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Tensor, Shifted, Batch]:
        base = self.base(at, batch)
        if self.random_start or self.restarts > 1 or not self.steps or not base:
            return super().beside(at, batch, objective)
        # the gradient at δ = 0 serves twice: as the first ascent direction and as the clean term's backward
        weights = [each for each in (*at.model.parameters(), *at.delta.values()) if each.requires_grad]
        value, direction, gradients = self._gradient(at, batch, objective, base, None, weights)
        used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        clean = known(value, [w for w, _ in used], [g for _, g in used])
        delta = self._move(base, None, direction, self._radii(base))
        if self.steps > 1 or self.best:
            delta, last = self._run(at, batch, objective, base, delta, self.steps - 1)
            if self.best and last < value.item():
                delta = {name: torch.zeros_like(each) for name, each in base.items()}
        return clean, at.shift(delta), batch

    def drawing_from(self, generator: torch.Generator) -> "Ascent":
        drawing = copy(self)
        object.__setattr__(drawing, "generator", generator)
        return drawing

    def stream(self) -> torch.Generator:
        """Where a call draws from."""
        return self.generator or torch.Generator().manual_seed(self.seed)

    @property
    def passes(self) -> int:
        return self.restarts * (self.steps + self.best)

    def check(self, model: RecModel) -> None:
        if self.names is None:
            surface(model, self.surface, self.modules)

    def shared(self, at: Shifted, batch: Batch) -> bool:
        if self.surface != "activation":
            return True
        whole, first = self.base(at, batch), self.base(at, batch.rows(torch.zeros(1, dtype=torch.long)))
        return all(each.shape == first[name].shape for name, each in whole.items()) and len(batch) > 1

    def spent(self, at: Shifted, worse: Shifted, batch: Batch) -> dict[str, float]:
        """Largest and mean norm over the units, and both as shares of the norm of what is perturbed."""
        base = self.base(at, batch)
        delta = {name: worse.delta[name] - at.delta.get(name, 0) for name in base}
        sizes = torch.cat([self.ball.size(each).flatten() for each in delta.values()])
        own = torch.cat([self.ball.size(each).flatten() for each in base.values()])
        share = sizes[own > 0] / own[own > 0]
        return {
            "max_norm": sizes.max().item(),
            "mean_norm": sizes.mean().item(),
            "max_relative": share.max().item() if len(share) else float("nan"),
            "mean_relative": share.mean().item() if len(share) else float("nan"),
        }

    def base(self, at: Shifted, batch: Batch) -> dict[str, Tensor]:
        """The tensors that δ is added to."""
        names = list(self.names) if self.names is not None else surface(at.model, self.surface, self.modules)
        found = at.activations(names, batch) if self.surface == "activation" else at.tensors(names)
        return {name: each.detach() for name, each in found.items()}

    def _radii(self, base: Delta) -> dict[str, Tensor]:
        return {name: self.ball.radius(each) for name, each in base.items()}

    def _start(self, base: Delta, generator: torch.Generator) -> dict[str, Tensor] | None:
        """None stands for δ = 0."""
        if not self.random_start:
            return None
        return {name: self.ball.radius(each) * self.ball.inside(each, generator) for name, each in base.items()}

    def _run(
        self, at: Shifted, batch: Batch, objective: Scalar, base: Delta, delta: dict[str, Tensor] | None, steps: int
    ) -> tuple[dict[str, Tensor], float]:
        """δ after so many steps, or the best δ with its value."""
        radii = self._radii(base)
        best, best_value = delta, -math.inf
        for _ in range(steps):
            value, gradients, _ = self._gradient(at, batch, objective, base, delta, [])
            if self.best and value.item() > best_value:
                best, best_value = delta, value.item()
            delta = self._move(base, delta, gradients, radii)
        if self.best:
            with torch.no_grad():
                last = objective(at.shift(delta or {}), batch).item()
            if last < best_value:
                delta, last = best, best_value
            best_value = last
        return delta or {name: torch.zeros_like(each) for name, each in base.items()}, best_value

    def _gradient(
        self,
        at: Shifted,
        batch: Batch,
        objective: Scalar,
        base: Delta,
        delta: dict[str, Tensor] | None,
        weights: list[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor | None], tuple[Tensor | None, ...]]:
        """Value at θ + δ, its gradient in δ by name and in `weights`."""
        own = at.tensors(base) if delta is None and not at.delta.keys() & base.keys() else {}
        if own and all(each.requires_grad for each in own.values()):  # at δ = 0 the gradient in δ is that in θ
            leaves, point = own, Shifted(at.model, at.delta)
        else:
            start = delta or {name: torch.zeros_like(each) for name, each in base.items()}
            leaves = {name: each.detach().requires_grad_() for name, each in start.items()}
            point = at.shift(leaves)
        value = objective(point, batch)
        found = torch.autograd.grad(value, [*leaves.values(), *weights], allow_unused=True)
        along = [None if each is None else each.to_dense() for each in found[: len(leaves)]]
        return value.detach(), dict(zip(leaves, along, strict=True)), found[len(leaves) :]

    def _move(
        self, base: Delta, delta: Delta | None, gradients: Mapping[str, Tensor | None], radii: Delta
    ) -> dict[str, Tensor]:
        if self.names is None and all(each is None for each in gradients.values()):
            raise RrecError(
                f"the {self.surface} surface ({', '.join(base)}) does not reach the scores: nothing to climb"
            )
        moved = {}
        for name, gradient in gradients.items():
            if gradient is None:
                moved[name] = torch.zeros_like(base[name]) if delta is None else delta[name]
                continue
            along = gradient if self.direction is None else self.direction(name, gradient)
            step = self.ball.steepest(along, self.step_size * radii[name])
            if delta is None and self.step_size <= 1:
                moved[name] = step  # in the ball already
            else:
                moved[name] = self.ball.project(step if delta is None else delta[name] + step, radii[name])
        return moved
