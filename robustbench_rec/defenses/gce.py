from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.denoising import Denoiser
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class GeneralisedCrossEntropy(Denoiser):
    """Generalised cross-entropy (1 − p^q) / q, from cross-entropy to absolute error (Zhang & Sabuncu, NeurIPS 2018).

    q: in (0, 1]; near 0 cross-entropy, 1 the absolute error. p is the probability of an event's label, as in `r_ce`,
    whose gradient with β = q this loss has. Without the truncation of the paper.
    """

    @dataclass
    class Config:
        q: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__(inner)
        if not 0 < config.q <= 1:
            raise RrecError(f"defense.q={config.q}: must be in (0, 1]")
        self.q = config.q

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        events = self.events(at(batch), batch)
        return events.mean(-torch.expm1(-self.q * events.losses) / self.q)
