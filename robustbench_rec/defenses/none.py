from dataclasses import dataclass

from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class Undefended(Objective):
    """No defence: plain training."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        value: Tensor = self.inner(at, batch)
        return value
