from dataclasses import dataclass, replace

from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import divergence
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Adding, Objective, Plain, innermost
from robustbench_rec.shifted import Shifted


@defenses.register
class RDrop(Adding):
    """Two dropout passes that are to agree: ½(L₁ + L₂) + a · ½(KL(p₁‖p₂) + KL(p₂‖p₁)) (Liang et al., NeurIPS 2021).

    weight: a. The losses are averaged, where the paper adds them, so that a = 0 is plain training. Around another
    defence, that defence's value takes the place of ½(L₁ + L₂). The divergence is that of
    `robustbench_rec.losses.divergence`. Needs a model with dropout.
    """

    @dataclass
    class Config:
        weight: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.weight < 0:
            raise RrecError(f"defense.weight={config.weight}: must not be negative")
        if not any(isinstance(each, Dropout) and each.p for each in model.modules()):
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no dropout here, which rdrop needs two draws of")
        super().__init__()
        self.config, self.inner, self.loss = config, inner, innermost(inner).loss
        self.adds = config.weight > 0

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if not self.adds:
            plain: Tensor = self.inner(at, batch)
            return plain
        first, second = at(batch), replace(at)(batch)  # each with an `encode()` of its own
        if isinstance(self.inner, Plain):
            value = 0.5 * (self.loss(first, batch) + self.loss(second, batch)).mean()
        else:
            value = self.inner(at, batch)
        return value + self._apart(first, second, batch)

    def added(self, at: Shifted, batch: Batch) -> Tensor:
        return self._apart(at(batch), replace(at)(batch), batch)

    def _apart(self, first: Output, second: Output, batch: Batch) -> Tensor:
        return 0.5 * self.config.weight * divergence(first, second, batch, self.loss).mean()
