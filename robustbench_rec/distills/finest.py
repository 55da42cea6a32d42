from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.distillation import Lesson, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import OverLists, mean
from robustbench_rec.errors import RrecError


@distills.register
class FINEST(OverLists):
    """Rank-preserving regularisation: the best items stay in order, above what comes next (Oh et al., TKDD 2024).

    top: K. The teacher's first K candidates are to keep their order: mean max(0, margin − (s_i − s_{i+1})), and each of
    them to stay above the one K places behind it: mean max(0, margin − (s_i − s_{i+K})). margin: in scores of the
    student. With the teacher as the start and `noise=simulation`, the model learns to give its own lists whatever small
    thing happens to its training events.

    Terms, margin and K from the released code. Differences: one list for each user, the one that is recommended, where
    there every step of a history has one; candidates without training events; means over the lists of a batch, which
    are added up there, so that weight=32 is nearer to it with its batches of 32 histories.
    """

    @dataclass
    class Config(Weighted):
        top: int
        margin: float

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.top < 1 or config.margin < 0:
            raise RrecError(
                f"distill with top={config.top}, margin={config.margin}: top >= 1 and margin >= 0 are needed"
            )
        self.config = config

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.best(2 * self.config.top)

    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        k = min(self.config.top, student.shape[1])
        first, behind = student[:, :k], student[:, k:]
        order = self._kept(first[:, :-1], first[:, 1:], _both(there, slice(0, k - 1), slice(1, k)))
        above = self._kept(first[:, : behind.shape[1]], behind, _both(there, slice(0, behind.shape[1]), slice(k, None)))
        return order + above

    def _kept(self, higher: Tensor, lower: Tensor, there: Tensor | None) -> Tensor:
        """The mean hinge of pairs `[U, P]`, where they count."""
        if not higher.shape[1]:
            return higher.new_zeros(())
        return mean(F.relu(self.config.margin - (higher - lower)), there)


def _both(there: Tensor | None, one: slice, other: slice) -> Tensor | None:
    """Which pairs of places count."""
    return None if there is None else there[:, one] & there[:, other]
