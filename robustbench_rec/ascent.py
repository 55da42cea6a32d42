"""Attacks as gradient ascent on a surface, inside a ball."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_rec.attack import Attack, Scope
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Scalar, known
from robustbench_rec.shifted import Delta, Shifted, surface
from robustbench_rec.threat import Threat

REACHES = ("all", "user")
STRIDE = 2654435761  # spreads the seeds of users, 2**32 over the golden ratio


@dataclass
class Budget:
    """The part of a config that every gradient attack shares: where, how far, and the attack's own seed.

    scope: all, one perturbation for all users unless the surface is their own; user, another for every user, found and
    judged by itself, which takes as many passes as there are users.
    """

    surface: str
    modules: list[str] | None
    scope: str
    eps: float
    norm: str
    per: str
    relative: str
    seed: int

    def ascent(self) -> dict[str, Any]:
        """As arguments of `Ascent`."""
        ball = Ball(eps=self.eps, norm=self.norm, per=self.per, relative=self.relative)
        modules = None if self.modules is None else tuple(self.modules)
        return {"surface": self.surface, "modules": modules, "reach": self.scope, "ball": ball, "seed": self.seed}


class Base(dict[str, Tensor]):
    """The tensors that δ is added to, by name, 0 where a place of a history or a text holds nothing.

    real: which places hold something, bool `[n, L, 1]`, of those that have places; δ stays 0 elsewhere.
    """

    def __init__(self, tensors: Delta, real: Delta) -> None:
        super().__init__({name: each * real[name] if name in real else each for name, each in tensors.items()})
        self.real = real


@dataclass(frozen=True, kw_only=True)
class Perturbation(Attack):
    """An attack that adds δ to tensors of a surface, inside a ball.

    surface: a kind of `SURFACES`. modules: exactly these modules of it (None: all). reach: all or user, see `Budget`;
    whoever judges shows the attack one user at a time for the latter. names: exactly these tensors,
    whatever the surface has, and whether or not they reach the scores. generator: where to draw from instead of `seed`.
    """

    threat: ClassVar[Threat] = Threat(
        surface="embedding | weight | feature | activation",
        knowledge="white-box",
        scope="all users at once; each user for activations of its own",
        budget="eps in a norm, for each row, example, layer or element",
    )

    surface: str
    ball: Ball
    seed: int = 0
    modules: tuple[str, ...] | None = None
    reach: str = "all"
    names: tuple[str, ...] | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.reach not in REACHES:
            raise unknown("scope of an attack", self.reach, REACHES)
        if (self.surface, self.ball.per) == ("activation", "layer") and not (self.alone or self.names):
            raise RrecError("attack.per=layer: activations have a row for each user; take per=example")

    @property
    def alone(self) -> bool:
        return self.reach == "user"

    @property
    def declared(self) -> Threat:
        where = self.surface if self.modules is None else f"{self.surface} ({', '.join(self.modules)})"
        shared = self.threat.scope if self.surface == "activation" else "all users at once"
        scope = "each user by itself" if self.alone else shared
        return replace(self.threat, surface=where, budget=str(self.ball), scope=scope)

    def drawing_from(self, generator: torch.Generator) -> "Perturbation":
        drawing = copy(self)
        object.__setattr__(drawing, "generator", generator)
        return drawing

    def stream(self, batch: Batch) -> torch.Generator:
        """Where a call draws from: by the first user too, where users have perturbations of their own."""
        own = self.alone or self.surface == "activation"
        first = int(batch.users[0]) if own else 0
        return self.generator or torch.Generator().manual_seed((self.seed + first * STRIDE) % 2**32)

    def check(self, model: RecModel) -> None:
        if self.names is None:
            surface(model, self.surface, self.modules)

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        if self.alone:
            return "portion"
        if self.surface != "activation":
            return "all"
        whole, first = self.base(at, batch), self.base(at, batch.rows(torch.zeros(1, dtype=torch.long)))
        if all(len(each) == len(batch) and len(first[name]) == 1 for name, each in whole.items()):
            return "row"
        return "all" if all(each.shape == first[name].shape for name, each in whole.items()) else "portion"

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Norms of the units, and as shares of the norm of what is perturbed, NaN where that is 0."""
        base = self.base(at, batch)
        delta = {name: worse.delta[name] - at.delta.get(name, 0) for name in base}
        sizes, own = (self._sizes(each, base.real) for each in (delta, base))
        return {"norm": sizes, "relative": torch.where(own > 0, sizes / own, float("nan"))}

    def base(self, at: Shifted, batch: Batch) -> Base:
        """The tensors that δ is added to."""
        names = list(self.names) if self.names is not None else surface(at.model, self.surface, self.modules)
        if self.surface != "activation":
            return Base({name: each.detach() for name, each in at.tensors(names).items()}, {})
        found = {name: each.detach() for name, each in at.activations(names, batch).items()}
        return Base(found, at.real(found, batch))

    def radii(self, base: Base) -> dict[str, Tensor]:
        """Of the ball of each unit, 0 at places that hold nothing."""
        return {name: self.ball.radius(each, base.real.get(name)) for name, each in base.items()}

    def inside(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """A point that is drawn uniformly from the ball of each unit."""
        radii, real = self.radii(base), base.real
        return {n: radii[n] * self.ball.inside(each, generator, real.get(n)) for n, each in base.items()}

    def _sizes(self, delta: Delta, real: Delta) -> Tensor:
        """Norms of all units that hold something, one after the other."""
        sizes = {name: self.ball.size(each) for name, each in delta.items()}
        by_place = {name for name in real if sizes[name].shape[1:2] == real[name].shape[1:2]}
        parts = [each[real[n].expand_as(each)] if n in by_place else each.flatten() for n, each in sizes.items()]
        return torch.cat(parts)

    def reached(self, base: Delta, gradients: Mapping[str, Tensor | None]) -> None:
        """RrecError where no gradient came back: the surface does not matter to the scores."""
        if self.names is None and all(each is None for each in gradients.values()):
            where = f"the {self.surface} surface ({', '.join(base)})"
            raise RrecError(f"{where} does not reach the scores with a gradient: nothing to climb")


SCORED = replace(
    Perturbation.threat, knowledge="score", budget="eps in a norm, for each row, example or layer; queries"
)
"""The threat of a perturbation that is found from scores alone."""


def zeros(base: Delta) -> dict[str, Tensor]:
    """δ = 0."""
    return {name: torch.zeros_like(each) for name, each in base.items()}


def spread(rows: Tensor, over: Tensor) -> Tensor:
    """One number, or one a row `[B]`, so that it broadcasts against `over` `[B, …]`."""
    return rows.view(*rows.shape, *(1,) * (over.ndim - rows.ndim)) if rows.ndim else rows


def chosen(wins: Tensor, delta: Delta, other: Delta) -> dict[str, Tensor]:
    """`delta` where it wins, for all or row by row, else `other`."""
    return {name: torch.where(spread(wins, each), each, other[name]) for name, each in delta.items()}


def higher(value: Tensor, best: Tensor) -> Tensor:
    """Where a value is above the best so far; NaN, of a point that overflows, is below all."""
    return (value > best) | (best.isnan() & ~value.isnan())


def climb(at: Shifted, batch: Batch, objective: Scalar, delta: Delta) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The objective at θ + δ, without a graph, and its gradient in δ by name; None where δ does not reach it."""
    leaves = {name: each.detach().requires_grad_() for name, each in delta.items()}
    value = objective(at.shift(leaves), batch)
    return value.detach(), dict(zip(leaves, _gradients(value, list(leaves.values())), strict=True))


def _gradients(value: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """Of the sum of the values; None where a leaf does not reach it."""
    if not value.requires_grad:
        return [None] * len(leaves)
    return list(torch.autograd.grad(value.sum(), leaves, allow_unused=True))


@dataclass(frozen=True, kw_only=True)
class Ascent(Perturbation):
    """FGSM, FGM, PGD and the inner steps of APR and AWP: δ ← Π(δ + α·radius·steepest(∇)).

    steps: 0 leaves δ at its start. step_size: α, in radii. random_start: uniform in the ball, else δ starts at 0.
    restarts: the best of so many runs; from the second on they start at random anyway. best: keep the best δ seen, the
    last one included (one more forward pass), else the last; row by row where the objective has a value a row.
    momentum: μ of g ← μ·g + ∇/‖∇‖₁ (Dong et al., CVPR 2018), 0 for none. direction: what to climb along instead of the
    gradient, of (name, gradient).
    """

    steps: int
    step_size: float = 1.0
    random_start: bool = False
    restarts: int = 1
    best: bool = False
    momentum: float = 0.0
    direction: Callable[[str, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0 or self.restarts < 1 or self.step_size <= 0 or self.momentum < 0:
            raise RrecError(
                f"steps={self.steps}, restarts={self.restarts}, step_size={self.step_size}, momentum={self.momentum}: "
                "steps >= 0, restarts >= 1, step_size > 0, momentum >= 0 are needed"
            )

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base = self.base(at, batch)
        if not base:
            return at, batch
        generator, best, best_value = self.stream(batch), None, None
        for number in range(self.restarts):
            start = self.inside(base, generator) if self.random_start or number else None
            delta, value = self._run(at, batch, objective, base, start, self.steps)
            if best is None or best_value is None or value is None:
                best, best_value = delta, value
            else:
                best, best_value = _better(best, best_value, delta, value)
        assert best is not None
        return at.shift(best), batch

    def beside(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Tensor, Shifted, Batch]:
        base = self.base(at, batch)
        if self.random_start or self.restarts > 1 or self.momentum or not self.steps or not base:
            return super().beside(at, batch, objective)
        # the gradient at δ = 0 serves twice: as the first ascent direction and as the clean term's backward
        weights = [each for each in (*at.model.parameters(), *at.delta.values()) if each.requires_grad]
        value, direction, gradients = self._gradient(at, batch, objective, base, None, weights)
        used = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None]
        clean = known(value, [w for w, _ in used], [g for _, g in used])
        delta = self._move(base, None, direction, self.radii(base))
        if self.steps > 1 or self.best:
            delta, last = self._run(at, batch, objective, base, delta, self.steps - 1)
            if last is not None:
                delta = chosen(last >= value, delta, zeros(base))
        return clean, at.shift(delta), batch

    @property
    def passes(self) -> int:
        return self.restarts * (self.steps + self.best)

    def _run(
        self, at: Shifted, batch: Batch, objective: Scalar, base: Base, delta: dict[str, Tensor] | None, steps: int
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """δ after so many steps from a start, None for 0; or the best δ, with its value."""
        radii, running = self.radii(base), zeros(base) if self.momentum else {}
        best, best_value = None, None
        for _ in range(steps):
            value, found, _ = self._gradient(at, batch, objective, base, delta, [])
            gradients: Mapping[str, Tensor | None] = found
            if self.best:
                best, best_value = _better(best, best_value, delta or zeros(base), value)
            if self.momentum:
                running = {name: self._run_on(running[name], each) for name, each in found.items()}
                gradients = running
            delta = self._move(base, delta, gradients, radii)
        if self.best:
            with torch.no_grad():
                last = objective(at.shift(delta or {}), batch)
            best, best_value = _better(best, best_value, delta or zeros(base), last)
            return best, best_value
        return delta or zeros(base), None

    def _run_on(self, running: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return running
        return self.momentum * running + gradient / self.ball.total(gradient).clamp_min(1e-12)

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
            leaves, point = own, replace(at)
        else:
            leaves = {name: each.detach().requires_grad_() for name, each in (delta or zeros(base)).items()}
            point = at.shift(leaves)
        value = objective(point, batch)
        found = _gradients(value, [*leaves.values(), *weights])
        along = [None if each is None else each.to_dense() for each in found[: len(leaves)]]
        gradients = dict(zip(leaves, along, strict=True))
        self.reached(base, gradients)
        return value.detach(), gradients, tuple(found[len(leaves) :])

    def _move(
        self, base: Delta, delta: Delta | None, gradients: Mapping[str, Tensor | None], radii: Delta
    ) -> dict[str, Tensor]:
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


def _better(
    best: dict[str, Tensor] | None, best_value: Tensor | None, delta: dict[str, Tensor], value: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    if best is None or best_value is None:
        return delta, value
    return chosen(higher(value, best_value), delta, best), torch.fmax(value, best_value)
