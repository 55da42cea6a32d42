"""What every attack on a trained model is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

HINGE = "hinge"
Scope = Literal["all", "row", "portion"]


@dataclass(frozen=True)
class Member:
    """One attack of several, with the loss that it climbs (None: what the config says).

    rival: every user's own aim is the candidate so many places below the cut of the clean list, from 1, instead of what
    the goal is about.
    """

    name: str
    attack: "Attack"
    loss: str | None
    rival: int | None = None


class Suite(ABC):
    """One attack or several, as a config names them. threat: what it may do, whatever its config."""

    threat: ClassVar[Threat]
    aimed: ClassVar[bool] = False
    """Whether it is for goals about given items alone."""

    @property
    def declared(self) -> Threat:
        """The threat with what the config has settled."""
        return self.threat

    @property
    def alone(self) -> bool:
        """Whether it must be shown one user at a time."""
        return False

    @abstractmethod
    def check(self, model: RecModel) -> None:
        """RrecError if the model has nothing that this attack can move."""

    def prepared(self, model: RecModel, data: Data) -> Self:
        """The same with what it needs to know of a model and its data; RrecError as from `check`."""
        self.check(model)
        return self

    @abstractmethod
    def members(self, losses: Sequence[str], hinge: str | None) -> list[Member]:
        """What is run for a goal. losses: that an ensemble climbs for it. hinge: the goal's, None where it has none."""


class Attack(Suite):
    """Maps a model at a point and a batch to a worse point and a worse batch, within a budget.

    climbs: the loss that it is defined with, `HINGE` for that of the goal; None for any.
    """

    climbs: ClassVar[str | None] = None

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often the objective is evaluated, at most."""

    def members(self, losses: Sequence[str], hinge: str | None) -> list[Member]:
        if self.climbs == HINGE and hinge is None:
            raise RrecError(
                f"attack '{type(self).__name__.lower()}' needs a goal that is reached or not, and here is none "
                "(use pgd or apgd)"
            )
        return [Member("", self, hinge if self.climbs == HINGE else self.climbs)]

    def check_training(self, model: RecModel) -> None:
        """RrecError if the model has nothing that it can move, or if it cannot be part of a training of it."""
        self.check(model)

    @abstractmethod
    def scope(self, at: Shifted, batch: Batch) -> Scope:
        """Whether one perturbation serves all batches, or each row has its own, or both move in each batch."""

    @abstractmethod
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        """Raise `objective`: a value for each row `[B]` where the scope is "row", else one number."""

    @abstractmethod
    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """The budget actually used, from a point and a batch to a worse point and a changed batch: values by name.

        The values `[n]` of portions of users are joined before they are summed up.
        """

    def summary(self, spent: Mapping[str, Tensor]) -> dict[str, float]:
        """What is told of the budget."""
        found = {}
        for name, each in spent.items():
            known = each[~each.isnan()].double()
            found[f"max_{name}"] = known.max().item() if len(known) else float("nan")
            found[f"mean_{name}"] = known.mean().item()
        return found

    def drawing_from(self, generator: torch.Generator) -> "Attack":
        """The same attack with its randomness from a stream, anew at every call, instead of from its seed."""
        return self

    def beside(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Tensor, Shifted, Batch]:
        """The objective at the start, ready for backward, and the attack; adversarial training needs both."""
        return objective(at, batch), *self(at, batch, objective)
