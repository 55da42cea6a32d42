from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Ascent
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import surface


class Previous:
    """Ascent directions that are the gradients of the batch before, of rows that have nothing to do with each other.

    Of a batch that is asked about several times the first gradient counts.
    """

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.now: dict[str, Tensor] = {}

    def turn(self) -> None:
        """To the next batch."""
        self.before, self.now = self.now, {}

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        self.now.setdefault(name, gradient)
        before = self.before.get(name)
        return torch.zeros_like(gradient) if before is None or before.shape != gradient.shape else before


@defenses.register
class RAT(Adversarial):
    """Random layer-wise adversarial training: L(θ) + λ · L(θ + δ), δ on activations of random layers.

    eps, norm, relative: radius of each row of an activation, of its own norm with relative=own, absolute with no. p:
    with which probability each layer (a site of the activation surface) is perturbed, drawn every epoch. modules: of
    which layers, null for all. weight: λ. steps: of the ascent, each of 1/steps radii as in the released code. stale:
    the direction of a row is the gradient of the same row in the batch before, which is another sample; the first batch
    of an epoch, and one of another shape, then goes unperturbed. Of causal models every batch has another shape.

    Reconstructed from the released code of the laboratory (PDAF), where the gradient is always stale and shallow layers
    are chosen more often. There ε changes every 20 epochs; here it is one number. Where no layer is chosen both terms
    are the clean one.
    """

    @dataclass
    class Config:
        eps: float
        norm: str
        relative: str
        p: float
        modules: list[str] | None
        weight: float
        steps: int
        stale: bool

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if not 0 <= config.p <= 1 or config.weight < 0:
            raise RrecError(
                f"defense.p={config.p}, weight={config.weight}: a probability and no negative number needed"
            )
        if config.steps < 1 or (config.stale and config.steps > 1):
            raise RrecError(f"defense.steps={config.steps}, stale={config.stale}: at least one step, and one if stale")
        if config.stale and model.causal and model.window:
            raise RrecError(
                "defense.stale=true: no two batches of this model have states of one shape, so the gradient of the one "
                "before says nothing; use stale=false"
            )
        names = surface(model, "activation", config.modules)
        ball = Ball(eps=config.eps, norm=config.norm, per="row", relative=config.relative)
        ascent = Ascent(surface="activation", ball=ball, steps=config.steps, step_size=1 / config.steps)
        super().__init__(inner, ascent, clean=1.0, robust=config.weight)
        self.config, self.full, self.names = config, ascent, names
        self.previous: Previous | None = None

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        coins = torch.rand(len(self.names), generator=generator) < self.config.p
        chosen = tuple(name for name, coin in zip(self.names, coins.tolist(), strict=True) if coin)
        self.previous = Previous() if self.config.stale else None
        self.attack = replace(self.full, names=chosen, direction=self.previous)

    def start_batch(self) -> None:
        if self.previous is not None:
            self.previous.turn()
