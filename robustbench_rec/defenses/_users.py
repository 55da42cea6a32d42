"""What the defences share whose perturbations depend on the user."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Ascent, Base, spread
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.meeting import vectors
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective, innermost
from robustbench_rec.shifted import Delta, Shifted


@dataclass(frozen=True, kw_only=True)
class Shared(Ascent):
    """One step on vectors of examples `[B, …]`, whose radii are multiplied by the share of each example `[B]`.

    held: these vectors, so that a batch is not read again for them.
    """

    shares: Tensor
    held: Delta

    def base(self, at: Shifted, batch: Batch) -> Base:
        return Base(self.held, {})

    def radii(self, base: Base) -> dict[str, Tensor]:
        return {name: spread(self.shares, each) * each for name, each in super().radii(base).items()}


class PerUser(Adversarial):
    """L(θ) + λ · L(θ + δ), δ on the vectors of every example by itself, as long as eps times the share of its user."""

    @dataclass
    class Config:
        eps: float
        weight: float
        relative: str
        scale: float
        start: int

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if min(config.weight, config.scale, config.start) < 0:
            raise RrecError(
                f"defense.weight={config.weight}, scale={config.scale}, start={config.start}: must not be negative"
            )
        sites, ball = vectors(model), Ball(eps=config.eps, norm="l2", per="row", relative=config.relative)
        ascent = Shared(surface="activation", names=sites, ball=ball, steps=1, shares=torch.ones(1), held={})
        super().__init__(inner, ascent, clean=1.0, robust=config.weight)
        self.config, self.full, self.sites, self.loss = config, ascent, sites, innermost(inner).loss

    @property
    def waits(self) -> int:
        return self.config.start

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.robust = self.config.weight if epoch >= self.config.start else 0.0

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if batch.items is None and self.config.weight:  # in the first batch, not in that of epoch `start`
            raise RrecError(
                f"defense '{type(self).__module__.rpartition('.')[2]}' perturbs the vectors of a user's "
                "candidates, but this training compares with the whole catalogue: set loss=bpr negatives=1"
            )
        if self.robust:
            held = at.activations(self.sites, batch)
            shares = self.config.scale * torch.sigmoid(self.ratio(at, batch, held[self.sites[0]]) - 1)
            self.attack = replace(self.full, shares=shares, held=held)
        return super().forward(at, batch)

    @abstractmethod
    def ratio(self, at: Shifted, batch: Batch, users: Tensor) -> Tensor:
        """How an example's user, with a vector of `users` `[B, …]`, compares with the mean: `[B]`, 1 for alike."""
