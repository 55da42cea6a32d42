from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Ascent, Base
from robustbench_rec.errors import RrecError
from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import Finetuning
from robustbench_rec.norms import Ball, budget
from robustbench_rec.objective import Objective


@finetunes.register
class Soft(Finetuning):
    """Experimental: all modules under weight perturbation, the radius of each by its criticality.

    γ_l = γ · L · softmax(c_l / τ), with L modules and c_l the criticality as a share of the largest one; gamma: γ, the
    mean radius, per: as in RAWP-FT. temperature: τ; large: all alike, small: the most critical one alone.

    A reconstruction in the spirit of vulnerability-guided layer-wise training, of which only an abstract could be read.
    """

    @dataclass
    class Config:
        gamma: float
        per: str
        temperature: float

    def __init__(self, config: Config) -> None:
        if not config.temperature > 0:
            raise RrecError(f"finetune.temperature={config.temperature}: must be above 0")
        gamma = budget("gamma", config.gamma)
        self.config, self.ball = config, Ball(eps=gamma, norm="l2", per=config.per, relative="own")

    def modules(self, criticality: Mapping[str, float]) -> list[str]:
        return list(criticality)

    def objective(self, inner: Objective, criticality: Mapping[str, float], names: tuple[str, ...]) -> Objective:
        values = torch.tensor([criticality[name] for name in names], dtype=torch.double)
        scaled = values / values.max().clamp_min(1e-12) / self.config.temperature
        factors = dict(zip(names, (len(names) * scaled.softmax(0)).tolist(), strict=True))
        ascent = _Weighed(surface="weight", ball=self.ball, steps=1, names=names, factors=factors)
        return Adversarial(inner, ascent, clean=0.0, robust=1.0)


@dataclass(frozen=True, kw_only=True)
class _Weighed(Ascent):
    """Ascent whose radius differs between tensors. factors: by tensor name."""

    factors: Mapping[str, float]

    def radii(self, base: Base) -> dict[str, Tensor]:
        return {name: self.factors[name] * each for name, each in super().radii(base).items()}
