from collections.abc import Mapping
from dataclasses import dataclass, replace

from robustbench_rec.adversarial import Adversarial, weight_ascent
from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import Finetuning, first
from robustbench_rec.objective import Objective


@finetunes.register
class RAWPFT(Finetuning):
    """RAWP-FT: the least robust modules alone, under weight perturbation of their own (Qian et al., KBS 2025).

    modules: how many of the most critical ones. gamma: l2 radius of the one ascent step at every batch, as a share of
    the norm of what `per` says: each row of a matrix, its whole layer (as defense=rawp has it by default) or element.

    After the released code of the RAWP line, reconstructed: there the proxy's learning rate of 0 switches the
    perturbation off, and epoch and interpolation are chosen on test users. Here the perturbation is real, added and
    removed on the same tensors, and every choice is made on validation. There gamma is 0.001 to 0.008, without effect;
    the default here is larger.
    """

    @dataclass
    class Config:
        modules: int
        gamma: float
        per: str

    def __init__(self, config: Config) -> None:
        self.config, self.ascent = config, weight_ascent(config.gamma, config.per, 1)

    def modules(self, criticality: Mapping[str, float]) -> list[str]:
        return first(criticality, self.config.modules)

    def objective(self, inner: Objective, criticality: Mapping[str, float], names: tuple[str, ...]) -> Objective:
        return Adversarial(inner, replace(self.ascent, names=names), clean=0.0, robust=1.0)
