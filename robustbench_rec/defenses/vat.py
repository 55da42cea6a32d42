from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.ascent import Ascent
from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.defenses._smooth import Smooth
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import kl
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted, embedded, surface, tables


@defenses.register
class VAT(Smooth):
    """Virtual adversarial training: L(θ) + λ · KL(p(x) ‖ p(x + r)), p(x) fixed (Miyato et al., TPAMI 2018).

    r = ε g/‖g‖, g the gradient of that divergence at a small random ξ d; with more steps d ← g/‖g‖, power iteration
    towards the direction in which the divergence curves most. The labels play no part. r is of all tokens or events of
    a text or history together, where a model embeds such, and never on padding; else of each row of the embedding
    tables, and of what a frozen text encoder gave, where it is the batch's.

    eps: ε, of the norm of what is perturbed with relative=own, absolute with no. xi: ξ, likewise; too small a one is
    lost in single precision. steps: of the power iteration, 0 for the control of the paper, a random r. weight: λ.
    The divergence is that of `robustbench_rec.losses.kl`. The paper perturbs each input by itself: here a row of a
    table has one r for all examples of a batch. Both outputs have the same dropout masks.
    """

    @dataclass
    class Config:
        eps: float
        relative: str
        xi: float
        steps: int
        weight: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.weight < 0 or config.steps < 0 or not 0 < config.xi < float("inf"):
            raise RrecError(
                f"defense.weight={config.weight}, steps={config.steps}, xi={config.xi}: weight, steps >= 0 and "
                "xi > 0 are needed (at 0 the divergence is flat)"
            )
        names = embedded(model) or tables(model) or surface(model, "embedding")
        # all but the first dimension: a text or a history, or a row of a table
        ball = Ball(eps=config.eps, norm="l2", per="example", relative=config.relative)
        kind = "activation" if embedded(model) else "embedding"
        super().__init__(
            inner, Ascent(surface=kind, names=tuple(names), ball=ball, steps=config.steps), weight=config.weight
        )
        self.probe = replace(ball, eps=config.xi)

    def apart(self, there: Output, clean: Output, batch: Batch) -> Tensor:
        return kl(Output(clean.scores.detach()), there, batch, self.loss)

    def perturbation(self, at: Shifted, batch: Batch, clean: Output, masks: Masks) -> dict[str, Tensor]:
        ball = self.noise.ball
        base = self.noise.base(at, batch)
        drawn = {name: ball.surface(each, self.generator, base.real.get(name)) for name, each in base.items()}
        along = {name: ball.steepest(each) for name, each in drawn.items()}
        for _ in range(self.noise.steps):
            small = {name: self.probe.radius(base[name]) * each for name, each in along.items()}
            for name, gradient in self.uphill(at, batch, clean, masks, small).items():
                along[name] = torch.zeros_like(base[name]) if gradient is None else ball.steepest(gradient)
        return {name: ball.radius(base[name]) * each for name, each in along.items()}
