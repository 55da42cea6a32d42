from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.ascent import Base, Budget, Perturbation, chosen, climb, higher, spread, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted

FIRST, LESS, LEAST = 0.22, 0.03, 0.06  # shares of the steps: up to the first checkpoint, less each time, at least
HELPED = 0.75  # share of the steps between checkpoints that must have raised the loss
MOVE = 0.75  # how much of a new step is taken; the rest repeats the last move


@attacks.register
class APGD(Perturbation):
    """Auto-PGD: gradient ascent that halves its step where it stops to help, with no step size to choose.

    Croce & Hein, ICML 2020, as published: steps begin at twice the radius and repeat a quarter of the last move. At
    checkpoints, the first after 22 % of the steps and then ever closer, a step is halved and the best point taken up
    again if fewer than 3 in 4 steps helped, or if the last checkpoint changed nothing and nothing better was found
    since. The best point is returned. Differences: the first run begins at δ = 0, restarts at random; there is no box
    beside the ball; where one perturbation serves all users there is one step size, else one a row.
    """

    @dataclass
    class Config(Budget):
        steps: int
        restarts: int

    def __init__(self, config: Config) -> None:
        if config.steps < 1 or config.restarts < 1:
            raise RrecError(f"apgd with steps={config.steps}, restarts={config.restarts}: both are at least 1")
        super().__init__(**config.ascent())
        self.steps, self.restarts = config.steps, config.restarts

    @property
    def passes(self) -> int:
        return self.restarts * (1 + self.steps)

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base, generator = self.base(at, batch), self.stream(batch)
        best, value = self._run(at, batch, objective, base, zeros(base))
        for _ in range(self.restarts - 1):
            delta, other = self._run(at, batch, objective, base, self.inside(base, generator))
            best, value = chosen(higher(other, value), delta, best), torch.fmax(other, value)
        return at.shift(best), batch

    def _run(
        self, at: Shifted, batch: Batch, objective: Scalar, base: Base, delta: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        radii = self.radii(base)
        value, found = climb(at, batch, objective, delta)
        self.reached(base, found)
        gradient = _known(found, base)
        before = best = delta
        best_gradient, best_value, last_best = gradient, value, value
        size = torch.full_like(value, 2.0)  # in radii
        helped, reduced = torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool)
        gap, since = max(int(FIRST * self.steps), 1), 0
        for step in range(self.steps):
            share = MOVE if step else 1.0
            moved = {}
            for name, each in delta.items():
                radius = radii[name]
                stepped = each + self.ball.steepest(gradient[name], spread(size, radius) * radius)
                stepped = self.ball.project(stepped, radius)
                move = share * (stepped - each) + (1 - share) * (each - before[name])
                moved[name] = self.ball.project(each + move, radius)
            before, delta = delta, moved
            last = value
            value, found = climb(at, batch, objective, delta)
            gradient = _known(found, base)
            helped += value > last
            wins = higher(value, best_value)
            best, best_gradient = chosen(wins, delta, best), chosen(wins, gradient, best_gradient)
            best_value = torch.fmax(value, best_value)
            since += 1
            if since == gap:
                halved = (helped <= HELPED * gap) | (~reduced & (last_best >= best_value))
                size = torch.where(halved, size / 2, size)
                delta, gradient = chosen(halved, best, delta), chosen(halved, best_gradient, gradient)
                reduced, last_best, helped = halved, best_value, torch.zeros_like(value)
                gap, since = max(gap - max(int(LESS * self.steps), 1), max(int(LEAST * self.steps), 1)), 0
        return best, best_value


def _known(gradients: dict[str, Tensor | None], base: Delta) -> dict[str, Tensor]:
    """Zeros where a tensor does not reach the scores."""
    return {name: torch.zeros_like(base[name]) if each is None else each for name, each in gradients.items()}
