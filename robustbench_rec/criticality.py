"""Module robust criticality: how much the loss can be raised by moving one module alone."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustbench_rec.ascent import Ascent
from robustbench_rec.batch import Batch
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted, label, surface


def criticality(
    at: Shifted,
    batch: Batch,
    objective: Scalar,
    *,
    eps: float,
    per: str,
    steps: int,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """MRC of every weight matrix by its module's name: max over ‖δ_r‖ ≤ eps‖w_r‖ of L(θ + δ) − L(θ), largest first.

    per: what r is, a row as in the released code, or a whole layer as in RiFT. names: of the matrices; None for all.
    All modules are measured on the same batch; every step is projected and the largest loss seen counts, the start
    included, so a value is never negative and grows with eps and, by and large, with steps, whose size depends on their
    number. It is an estimate from below of a maximum. A module that does not reach the loss has 0. After RiFT (Zhu et
    al., ICCV 2023) and the released RAWP-FT code; unlike both, the data are training events, the ball holds at every
    step, and rows are projected, not rescaled to its surface.
    """
    names = surface(at.model, "weight") if names is None else names
    delta = {name: torch.zeros_like(each).requires_grad_() for name, each in at.tensors(names).items()}
    start = objective(at.shift(delta), batch)
    reached: tuple[Tensor | None, ...] = torch.autograd.grad(start, [*delta.values()], allow_unused=True)
    ball = Ball(eps=eps, norm="l2", per=per, relative="own")
    ascent = Ascent(surface="weight", ball=ball, steps=steps, step_size=2.5 / max(steps, 1), best=True)
    found = {label(name): 0.0 for name in names}
    for name, gradient in zip(names, reached, strict=True):
        if gradient is None:
            continue
        worse, _ = replace(ascent, names=(name,))(at, batch, objective)
        with torch.no_grad():
            found[label(name)] = (objective(worse, batch) - start.detach()).clamp_min(0).item()
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
