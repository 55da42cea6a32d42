from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.norms import gaussian
from robustbench_rec.shifted import Shifted, tables


@noises.register
class EmbeddingNoise(Noise):
    """Embeddings with Gaussian noise: e + level · rms(e) · N(0, 1) for each row of each table.

    level: the norm of the noise as a share of that of its row, about. Each step of a training has a draw of its own and
    sees the loss under it alone, L(θ + ξ), with all that a defence and a distillation add to it; an auxiliary phase has
    none. A finished model has one draw, the same for every user. Tables are those of the embedding surface and what
    `RecModel.given` names. `defense=gaussian` has L(θ) beside it, `attack=noise` the norm exactly.
    """

    @dataclass
    class Config(Level):
        pass

    most = float("inf")

    def change(self, data: Data, generator: torch.Generator) -> Data:
        return data

    def delta(self, model: RecModel, generator: torch.Generator) -> dict[str, Tensor]:
        if not self.level:
            return {}
        found = Shifted(model).tensors(tables(model))
        if not found:
            raise RrecError(f"noise 'embedding': model '{type(model).__module__.rpartition('.')[2]}' has no embeddings")
        return {name: gaussian(each.detach(), self.level, generator) for name, each in found.items()}
