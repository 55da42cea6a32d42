"""What every way to tune a trained model again is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

from robustbench_rec.errors import RrecError
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import label


class Finetuning(ABC):
    """Which modules are tuned, with which objective, and what the result is chosen by; constructed as `cls(config)`.

    raises: the quality on validation that the tuned model is to have more of, attacked or clean, while the other one
    may lose no more than the tolerance.
    """

    raises: ClassVar[Literal["attacked", "clean"]] = "attacked"

    @property
    def rounds(self) -> int:
        """How often modules are chosen and tuned."""
        return 1

    @abstractmethod
    def modules(self, criticality: Mapping[str, float]) -> list[str]:
        """Labels of the modules to tune; criticality: of every module by its label, the largest first."""

    @abstractmethod
    def objective(self, inner: Objective, criticality: Mapping[str, float], names: tuple[str, ...]) -> Objective:
        """What is minimised over the tensors of the chosen modules; their criticality by tensor name."""


def first(criticality: Mapping[str, float], count: int, *, least: bool = False) -> list[str]:
    """So many of the most critical modules, or of the least; RrecError where the model has not that many.

    What does not reach the loss, with a criticality of 0, is not the least critical: there is nothing to tune.
    """
    if not 1 <= count <= len(criticality):
        raise RrecError(
            f"finetune.modules={count}: the model has {len(criticality)} ({', '.join(map(label, criticality))})"
        )
    if not least:
        return list(criticality)[:count]
    reached = [name for name, value in criticality.items() if value > 0] or list(criticality)
    if len(reached) < count:
        told = ", ".join(map(label, reached)) or "none"
        raise RrecError(f"finetune.modules={count}: only {len(reached)} reach the loss ({told})")
    return reached[-count:]
