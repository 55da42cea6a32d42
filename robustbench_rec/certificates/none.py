from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec.certificates import certificates
from robustbench_rec.certified import Certificate, Certified
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.threat import Threat


@certificates.register
class Uncertified(Certificate):
    """No certificate: the checkpoint is judged as it is."""

    @dataclass
    class Config:
        pass

    threat: ClassVar[Threat] = Threat(surface="nothing", knowledge="none", scope="nobody", budget="nothing")
    unit: ClassVar[str] = "nothing"

    def __init__(self, config: Config) -> None:
        self.budgets, self.attacked = [], False

    def certify(self, loaded: Loaded, judging: Full, part: str) -> Certified:
        raise RrecError("certify=none proves nothing")

    def attack(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Result:
        raise RrecError("certify=none has no threat")
