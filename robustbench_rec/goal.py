"""What an attacker wants: which losses lead there, and the numbers that say how far it got."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.losses import Loss

if TYPE_CHECKING:
    from robustbench_rec.evaluation import Evaluator, Moved, Result
    from robustbench_rec.shifted import Shifted


class Goal:
    """A goal that attacks climb to, constructed as `cls(config, data)`.

    losses: names that lead to it, the default first; none where the protocol of the evaluation has them. ensemble:
    those of them that an ensemble of attacks climbs. hinge: that among them which is below 0 before the goal is reached
    for an example and 0 from then on; attacks that look for the smallest perturbation need it. told: what the names of
    its own metrics begin with, if it has such. k: length of the lists that it is about. words: the goal in a report.
    """

    losses: ClassVar[tuple[str, ...]] = ()
    ensemble: ClassVar[tuple[str, ...]] = ()
    hinge: ClassVar[str] = "margin"
    told: ClassVar[str] = ""
    k: int
    words: str

    def aims(self, users: Tensor) -> Tensor | None:
        """Columns of the candidates that it is about `[B, T]`; None where it is about what is relevant."""
        return None

    def mark(self, batch: Batch) -> Batch:
        """The batch with its aims."""
        aims = self.aims(batch.users)
        return batch if aims is None else replace(batch, aims=aims)

    def weigh(self, loss: Loss, users: Tensor) -> Loss:
        """The loss as the attacker counts the users. users: of all rows that are judged `[N]`."""
        return loss

    def serves(self, metric: str, *, smaller: bool) -> int:
        """1 where a larger value is what the attacker wants, else -1. smaller: whether less is better for the user."""
        return 1 if smaller else -1

    def measure(self, judging: "Evaluator[Any]", at: "Shifted | Moved", part: str, judged: "Result") -> "Result | None":
        """How far it is reached, beside what is `judged` anyway; None where that says it."""
        return None
