import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial, shares
from robustbench_rec.ascent import Perturbation
from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball, budget
from robustbench_rec.objective import Objective, Scalar, known
from robustbench_rec.shifted import Shifted, tunable


def _row(weight: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(weight, dim=-1, keepdim=True)
    return length


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "isotropic": torch.ones_like,
    "layer": torch.linalg.vector_norm,
    "element": torch.abs,
    "row": _row,
    "row_width": lambda weight: _row(weight) / math.sqrt(weight.shape[-1]),
    "fisher": lambda weight: _row(weight) / math.sqrt(weight.shape[-1]),
}


@dataclass(frozen=True, kw_only=True)
class Gaussian(Perturbation):
    """δ = eps · S ⊙ Z with Z standard normal; scale: S of a tensor, of (name, tensor)."""

    scale: Callable[[str, Tensor], Tensor]

    @property
    def passes(self) -> int:
        return 0

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        draw, delta = self.stream(batch), {}
        for name, each in self.base(at, batch).items():
            drawn = torch.randn(each.shape, generator=draw, dtype=each.dtype, device=draw.device).to(each.device)
            delta[name] = self.ball.eps * self.scale(name, each) * drawn
        return at.shift(delta), batch


@defenses.register
class RWP(Adversarial):
    """Random weight perturbation: L(θ + v), Gaussian v for every batch (Bisla et al., AISTATS 2022: LPF-SGD).

    sigma: σ. variant: what σ is multiplied with to make the standard deviation of an element of a matrix W, isotropic
    1, layer ‖W‖, element |W_ij|, row ‖W_i‖ (LPF-SGD, σ = √γ), row_width ‖W_i‖/√n with n the length of a row (Flat-LoRA;
    a row of v is then expected to be σ times as long as W's), fisher the same over √(1 + η F/F̄), F the running mean of
    the squared gradients and F̄ its mean over the matrix, so that what matters moves less (Li et al., 2024: ARWP).
    growth: epochs in which σ grows from 0 as a half cosine, 0 for at once. eta: η. decay: of the running mean.
    clean_weight: c in c · L(θ) + (1 − c) · L(θ + v).

    Only parameters with at least two dimensions that are trained move. ARWP has no F̄: squared gradients of a mean loss
    are so small here (below 1e-4) that an η of 1 would do nothing. The two terms see the same batch; m-RWP takes half a
    batch for each. For noise of exactly the norm of AWP use defense=awp defense.direction=random.
    """

    @dataclass
    class Config:
        sigma: float
        variant: str
        growth: int
        eta: float
        decay: float
        clean_weight: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.variant not in SCALES:
            raise unknown("defense.variant", config.variant, SCALES)
        if config.growth < 0 or config.eta < 0 or not 0 <= config.decay < 1:
            raise RrecError(
                f"defense.growth={config.growth}, eta={config.eta}, decay={config.decay}: growth, eta >= 0 and "
                "decay in [0, 1) needed"
            )
        clean, robust = shares(config.clean_weight)
        names = tunable(model)
        ball = Ball(eps=budget("sigma", config.sigma), norm="l2", per="element", relative="no")
        noise = Gaussian(surface="weight", ball=ball, names=tuple(names), scale=self._scale)
        super().__init__(inner, noise, clean=clean, robust=robust)
        self.config, self.full, self.learning = config, noise, True
        self.index = {name: str(number) for number, name in enumerate(names if config.variant == "fisher" else ())}
        for name, number in self.index.items():
            self.register_buffer(f"fisher_{number}", torch.zeros_like(model.get_parameter(name)))

    @property
    def waits(self) -> int:
        return min(self.config.growth, 1)

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        share = min(epoch / self.config.growth, 1.0) if self.config.growth else 1.0
        sigma = self.config.sigma * (1 - math.cos(math.pi * share)) / 2
        grown = replace(self.full, ball=replace(self.full.ball, eps=sigma))
        self.attack = grown.drawing_from(generator)

    def start_batch(self) -> None:
        self.learning = True

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        # the gradient below takes the graph away that a penalty would still want of the output at `at`
        value: Tensor = super().forward(replace(at) if self.index else at, batch)
        if not self.index:
            return value
        parameters = {name: each for name, each in at.model.named_parameters() if each.requires_grad}
        leaves = [*parameters.values(), *(each for each in at.delta.values() if each.requires_grad)]
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        for name, gradient in zip(parameters, found, strict=False):
            if self.learning and name in self.index and gradient is not None:
                running = self.get_buffer(f"fisher_{self.index[name]}")
                running.lerp_(gradient.to_dense().square(), 1 - self.config.decay)
        self.learning = False  # once a batch, however often what is around asks
        used = [(leaf, each) for leaf, each in zip(leaves, found, strict=True) if each is not None]
        return known(value, [leaf for leaf, _ in used], [each for _, each in used])

    def _scale(self, name: str, weight: Tensor) -> Tensor:
        scale = SCALES[self.config.variant](weight)
        if not self.index:
            return scale
        fisher = self.get_buffer(f"fisher_{self.index[name]}")
        share = fisher / fisher.mean().clamp_min(torch.finfo(fisher.dtype).tiny)
        return scale / (1 + self.config.eta * share).sqrt()
