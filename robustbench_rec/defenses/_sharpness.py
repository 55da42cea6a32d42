"""What sharpness-aware minimisation and its adaptive form share."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial, shares
from robustbench_rec.ascent import Perturbation, climb, zeros
from robustbench_rec.batch import Batch
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball, budget
from robustbench_rec.objective import Objective, Scalar
from robustbench_rec.shifted import Shifted


@dataclass(frozen=True, kw_only=True)
class Steepest(Perturbation):
    """δ = ρ g/‖g‖, the norm over all tensors at once; scaled: ρ T²g/‖Tg‖ with T = |θ|. eps of the ball is ρ."""

    scaled: bool

    @property
    def passes(self) -> int:
        return 1

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base = self.base(at, batch)
        _, found = climb(at, batch, objective, zeros(base))
        reached = {name: each for name, each in found.items() if each is not None}
        scales = {name: base[name].abs() if self.scaled else torch.ones_like(each) for name, each in reached.items()}
        # in float64, since the squares of a saturated loss's gradient underflow in float32
        sizes = [torch.linalg.vector_norm(scales[name] * each, dtype=torch.float64) for name, each in reached.items()]
        if not sizes:
            return at, batch
        length = torch.linalg.vector_norm(torch.stack(sizes)).clamp_min(torch.finfo(torch.float32).tiny)
        return at.shift({name: self._step(each, scales[name], length) for name, each in reached.items()}), batch

    def _step(self, gradient: Tensor, scale: Tensor, length: Tensor) -> Tensor:
        return (self.ball.eps / length).clamp_max(torch.finfo(gradient.dtype).max).to(gradient.dtype) * (
            scale.square() * gradient
        )


class Sharpness(Adversarial):
    """L(θ + v) with v from `Steepest` over all parameters that are trained."""

    scaled: ClassVar[bool]

    @dataclass
    class Config:
        rho: float
        clean_weight: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        names = tuple(name for name, each in model.named_parameters() if each.requires_grad)
        attack = Steepest(
            surface="weight",
            ball=Ball(eps=budget("rho", config.rho), norm="l2", per="layer", relative="no"),
            names=names,
            scaled=self.scaled,
        )
        replace(attack, names=None).check(model)
        clean, robust = shares(config.clean_weight)
        super().__init__(inner, attack, clean=clean, robust=robust)
