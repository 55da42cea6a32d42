from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._noise import embedded, real, uniform
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Adding, Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class NEFTune(Adding):
    """Noisy embeddings in training: L(θ + ξ), ξ uniform in ±α/√(L d) on embedded events (Jain et al., ICLR 2024).

    alpha: α, the largest norm of the noise of a whole history; 5 to 15 in the paper. L is the true length of each
    history, not the padded one, and padding gets none. For models that read histories.
    """

    @dataclass
    class Config:
        alpha: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.alpha < 0:
            raise RrecError(f"defense.alpha={config.alpha}: must not be negative")
        self.names = embedded(model)
        if not self.names:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no embedded events, which neftune adds noise to: see defense=gaussian")
        super().__init__()
        self.config, self.inner = config, inner

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        there = at.shift(self.noise(at, batch)) if self.config.alpha else at
        value: Tensor = self.inner(there, batch)
        return value

    def added(self, at: Shifted, batch: Batch) -> Tensor:
        """The noisy loss, which is all of it."""
        return self.forward(at, batch)

    def noise(self, at: Shifted, batch: Batch) -> dict[str, Tensor]:
        """ξ of a batch."""
        assert batch.history is not None
        lengths = batch.history.lengths.clamp_min(1)[:, None, None]
        return {
            name: real(self.config.alpha / (lengths * each.shape[2]).sqrt() * uniform(each, self.generator), batch)
            for name, each in at.activations(self.names, batch).items()
        }
