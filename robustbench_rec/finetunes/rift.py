from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import Finetuning, first
from robustbench_rec.objective import Objective


@finetunes.register
class RiFT(Finetuning):
    """RiFT: the most robust modules alone, on clean data, for clean quality (Zhu et al., ICCV 2023).

    modules: how many of the least critical ones, whose change harms robustness least. The interpolation keeps the most
    clean quality among what is as robust as the start, up to the tolerance (0.1 points of accuracy in the paper).

    Differences from the published code: criticality and choices are made on training and validation events, not on the
    test part; modules are named exactly; the ball holds at every step, and is that of each row and of 0.8 % where the
    paper has 10 % of each module (`criticality.per=layer criticality.eps=0.1`; the order of modules depends on it).
    Give `criticality.embedding_eps` for adversarial inputs as in the paper; 0 measures on clean ones.
    """

    raises: ClassVar[Literal["attacked", "clean"]] = "clean"

    @dataclass
    class Config:
        modules: int

    def __init__(self, config: Config) -> None:
        self.config = config

    def modules(self, criticality: Mapping[str, float]) -> list[str]:
        return first(criticality, self.config.modules, least=True)

    def objective(self, inner: Objective, criticality: Mapping[str, float], names: tuple[str, ...]) -> Objective:
        return inner
