import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Ascent
from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted, surface

log = logging.getLogger(__name__)


class Previous:
    """Ascent directions that are the gradients of the batch before, row by row: mostly of other users.

    Of a batch that is asked about several times the first gradient counts. size: events of the batch, 0 for not told.
    """

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.now: dict[str, Tensor] = {}
        self.size = self.size_before = 0

    def turn(self) -> None:
        """To the next batch."""
        self.before, self.now = self.now, {}
        self.size_before, self.size = self.size, 0

    def __call__(self, name: str, gradient: Tensor) -> Tensor:
        self.now.setdefault(name, gradient)
        before = self.before.get(name)
        if before is not None and before.shape == gradient.shape:
            return before
        if before is not None and self.size == self.size_before:
            raise RrecError(
                f"defense.stale=true: '{name}' of this model has other rows in every batch, as its distinct users, "
                "so the gradient of the one before says nothing; use stale=false, or other defense.modules"
            )
        return torch.zeros_like(gradient)


@defenses.register
class RAT(Adversarial):
    """Random layer-wise adversarial training: L(θ) + λ · L(θ + δ), δ on activations of random layers.

    eps, norm, relative: radius of each row of an activation, of its own norm with relative=own, absolute with no. p:
    with which probability each layer (a site of the activation surface) is perturbed, drawn every epoch. modules: of
    which layers, null for all. weight: λ. steps: of the ascent, each of 1/steps radii as in the released code. stale:
    the direction of a row is the gradient of the same row in the batch before, which is another sample; the first batch
    of an epoch, and one of another size, then goes unperturbed. Sites with other rows in every batch are refused.

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
        if self.config.stale and self.batches == 1:
            log.warning("defense.stale=true: an epoch has one batch, and the first goes unperturbed; lower batch_size")
        self.previous = Previous() if self.config.stale else None
        self.attack = replace(self.full, names=chosen, direction=self.previous)

    def start_batch(self) -> None:
        if self.previous is not None:
            self.previous.turn()

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if self.previous is not None:
            self.previous.size = len(batch.users)
        return super().forward(at, batch)
