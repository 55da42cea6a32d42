from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.distillation import Lesson, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import OverLists, by_rank, mean, standardised
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import mse


@distills.register
class CD(OverLists):
    """Collaborative distillation: soft labels of items that are drawn by the teacher's rank (Lee et al., ICDM 2019).

    count: items a user, drawn every epoch without replacement out of the teacher's first `top` candidates, with
    probabilities ∝ exp(−rank / decay). temperature: of the soft labels σ(s / T) that the student's probabilities are
    compared with by cross-entropy. standardise: z-score each list of scores first, of two at least; null for false, as
    in the paper, where the teacher's scores are logits of a click (a model of loss=bce, and a student that learns no
    ratings), else true: dot products, counts or distances would all be labels of 0 or 1. The student's own ranks play
    no part in the draws, unlike in the paper's student guided variant.
    """

    @dataclass
    class Config(Weighted):
        count: int
        top: int
        decay: float
        temperature: float
        standardise: bool | None

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if not 1 <= config.count <= config.top or config.decay <= 0 or config.temperature <= 0:
            raise RrecError(
                f"distill with count={config.count}, top={config.top}, decay={config.decay}, temperature="
                f"{config.temperature}: 1 <= count <= top, decay > 0 and temperature > 0 are needed"
            )
        self.config = config
        logits = lesson.teacher.loss == "bce" and lesson.loss is not mse
        self.standardise = not logits if config.standardise is None else config.standardise
        if self.standardise and config.count < 2:
            raise RrecError(
                f"distill with count={config.count} and standardised scores: one score alone is always 0 then; "
                "count >= 2 or standardise=false is needed"
            )

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ranked, there = self.best(self.config.top)
        places = by_rank(there, self.config.count, self.config.decay, generator)
        return ranked.gather(1, places), there.gather(1, places)

    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        if self.standardise:
            student, taught = standardised(student, there), standardised(taught, there)
        soft = (taught / self.config.temperature).sigmoid()
        return mean(F.binary_cross_entropy_with_logits(student, soft, reduction="none"), there)
