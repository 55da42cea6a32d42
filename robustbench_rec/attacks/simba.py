from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.ascent import SCORED, Base, Budget, Perturbation, chosen, higher, spread, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat


@attacks.register
class SimBA(Perturbation):
    """Coordinate search that sees scores, not gradients: one coordinate a step, up or down (Guo et al., ICML 2019).

    Each unit draws a coordinate; a step up is kept if it raises the loss, row by row where each has δ of its own, else
    a step down is tried. Then the next is drawn. What is kept is projected on the ball. queries: evaluations. step: in
    radii of the unit. Coordinates are drawn with replacement, the paper's without.
    """

    @dataclass
    class Config(Budget):
        queries: int
        step: float

    threat: ClassVar[Threat] = SCORED

    def __init__(self, config: Config) -> None:
        if config.queries < 1 or config.step <= 0:
            raise RrecError(
                f"simba with queries={config.queries}, step={config.step}: queries >= 1 and step > 0 needed"
            )
        super().__init__(**config.ascent())
        self.queries, self.step = config.queries, config.step

    @property
    def declared(self) -> Threat:
        return replace(super().declared, budget=f"{self.ball}; {self.queries} queries")

    @property
    def passes(self) -> int:
        return 1 + self.queries

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base, generator = self.base(at, batch), self.stream(batch)
        radii = self.radii(base)
        best, best_value = zeros(base), objective(at, batch)
        fresh, turn = torch.ones_like(best_value, dtype=torch.bool), zeros(base)
        for _ in range(self.queries):
            if bool(fresh.any()):
                turn = chosen(fresh, self._coordinates(base, generator), turn)
            step = torch.where(fresh, 1.0, -1.0)
            moved = {
                name: self.ball.project(each + spread(step, each) * self.step * radii[name] * turn[name], radii[name])
                for name, each in best.items()
            }
            value = objective(at.shift(moved), batch)
            wins = higher(value, best_value)
            best, best_value = chosen(wins, moved, best), torch.fmax(value, best_value)
            fresh = wins | ~fresh  # a step down is tried where the step up was none
        return at.shift(best), batch

    def _coordinates(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """1 at a coordinate of each unit, else 0; elements, which have only one, take turns along a row."""
        found = {}
        for name, each in base.items():
            drawn = torch.rand(each.shape, generator=generator, device=generator.device).to(each.device)
            drawn = drawn.masked_fill(~base.real[name], -1.0) if name in base.real else drawn
            dims = (-1,) if self.ball.per == "element" else self.ball.dims(drawn)
            found[name] = (drawn == drawn.amax(dims, keepdim=True)).to(each.dtype)
        return found
