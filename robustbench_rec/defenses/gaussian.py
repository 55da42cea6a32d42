from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._inputs import real
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import divergence
from robustbench_rec.model import RecModel
from robustbench_rec.norms import gaussian
from robustbench_rec.objective import Adding, Objective, innermost
from robustbench_rec.shifted import Shifted, embedded, surface, tables


@defenses.register
class Gaussian(Adding):
    """Random smoothing of the embeddings: L(θ) + a · symKL(scores at θ, at θ + ξ) + b · L(θ + ξ), ξ Gaussian.

    sigma: ξ is sigma · rms(e) · N(0, 1) for each embedding e, of each event as it is read, where a model reads
    histories (never on padding), else of each row of the embedding tables and of what a frozen text encoder gave.
    consistency: a. noisy: b. The divergence is that of `robustbench_rec.losses.divergence`, between outputs with the
    same dropout masks. The random control of `smart`.
    """

    @dataclass
    class Config:
        sigma: float
        consistency: float
        noisy: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if min(config.sigma, config.consistency, config.noisy) < 0:
            raise RrecError(
                f"defense.sigma={config.sigma}, consistency={config.consistency}, noisy={config.noisy}: "
                "none may be negative"
            )
        super().__init__()
        self.events = embedded(model) if model.window and "text" not in model.needs else []
        self.rows = [] if self.events else tables(model) or surface(model, "embedding")
        self.config, self.inner, self.loss = config, inner, innermost(inner).loss
        self.adds = config.consistency > 0 or config.noisy > 0

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        value: Tensor = self.inner(at, batch)
        return value + self.added(at, batch) if self.adds else value

    def added(self, at: Shifted, batch: Batch) -> Tensor:
        there, parts = at.shift(self.noise(at, batch)), []
        if self.config.consistency:
            masks = Masks(at, batch)
            apart = divergence(masks(there, batch), masks(at, batch), batch, self.loss).mean()
            parts.append(self.config.consistency * apart)
        if self.config.noisy:
            parts.append(self.config.noisy * self.inner(there, batch))
        return torch.stack(parts).sum() if parts else torch.zeros((), device=batch.users.device)

    def noise(self, at: Shifted, batch: Batch) -> dict[str, Tensor]:
        """ξ of a batch."""
        if not self.events:
            return {name: self._drawn(each.detach()) for name, each in at.tensors(self.rows).items()}
        lengths = at.model.read_lengths(batch, at.encoded)
        return {name: real(self._drawn(each), lengths) for name, each in at.activations(self.events, batch).items()}

    def _drawn(self, vectors: Tensor) -> Tensor:
        return gaussian(vectors, self.config.sigma, self.generator)
