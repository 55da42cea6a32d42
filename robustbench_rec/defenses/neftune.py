from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._inputs import real
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Adding, Objective
from robustbench_rec.shifted import Shifted, embedded


@defenses.register
class NEFTune(Adding):
    """Noisy embeddings in training: L(θ + ξ), ξ uniform in ±α/√(L d) on embedded tokens (Jain et al., ICLR 2024).

    alpha: α, the largest norm of the noise of a whole text or history; 5 to 15 in the paper. L is the true number of
    its tokens or events, not the padded one, and padding gets none. For models that embed the tokens of texts (in a
    pretrained encoder: adapted with LoRA) or the events of histories. The noise of a pretrained encoder is on what
    enters its first block, behind positions and, in BERT, a layer norm, which the paper has after the noise.
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
            frozen = ": its frozen encoder read the texts once, which model.lora.rank changes" if model.given else ""
            raise RrecError(
                f"model '{name}' has no embedded tokens or events, which neftune adds noise to{frozen}; "
                "see defense=gaussian"
            )
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
        lengths = at.model.read_lengths(batch, at.encoded)
        found = at.activations(self.names, batch)
        return {name: real(self._drawn(each, lengths), lengths) for name, each in found.items()}

    def _drawn(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        uniform = torch.rand(vectors.shape, generator=self.generator) * 2 - 1  # [n, L, D]
        sizes = self.config.alpha / (lengths.clamp_min(1)[:, None, None] * vectors.shape[2]).sqrt()
        return sizes * uniform.to(vectors)
