from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.ascent import climb, spread, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.minimal import Minimal, MinimalBudget, Search, squared
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted

BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9
FAR = 1.5  # the overshoot of a step that is for all users


@attacks.register
class FAB(Minimal):
    """Fast adaptive boundary: steps to the linearised boundary of the goal, drawn back to the start (ICML 2020).

    Croce & Hein, for rankings: the boundary is where the goal's hinge becomes 0, so each step needs one gradient, not
    one for every competitor. A step goes 5 % beyond the boundary and, once that was reached, is mixed, by at most a
    tenth, with the projection of the start: before that, mixing can hold a search in front of a boundary that is not
    flat. A point beyond the boundary is drawn back by a tenth. steps: how many. l2. Where one δ has to serve all users,
    their mean hinge is 0 only once everybody's is: a step goes half as far again as the boundary, and is never mixed.
    """

    @dataclass
    class Config(MinimalBudget):
        steps: int

    def __init__(self, config: Config) -> None:
        if config.steps < 1:
            raise RrecError(f"fab with steps={config.steps}: at least 1")
        super().__init__(config)
        self.steps = config.steps

    @property
    def searching(self) -> int:
        return 1 + self.steps

    def search(self, at: Shifted, batch: Batch, objective: Scalar, base: Delta, found: Search) -> None:
        delta = zeros(base)
        for _ in range(self.steps):
            value, gradients = climb(at, batch, objective, delta)
            self.reached(base, gradients)
            slope = {name: torch.zeros_like(delta[name]) if g is None else g for name, g in gradients.items()}
            reached = found.note(delta, value)
            overshoot = OVERSHOOT if value.ndim else FAR
            steep = squared(slope, value).clamp_min(torch.finfo(value.dtype).tiny)
            inner = _inner(slope, delta, value)
            to_here = -value / steep  # from δ to the boundary, in slopes
            to_start = (inner - value) / steep  # from 0
            length, whole = to_here.abs(), to_start.abs()
            mix = (length / (length + whole).clamp_min(torch.finfo(value.dtype).tiny)).clamp_max(BIAS)
            mix = mix * (found.norm.isfinite() & (value.ndim > 0))
            moved = {}
            for name, each in delta.items():
                here = each + overshoot * spread(to_here, each) * slope[name]
                start = overshoot * spread(to_start, each) * slope[name]
                share = spread(mix, each)
                moved[name] = torch.where(spread(reached, each), BACK * each, (1 - share) * here + share * start)
            delta = moved
        with torch.no_grad():
            found.note(delta, objective(at.shift(delta), batch))


def _inner(left: Delta, right: Delta, like: Tensor) -> Tensor:
    """Inner product over all tensors, one number, or one a row where `like` is `[B]`."""
    products = [each * right[name] for name, each in left.items()]
    if like.ndim == 0:
        return torch.stack([each.sum() for each in products]).sum()
    return torch.stack([each.flatten(1).sum(1) for each in products]).sum(0)
