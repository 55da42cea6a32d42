from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.denoising import LOSSES, Denoiser, questions
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.losses import candidates
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted

KINDS = ("hard", "soft")


@defenses.register
class Bootstrapping(Denoiser):
    """Labels mixed with what the model believes, β·y + (1 − β)·ŷ, after a warm-up (Reed et al., ICLR 2015 workshop).

    kind: soft, ŷ is the model's probability, through which the gradient flows (without it the gradient would be β times
    the plain one and nothing else); hard, ŷ is what it thinks likelier. beta: β, 1 is plain training. warm_up: plain
    epochs before. The question is whether a candidate is relevant with bce, whether the positive stands before a
    negative with bpr, and which candidate is the positive with softmax.
    """

    @dataclass
    class Config:
        kind: str
        beta: float
        warm_up: int

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__(inner)
        if config.kind not in KINDS:
            raise unknown("defense.kind", config.kind, KINDS)
        if not (0 <= config.beta <= 1 and config.warm_up >= 0):
            raise RrecError(
                f"defense.beta={config.beta}, defense.warm_up={config.warm_up}: beta in [0, 1] and warm_up >= 0 needed"
            )
        self.config = config

    @property
    def waits(self) -> int:
        return self.config.warm_up

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if self.epoch < self.config.warm_up or self.config.beta == 1:
            return self.inner(at, batch)  # type: ignore[no-any-return]
        output, beta = at(batch), self.config.beta
        if self.kind == "softmax":
            return (beta * LOSSES["softmax"](output, batch) + (1 - beta) * self._own(output, batch)).mean()
        logits, labels, counted = questions(LOSSES[self.kind], output, batch)
        own = logits.sigmoid() if self.config.kind == "soft" else (logits > 0).float()
        each = F.binary_cross_entropy_with_logits(logits, beta * labels + (1 - beta) * own, reduction="none")
        return (each * counted).sum() / counted.sum().clamp_min(1)

    def _own(self, output: Output, batch: Batch) -> Tensor:
        """Cross-entropy with the model's own belief as the label `[B]`."""
        log = F.log_softmax(candidates(output, batch), 1)
        if self.config.kind == "hard":
            return -log.amax(1)
        return -(log.exp() * torch.where(log.isinf(), torch.zeros_like(log), log)).sum(1)
