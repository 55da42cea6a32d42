import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.adversarial import AdamProxy, Adversarial, shares, weight_ascent
from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted, tunable

PROXIES = ("sgd", "adam")
RESAMPLE = ("epoch", "batch")


@defenses.register
class RAWP(Adversarial):
    """Random adversarial weight perturbation: AWP on random layers with a jittered γ (Qian et al., KBS 2025).

    Each layer is perturbed with probability p; γ is multiplied by a factor uniform in jitter; both are drawn every
    epoch or every batch (resample). modules: of which layers, null for all that are trained. gamma, per, steps,
    clean_weight: as in AWP. proxy: sgd follows the true gradient, adam the running preconditioned one of the released
    code. Where no layer is chosen, the step is a plain one; what is best is not sought among epochs before the first
    with a layer, unless p is 0. The default γ, 0.12, is ours: released scripts have 0.001 to 0.009.

    Reconstructed from the laboratory's released code, not from the paper's text. Its defects are left out: one coin for
    all layers, model selection on test users, a perturbation that is restored under another mask than it was added
    with.
    """

    @dataclass
    class Config:
        gamma: float
        p: float
        jitter: list[float]
        resample: str
        per: str
        steps: int
        proxy: str
        clean_weight: float
        modules: list[str] | None

    idle: Tensor

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if not (
            0 <= config.p <= 1 and len(config.jitter) == 2 and 0 <= config.jitter[0] <= config.jitter[1] < math.inf
        ):
            raise RrecError(
                f"defense.p={config.p}, defense.jitter={config.jitter}: a probability and a range [low, high] needed"
            )
        for key, value, choices in (("proxy", config.proxy, PROXIES), ("resample", config.resample, RESAMPLE)):
            if value not in choices:
                raise unknown(f"defense.{key}", value, choices)
        clean, robust = shares(config.clean_weight)
        ascent = weight_ascent(config.gamma, config.per, config.steps)
        super().__init__(inner, ascent, clean=clean, robust=robust)
        self.config, self.names = config, tunable(model, config.modules)
        adam = config.proxy == "adam"
        self.proxy = AdamProxy({name: model.get_parameter(name) for name in self.names}) if adam else None
        self.full = replace(ascent, direction=self.proxy)
        self.register_buffer("idle", torch.zeros((), dtype=torch.long))  # epochs until a layer was chosen first

    @property
    def waits(self) -> int:
        return int(self.idle)

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator
        chosen = self._draw()
        if self.config.resample == "epoch" and self.config.p and not chosen and epoch == self.waits:
            self.idle += 1

    def start_batch(self) -> None:
        if self.config.resample == "batch":
            self._draw()
        if self.proxy is not None:
            self.proxy.learning = True

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        value = super().forward(at, batch)
        if self.proxy is not None:
            self.proxy.learning = False  # once a batch, however often what is around asks
        return value

    def _draw(self) -> tuple[str, ...]:
        low, high = self.config.jitter
        coins = torch.rand(len(self.names), generator=self.generator) < self.config.p
        factor = low + (high - low) * torch.rand((), generator=self.generator).item()
        chosen = tuple(name for name, coin in zip(self.names, coins.tolist(), strict=True) if coin)
        ball = replace(self.full.ball, eps=self.config.gamma * factor)
        self.attack = replace(self.full, ball=ball, names=chosen)
        return chosen
