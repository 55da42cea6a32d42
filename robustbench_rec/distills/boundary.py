from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.distillation import Lesson, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import OverLists, divergence, standardised
from robustbench_rec.errors import RrecError


@distills.register
class Boundary(OverLists):
    """Knowledge boundary: listwise distillation on the items that the teacher nearly put into, or out of, its top k.

    Those are the candidates of a user whose teacher's score is within ±delta of the k-th best one (of the last one,
    where there are fewer), the `size` nearest at most; delta counts in standard deviations of the teacher's scores of
    that user's candidates. temperature, standardise: as in `listwise`; a user with fewer than two such items counts as
    0. [R] After the abstract of
    arXiv:2510.27077, which is not about recommendation; the band is a reconstruction.
    """

    @dataclass
    class Config(Weighted):
        k: int
        delta: float
        size: int
        temperature: float
        standardise: bool

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if not 1 <= config.k <= lesson.most or config.delta <= 0 or config.size < 2 or config.temperature <= 0:
            raise RrecError(
                f"distill with k={config.k}, delta={config.delta}, size={config.size}, "
                f"temperature={config.temperature}: 1 <= k <= {lesson.most} candidates, size >= 2, delta and "
                "temperature > 0 are needed"
            )
        self.config = config

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.ranked is None or self.lesson.teacher.moving:
            found = [self._near(self.lesson.unseen(users)) for users in self.lesson.portions()]
            items, there = zip(*found, strict=True)
            self.ranked = torch.cat(items), torch.cat(there)
        return self.ranked

    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        if self.config.standardise:
            student, taught = standardised(student, there), standardised(taught, there)
        temperature = self.config.temperature
        return temperature**2 * divergence(student / temperature, taught / temperature, there)

    def _near(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Items `[U, size]` and whether each is within the band."""
        there = scores.isfinite()
        last = there.sum(1, keepdim=True).clamp(1, self.config.k) - 1
        bar = scores.topk(self.config.k, 1).values.gather(1, last)
        spread = standard_deviation(scores, there)
        away = torch.where(there, (scores - bar).abs() / spread, torch.inf)
        nearest = away.topk(min(self.config.size, scores.shape[1]), 1, largest=False)
        return nearest.indices, nearest.values <= self.config.delta


def standard_deviation(scores: Tensor, there: Tensor) -> Tensor:
    """Of what is there in each row, `[U, 1]`."""
    n, held = there.sum(1, keepdim=True), torch.where(there, scores, 0.0)
    mean = held.sum(1, keepdim=True) / n
    return (torch.where(there, scores - mean, 0.0).square().sum(1, keepdim=True) / n).sqrt().clamp_min(1e-6)
