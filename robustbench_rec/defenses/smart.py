from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._inputs import kept, read
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.defenses._smooth import Smooth
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import divergence
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class SMART(Smooth):
    """Smoothness in the embeddings: L(θ) + λ · symKL(scores at θ, at θ + δ), δ climbing it (Jiang et al., ACL 2020).

    The labels play no part in the second term. δ is on each token or event as it is read, where a model reads such, and
    never on padding; else on the rows of the embedding tables. It begins at random, since the divergence is flat at 0:
    δ ← Π(δ + r · g/‖g‖), a step of a whole radius r. eps: r, of the row's own norm with relative=own, absolute with no.
    norm: linf as in the paper, or l2. start: size of the random start in radii. steps: of the ascent. weight: λ.

    The divergence is of Bernoulli distributions for losses of single candidates, of softmaxes over a list for the
    others, squared for mse, and the gradient in θ is that of both sides. Both outputs have the same dropout masks. No
    Bregman proximal term. With the clean side fixed, and one δ for an example: `vat`.
    """

    @dataclass
    class Config:
        eps: float
        norm: str
        relative: str
        start: float
        steps: int
        weight: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.weight < 0 or config.steps < 0 or not 0 < config.start <= 1:
            raise RrecError(
                f"defense.weight={config.weight}, steps={config.steps}, start={config.start}: weight, steps >= 0 and "
                "start in (0, 1] are needed (at 0 nothing climbs)"
            )
        ball = Ball(eps=config.eps, norm=config.norm, per="row", relative=config.relative)
        super().__init__(inner, read(model, ball), weight=config.weight)
        self.config = config

    def apart(self, there: Output, clean: Output, batch: Batch) -> Tensor:
        return divergence(there, clean, batch, self.loss)

    def perturbation(self, at: Shifted, batch: Batch, clean: Output, masks: Masks) -> dict[str, Tensor]:
        ball, base = self.noise.ball, self.noise.base(at, batch)
        radii = self.noise.radii(base)
        delta = {
            name: self.config.start * radii[name] * ball.inside(each, self.generator) for name, each in base.items()
        }
        for _ in range(self.config.steps):
            for name, gradient in self.uphill(at, batch, clean, masks, delta).items():
                if gradient is None:
                    delta[name] = torch.zeros_like(delta[name])
                    continue
                size = ball.size(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
                moved = ball.project(delta[name] + radii[name] * (gradient / size), radii[name])
                delta[name] = kept(moved, gradient)
        return delta
