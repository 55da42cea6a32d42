from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.ascent import chosen, climb, spread, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.minimal import Minimal, MinimalBudget, Search, norm, squared
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted

DECADE = 10.0  # what c is multiplied with until it suffices
FURTHER = 3.0  # and a step that is for all users


@attacks.register
class CW(Minimal):
    """Carlini & Wagner's l2 attack: the smallest δ that reaches the goal, min ‖δ‖² + c · hinge (S&P 2017).

    Adam on δ itself (no change of variable: embeddings have no box), `searches` values of c: ten times larger until the
    goal is reached, then bisection. The smallest successful δ of all steps is kept. lr: as a share of the distance to
    the linearised boundary, for all coordinates of a row together that have a gradient. initial_c: of the first search,
    for a boundary at distance 1 and a slope of 1. A search stops where a tenth of its steps brought less than 0.01 %.
    The defaults are a CPU's, 5 × 100 steps; the reference has 9 × 10,000 and a fixed rate of 0.01.
    """

    @dataclass
    class Config(MinimalBudget):
        searches: int
        steps: int
        lr: float
        initial_c: float

    def __init__(self, config: Config) -> None:
        if min(config.searches, config.steps) < 1 or min(config.lr, config.initial_c) <= 0:
            raise RrecError(
                f"cw with searches={config.searches}, steps={config.steps}, lr={config.lr}, "
                f"initial_c={config.initial_c}: searches, steps >= 1 and lr, initial_c > 0 are needed"
            )
        super().__init__(config)
        self.searches, self.steps, self.lr, self.initial_c = config.searches, config.steps, config.lr, config.initial_c

    @property
    def searching(self) -> int:
        return 1 + self.searches * self.steps

    def search(self, at: Shifted, batch: Batch, objective: Scalar, base: Delta, found: Search) -> None:
        value, gradients = climb(at, batch, objective, zeros(base))
        self.reached(base, gradients)
        slope = norm({name: each for name, each in gradients.items() if each is not None}, value)
        tiny = torch.finfo(value.dtype).tiny
        distance = (-value / slope.clamp_min(tiny)).clamp_max(norm(base, value).clamp_min(1.0) * 10)
        pace = self.lr * distance / _reaching(gradients, value).clamp_min(1).sqrt()
        c = self.initial_c * distance / slope.clamp_min(tiny)
        low, high = torch.zeros_like(c), torch.full_like(c, float("inf"))
        for _ in range(self.searches):
            reached = self._descend(at, batch, objective, base, found, c, pace)
            high = torch.where(reached, torch.minimum(high, c), high)
            low = torch.where(reached, low, torch.maximum(low, c))
            if not value.ndim:  # the mean hinge is 0 only once everybody's is, further off than it looks
                pace = torch.where(reached, pace, FURTHER * pace)
            c = torch.where(high.isinf(), DECADE * c, (low + high) / 2)

    def _descend(
        self, at: Shifted, batch: Batch, objective: Scalar, base: Delta, found: Search, c: Tensor, pace: Tensor
    ) -> Tensor:
        """Adam for one c; whether the goal was reached on the way, one answer or one a row."""
        reached, checked = torch.zeros_like(c, dtype=torch.bool), torch.full_like(c, float("inf"))
        going = ~reached  # whose cost still falls
        delta, first, second = zeros(base), zeros(base), zeros(base)
        for step in range(1, self.steps + 1):
            value, gradients = climb(at, batch, objective, delta)
            self.reached(base, gradients)
            reached |= found.note(delta, value)
            cost = squared(delta, c) - c * value
            if step % max(self.steps // 10, 1) == 0:
                going = going & (cost <= 0.9999 * checked)
                if not bool(going.any()):
                    break
                checked = cost
            moved = {}
            for name, each in delta.items():
                along = gradients[name]
                gradient = 2 * each if along is None else 2 * each - spread(c, each) * along
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient.square()
                mean, size = first[name] / (1 - 0.9**step), (second[name] / (1 - 0.999**step)).sqrt()
                moved[name] = each - spread(pace, each) * mean / (size + 1e-8)
            delta = chosen(going, moved, delta)
        return reached


def _reaching(gradients: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """How many coordinates have a gradient, one number, or one a row where `like` is `[B]`; the others never move."""
    counts = [each.ne(0).flatten(min(like.ndim, 1)).sum(-1) for each in gradients.values() if each is not None]
    return torch.stack(counts).sum(0).to(like.dtype)
