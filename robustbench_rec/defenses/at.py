from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from robustbench_rec.adversarial import Adversarial, shares
from robustbench_rec.attack import HINGE
from robustbench_rec.attacks import single
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.losses import lead, mse, squared_hinge
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, Scalar, innermost
from robustbench_rec.shifted import Shifted

ROBUST = ("squared_hinge",)


@defenses.register
class AdversarialTraining(Adversarial):
    """Adversarial training on any surface with any attack: λ · L(θ) + (1 − λ) · L(θ + δ) (Madry et al., ICLR 2018).

    clean_weight: λ, so 1 is clean training. attack: the config of the inner attack, run anew for every batch; it climbs
    L; one that looks for the smallest perturbation climbs `losses.lead`, of each example that has a δ of its own, else
    their mean. It draws from the run's seed, so that attack.seed says nothing here. What edits histories, graphs or
    texts knows the training events alone. robust_loss: null for L in the second term too, squared_hinge for mean
    max(0, κ − y·score)² there, y = ±1. kappa: κ, the margin of that loss, which has nothing to do with the attack's
    eps.
    """

    @dataclass
    class Config:
        clean_weight: float
        robust_loss: str | None
        kappa: float
        attack: dict[str, Any]

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        clean, robust = shares(config.clean_weight)
        attack = single(config.attack)
        attack.check_training(model)
        if attack.alone:
            raise RrecError("defense.attack.scope=user: training attacks a batch as a whole; use scope=all")
        if attack.climbs == HINGE and innermost(inner).loss is mse:
            raise RrecError(
                f"defense.attack '{config.attack['name']}' needs a goal that is reached or not; loss=mse has none "
                "(use pgd or apgd)"
            )
        if config.robust_loss not in (None, *ROBUST):
            raise unknown("defense.robust_loss", str(config.robust_loss), ("null", *ROBUST))
        if config.robust_loss and innermost(inner).loss is mse:
            raise RrecError(
                f"defense.robust_loss={config.robust_loss}: loss=mse has no candidates to tell apart; use null"
            )
        if config.kappa <= 0:
            raise RrecError(f"defense.kappa={config.kappa}: a margin above 0")
        worst = Plain(partial(squared_hinge, kappa=config.kappa)) if config.robust_loss else None
        super().__init__(inner, attack, clean=clean, robust=robust, worst=worst)

    def introduce(self, model: RecModel, data: Data) -> None:
        self.attack = self.attack.prepared(model, data)

    def climbed(self, at: Shifted, batch: Batch) -> Scalar:
        if self.attack.climbs != HINGE:
            return self.inner
        steps = batch.history is not None and batch.history.steps is not None  # examples are no rows there
        rows = not steps and self.attack.scope(at, batch) == "row"

        def hinge(at: Shifted, batch: Batch) -> Tensor:
            values = lead(at(batch), batch)
            return values if rows else values.mean()

        return hinge
