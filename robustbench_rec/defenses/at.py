from dataclasses import dataclass
from typing import Any

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.attacks import single
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective


@defenses.register
class AdversarialTraining(Adversarial):
    """Adversarial training on any surface with any attack: λ · L(θ) + (1 − λ) · L(θ + δ) (Madry et al., ICLR 2018).

    clean_weight: λ, so 1 is clean training. attack: the config of the inner attack, run anew for every batch.
    """

    @dataclass
    class Config:
        clean_weight: float
        attack: dict[str, Any]

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if not 0 <= config.clean_weight <= 1:
            raise RrecError(f"defense.clean_weight={config.clean_weight}: a share between 0 and 1")
        attack = single(config.attack)
        attack.check(model)
        super().__init__(inner, attack, clean=config.clean_weight, robust=1 - config.clean_weight)
