from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.ascent import climb
from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._inputs import kept, read
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import divergence
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Adding, Objective, innermost
from robustbench_rec.shifted import Shifted


@defenses.register
class SMART(Adding):
    """Smoothness in the embeddings: L(θ) + λ · symKL(scores at θ, at θ + δ), δ climbing it (Jiang et al., ACL 2020).

    The labels play no part in the second term. δ is on each token or event as it is read, where a model reads such, and
    never on padding; else on the rows of the embedding tables. It begins at random, since the divergence is flat at 0:
    δ ← Π(δ + r · g/‖g‖), a step of a whole radius r. eps: r, of the row's own norm with relative=own, absolute with no.
    norm: linf as in the paper, or l2, which with one step is virtual adversarial training (Miyato et al., TPAMI 2018).
    start: size of the random start in radii. steps: of the ascent. weight: λ.

    The divergence is of Bernoulli distributions for losses of single candidates, of softmaxes over a list for the
    others, squared for mse. Both outputs have the same dropout masks. All of it is computed in single precision: bf16
    does not see such a δ. No Bregman proximal term.
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
        super().__init__()
        self.config, self.inner, self.loss = config, inner, innermost(inner).loss
        self.noise = read(model, Ball(eps=config.eps, norm=config.norm, per="row", relative=config.relative))

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        value: Tensor = self.inner(at, batch)
        return value + self.added(at, batch) if self.config.weight else value

    @torch.enable_grad()
    def added(self, at: Shifted, batch: Batch) -> Tensor:
        device = batch.users.device.type
        here = replace(at) if torch.is_autocast_enabled(device) else at  # its own `encoded`, in single precision
        with torch.autocast(device, enabled=False):
            masks = Masks(here, batch)
            clean = masks(here, batch)
            delta = self.perturbation(here, batch, Output(clean.scores.detach()), masks)
            apart = divergence(masks(here.shift(delta), batch), clean, batch, self.loss).mean()
        return self.config.weight * apart

    def perturbation(self, at: Shifted, batch: Batch, clean: Output, masks: Masks) -> dict[str, Tensor]:
        """δ of a batch, away from the clean output."""
        ball, base = self.noise.ball, self.noise.base(at, batch)
        radii = self.noise.radii(base)
        delta = {
            name: self.config.start * radii[name] * ball.inside(each, self.generator) for name, each in base.items()
        }

        def apart(at: Shifted, batch: Batch) -> Tensor:
            return divergence(masks(at, batch), clean, batch, self.loss).sum()

        for _ in range(self.config.steps):
            _, found = climb(at, batch, apart, delta)
            for name, gradient in found.items():
                if gradient is None:
                    delta[name] = torch.zeros_like(delta[name])
                    continue
                size = ball.size(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
                moved = ball.project(delta[name] + radii[name] * (gradient / size), radii[name])
                delta[name] = kept(moved, gradient)
        return delta
