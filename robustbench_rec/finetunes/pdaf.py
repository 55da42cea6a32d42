from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from robustbench_rec.adversarial import Adversarial, weight_ascent
from robustbench_rec.ascent import Ascent
from robustbench_rec.errors import RrecError
from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import Finetuning, first
from robustbench_rec.objective import Objective


@finetunes.register
class PDAF(Finetuning):
    """PDAF: RAWP-FT in rounds, the least robust modules chosen anew in each (Periodic Dynamic Adversarial Fine-Tuning).

    rounds: a round that does not raise the attacked quality on validation is undone. modules, gamma, per: as in
    RAWP-FT, but gamma grows evenly over `ramp` epochs of each round.

    Reconstructed from the authors' released code (a submission to AAAI 2026); unlike there, rounds are judged on
    validation.
    """

    @dataclass
    class Config:
        rounds: int
        modules: int
        gamma: float
        per: str
        ramp: int

    def __init__(self, config: Config) -> None:
        if config.rounds < 1 or config.ramp < 1:
            raise RrecError(f"finetune.rounds={config.rounds}, finetune.ramp={config.ramp}: at least 1 is needed")
        self.config, self.ascent = config, weight_ascent(config.gamma, config.per, 1)

    @property
    def rounds(self) -> int:
        return self.config.rounds

    def modules(self, criticality: Mapping[str, float]) -> list[str]:
        return first(criticality, self.config.modules)

    def objective(self, inner: Objective, criticality: Mapping[str, float], names: tuple[str, ...]) -> Objective:
        return _Ramped(inner, replace(self.ascent, names=names), self.config.ramp)


class _Ramped(Adversarial):
    """The perturbed loss, with a radius that grows over the first epochs."""

    def __init__(self, inner: Objective, full: Ascent, ramp: int) -> None:
        super().__init__(inner, full, clean=0.0, robust=1.0)
        self.full, self.ramp = full, ramp

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        eps = self.full.ball.eps * min(1.0, (epoch + 1) / self.ramp)
        self.attack = replace(self.full, ball=replace(self.full.ball, eps=eps))
