"""What the defences share that keep scores smooth around the embeddings, whatever the labels are."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from robustbench_rec.ascent import Ascent, climb
from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.objective import Adding, Objective, innermost
from robustbench_rec.shifted import Shifted


class Smooth(Adding):
    """L(θ) + λ · how far the scores at θ + δ are from those at θ, which δ makes large.

    noise: what δ is on, and its ball. Both outputs have the same dropout masks. All of it is computed in single
    precision: bf16 does not see such a δ.
    """

    def __init__(self, inner: Objective, noise: Ascent, *, weight: float) -> None:
        super().__init__()
        self.inner, self.noise, self.weight, self.loss = inner, noise, weight, innermost(inner).loss
        self.adds = weight > 0

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        value: Tensor = self.inner(at, batch)
        return value + self.added(at, batch) if self.adds else value

    @torch.enable_grad()
    def added(self, at: Shifted, batch: Batch) -> Tensor:
        device = batch.users.device.type
        here = replace(at) if torch.is_autocast_enabled(device) else at  # its own `encoded`, in single precision
        with torch.autocast(device, enabled=False):
            masks = Masks(here, batch)
            clean = masks(here, batch)
            delta = self.perturbation(here, batch, Output(clean.scores.detach()), masks)
            apart = self.apart(masks(here.shift(delta), batch), clean, batch).mean()
        return self.weight * apart

    @abstractmethod
    def apart(self, there: Output, clean: Output, batch: Batch) -> Tensor:
        """How far an output is from the clean one `[B]`."""

    @abstractmethod
    def perturbation(self, at: Shifted, batch: Batch, clean: Output, masks: Masks) -> dict[str, Tensor]:
        """δ of a batch, away from the clean output."""

    def uphill(
        self, at: Shifted, batch: Batch, clean: Output, masks: Masks, delta: dict[str, Tensor]
    ) -> dict[str, Tensor | None]:
        """The gradient in δ of how far the scores are apart."""

        def apart(at: Shifted, batch: Batch) -> Tensor:
            return self.apart(masks(at, batch), clean, batch).sum()

        return climb(at, batch, apart, delta)[1]
