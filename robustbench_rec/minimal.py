"""Attacks that look for the smallest perturbation which reaches a goal, for all users or for each."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.ascent import Perturbation, chosen, higher, spread, zeros
from robustbench_rec.attack import HINGE
from robustbench_rec.batch import Batch
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted
from robustbench_rec.threat import Threat

BISECTIONS = 12  # of the ray to the smallest perturbation found: its length is then known to 1 in 4096


@dataclass
class MinimalBudget:
    """surface, modules, scope: see `Budget`. eps, norm, per, relative: a ball to project δ on (eps null: none)."""

    surface: str
    modules: list[str] | None
    scope: str
    eps: float | None
    norm: str
    per: str
    relative: str
    seed: int


class Minimal(Perturbation):
    """The smallest l2 norm, of a row's own tensors together, or of all tensors where the perturbation is shared.

    The search ends with a bisection of the ray to what was found, and a projection on a ball if there is one. Where the
    goal is not reached at all, δ is what came nearest to it.
    """

    threat: ClassVar[Threat] = Threat(
        surface="embedding | weight | feature | activation",
        knowledge="white-box",
        scope="all users at once; each user for activations of its own",
        budget="the smallest l2 norm that reaches the goal",
    )
    climbs: ClassVar[str | None] = HINGE

    def __init__(self, config: MinimalBudget) -> None:
        modules = None if config.modules is None else tuple(config.modules)
        ball = Ball(eps=config.eps or 0.0, norm=config.norm, per=config.per, relative=config.relative)
        super().__init__(surface=config.surface, modules=modules, reach=config.scope, ball=ball, seed=config.seed)
        self.bounded = config.eps is not None

    @property
    def declared(self) -> Threat:
        limit = f", projected on {self.ball}" if self.bounded else ""
        return replace(super().declared, budget=f"smallest l2{limit}")

    @property
    @abstractmethod
    def searching(self) -> int:
        """Evaluations of the objective in `search`."""

    @abstractmethod
    def search(self, at: Shifted, batch: Batch, objective: Scalar, base: Delta, found: "Search") -> None:
        """Note every perturbation that is tried in `found`."""

    @property
    def passes(self) -> int:
        return 1 + self.searching + BISECTIONS + 2  # and the budget spent

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base = self.base(at, batch)
        with torch.no_grad():
            start = objective(at, batch)
        found = Search(start, base)
        self.search(at, batch, objective, base, found)
        low, high = torch.zeros_like(start), torch.ones_like(start)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            delta = {name: spread(middle, each) * each for name, each in found.delta.items()}
            with torch.no_grad():
                reached = objective(at.shift(delta), batch) >= 0
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        high = torch.where(found.norm.isinf(), torch.ones_like(high), high)
        delta = {name: spread(high, each) * each for name, each in found.delta.items()}
        if self.bounded:
            radii = self.radii(base)
            delta = {name: self.ball.project(each, radii[name]) for name, each in delta.items()}
        return at.shift(delta), batch

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Norms, absolute and as shares, of those who were not where the attacker wants them; ∞ where it failed."""
        base = self.base(at, batch)
        delta = {name: worse.delta[name] - at.delta.get(name, 0) for name in base}
        with torch.no_grad():
            start, end = objective(at, batch), objective(worse, changed)
        size = norm(delta, start).masked_fill(end < 0, float("inf"))
        wanted = start < 0
        return {"norm": size[wanted].flatten(), "relative": (size / norm(base, start))[wanted].flatten()}

    def summary(self, spent: Mapping[str, Tensor]) -> dict[str, float]:
        """Success rate; median over all, failures included; mean over the successes."""
        found = {"success": spent["norm"].isfinite().float().mean().item()}
        for name, each in spent.items():
            found[f"median_{name}"] = each.quantile(0.5, interpolation="lower").item() if len(each) else float("nan")
            found[f"mean_{name}"] = each[each.isfinite()].mean().item()
        return found


class Search:
    """The smallest successful δ so far, or what came nearest.

    start: the hinge at δ = 0, one number or one a row; success is 0. norm: ∞ where there is no success yet.
    """

    def __init__(self, start: Tensor, base: Delta) -> None:
        self.start, self.delta, self.nearest = start, zeros(base), start
        self.norm = torch.full_like(start, float("inf")).masked_fill(start >= 0, 0.0)

    def note(self, delta: Delta, value: Tensor) -> Tensor:
        """Keep δ where it is successful and smaller, or nearer; returns where it is successful."""
        reached, size = value >= 0, norm(delta, value)
        smaller = reached & (size < self.norm)
        wins = smaller | (self.norm.isinf() & higher(value, self.nearest))
        self.delta = chosen(wins, delta, self.delta)
        self.norm = torch.where(smaller, size, self.norm)
        self.nearest = torch.fmax(value, self.nearest)
        return reached


def norm(delta: Delta, like: Tensor) -> Tensor:
    """l2 norm over all tensors, one number, or one a row where `like` is `[B]`."""
    return squared(delta, like).sqrt()


def squared(delta: Delta, like: Tensor) -> Tensor:
    """Its square."""
    if like.ndim == 0:
        return torch.stack([each.square().sum() for each in delta.values()]).sum()
    return torch.stack([each.flatten(1).square().sum(1) for each in delta.values()]).sum(0)
