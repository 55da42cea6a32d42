from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.ascent import Ascent
from robustbench_rec.attack import Attack
from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.denoising import LOSSES, PAIRED, Denoiser, questions
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import bernoulli
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class SelfPurification(Denoiser):
    """Events of fragile users that the model is sure are wrong get the label it believes in (H. Chen et al., CMC 2026).

    Reconstructed from the abstract. eps: l2 radius, in norms of an embedding row, of the perturbation that changes the
    predictions of a batch most, as in virtual adversarial training; a user's fragility is the mean divergence between
    the predictions before and after, with the same dropout masks. It is one step from a random point: of two draws the
    orders of the users agree in part only (rank correlation about 0.5). share: of the users of a batch, the most
    fragile, who are at risk. confidence: a positive of theirs with a probability of at most 1 − confidence is taken for
    a negative (bce), or for worse than the negative beside it (bpr). warm_up: plain epochs before. `purified/share` in
    `history.csv` is the share of the positives that were relabelled in an epoch; on ML-100K it is next to nothing.
    """

    supported = PAIRED

    @dataclass
    class Config:
        eps: float
        share: float
        confidence: float
        warm_up: int

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__(inner)
        if not (0 <= config.share <= 1 and 0.5 <= config.confidence <= 1 and config.warm_up >= 0):
            raise RrecError(
                f"defense.share={config.share}, defense.confidence={config.confidence}, defense.warm_up="
                f"{config.warm_up}: share in [0, 1], confidence in [0.5, 1] and warm_up >= 0 are needed"
            )
        ball = Ball(eps=config.eps, norm="l2", per="row", relative="own")
        # from a random point, because the divergence is flat where it is 0; two radii reach the far side of the ball
        ascent = Ascent(surface="embedding", ball=ball, steps=1, step_size=2.0, random_start=True)
        ascent.check(model)
        self.config = config
        self.attack: Attack = ascent
        self.relabelled: list[Tensor] = []  # of each batch of an epoch, with its positives

    @property
    def waits(self) -> int:
        return self.config.warm_up

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        super().start_epoch(epoch, generator)
        self.attack = self.attack.drawing_from(generator)
        self.relabelled = []

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if self.epoch < self.config.warm_up or not self.config.share:
            return self.inner(at, batch)  # type: ignore[no-any-return]
        logits, labels, counted = questions(LOSSES[self.kind], at(batch), batch)
        sure = logits.detach().sigmoid() <= 1 - self.config.confidence
        wrong = sure & (labels > 0) & self.at_risk(at, batch)[:, None]
        self.relabelled.append(torch.stack([(wrong & counted.bool()).sum(), ((labels > 0) & counted.bool()).sum()]))
        each = F.binary_cross_entropy_with_logits(logits, labels.masked_fill(wrong, 0.0), reduction="none")
        return (each * counted).sum() / counted.sum().clamp_min(1)

    def told(self) -> dict[str, float]:
        """Of the positives of the epoch, the share that was relabelled."""
        if not self.relabelled:
            return {}
        wrong, positives = torch.stack(self.relabelled).sum(0).tolist()
        return {"purified/share": wrong / max(positives, 1)}

    def at_risk(self, at: Shifted, batch: Batch) -> Tensor:
        """Which examples are of the most fragile users of a batch, bool `[B]`."""
        users, row = torch.unique(batch.owners, return_inverse=True)
        each = self.fragility(at, batch)
        total = torch.zeros(len(users), device=each.device).index_add(0, row, each)
        fragility = total / torch.bincount(row, minlength=len(users))
        count = max(1, round(self.config.share * len(users)))
        found = torch.zeros_like(fragility, dtype=torch.bool).index_fill(0, fragility.topk(count).indices, True)
        return found[row]

    def fragility(self, at: Shifted, batch: Batch) -> Tensor:
        """How far the predictions of each example diverge under the virtual adversarial perturbation `[B]`."""
        here = Shifted(at.model, {name: each.detach() for name, each in at.delta.items()})
        masks = Masks(here, batch)
        with torch.no_grad():
            before, _, counted = questions(LOSSES[self.kind], masks(here, batch), batch)

        def divergence(point: Shifted, batch: Batch) -> Tensor:
            after, _, _ = questions(LOSSES[self.kind], masks(point, batch), batch)
            return bernoulli(before, after).mul(counted).sum(1) / counted.sum(1).clamp_min(1)

        with torch.enable_grad():
            worse, batch = self.attack(here, batch, divergence)
        with torch.no_grad():
            return divergence(worse, batch)
