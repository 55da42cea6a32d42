from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distills
from robustbench_rec.distills._experts import Experts
from robustbench_rec.distills._vectors import KINDS, Entities, OverVectors, Sampled
from robustbench_rec.errors import RrecError


@distills.register
class DE(OverVectors):
    """Distillation experts: ‖t − Σ_m g_m E_m(s)‖², from a student's vectors to the teacher's (Kang et al., CIKM 2020).

    experts: M, for users and for items. The gate sees the teacher's vector, since it is not needed later; its
    Gumbel-softmax has a temperature that falls from `hot` to `cold` over the epochs, geometrically. Averaged over the
    users and over the items of a batch, where the paper sums; vectors as the models have them.
    """

    @dataclass
    class Config(Sampled):
        experts: int
        hot: float
        cold: float

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.experts < 1 or not 0 < config.cold <= config.hot:
            raise RrecError(
                f"distill with experts={config.experts}, hot={config.hot}, cold={config.cold}: experts >= 1 and "
                "0 < cold <= hot are needed"
            )
        self.config = config
        self.experts = nn.ModuleDict({kind: Experts(config.experts, *self.sizes[kind]) for kind in KINDS})

    def prepare(self, epoch: int, generator: torch.Generator) -> None:
        super().prepare(epoch, generator)
        config = self.config
        self.temperature = config.hot * (config.cold / config.hot) ** (epoch / max(1, self.lesson.epochs - 1))

    def compare(self, entities: list[Entities]) -> Tensor:
        found = []
        for each in entities:
            experts = self.experts[each.kind]
            assert isinstance(experts, Experts)
            shares = experts.choose(each.teacher, self.temperature, self.generator)
            found.append((each.teacher - experts(each.student, shares)).square().sum(1).mean())
        return torch.stack(found).sum()
