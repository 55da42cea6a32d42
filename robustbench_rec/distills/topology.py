from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distills
from robustbench_rec.distills._experts import Experts
from robustbench_rec.distills._vectors import KINDS, Entities, OverVectors, Sampled
from robustbench_rec.errors import RrecError


@distills.register
class Topology(OverVectors):
    """Topology distillation: who is similar to whom, not where anybody is (Kang et al., KDD 2021).

    groups=0 is FTD: (cos(t_a, t_b) − cos(s_a, s_b))² between the users and items of a batch. With groups it is HTD: the
    same within each group, and between everybody and the mean of each group, where a gate on the teacher's vector puts
    everybody into one group. The gate is trained with an expert a group that rebuilds the teacher's vectors (as `de`),
    whose error counts `assignment`. temperature: of its Gumbel-softmax. Means over pairs, where the paper sums; the
    means of groups are constants for the gradient, as in the released code.
    """

    @dataclass
    class Config(Sampled):
        groups: int
        temperature: float
        assignment: float

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.groups < 0 or config.temperature <= 0 or config.assignment < 0:
            raise RrecError(
                f"distill with groups={config.groups}, temperature={config.temperature}, assignment="
                f"{config.assignment}: groups, assignment >= 0 and temperature > 0 are needed"
            )
        sizes = [self.sizes[kind] for kind in KINDS]
        if sizes[0] != sizes[1]:
            raise RrecError(
                f"distill 'topology': users and items have vectors of other sizes, {sizes[0]} and {sizes[1]}"
            )
        self.config = config
        self.experts = Experts(config.groups, *sizes[0]) if config.groups else None

    def compare(self, entities: list[Entities]) -> Tensor:
        student, teacher = (torch.cat([getattr(each, side) for each in entities]) for side in ("student", "teacher"))
        if self.experts is None:
            return apart(student, student, teacher, teacher)
        shares = self.experts.choose(teacher, self.config.temperature, self.generator)
        rebuilt = (teacher - self.experts(student, shares)).square().sum(1).mean()
        group = shares.detach().argmax(1)
        within = group[:, None] == group
        members = F.one_hot(group, self.config.groups).to(student.dtype)
        members = members[:, members.any(0)]
        means = [(members.T @ each.detach()) / members.sum(0)[:, None] for each in (student, teacher)]
        inside, to_groups = (
            apart(student, student, teacher, teacher, within),
            apart(student, means[0], teacher, means[1]),
        )
        total: Tensor = inside + to_groups + self.config.assignment * rebuilt
        return total


def apart(a: Tensor, b: Tensor, c: Tensor, d: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean of (cos(a_i, b_j) − cos(c_i, d_j))² over the pairs that count."""
    a, b, c, d = (F.normalize(each, dim=1) for each in (a, b, c, d))
    found = (a @ b.T - c @ d.T).square()
    return found.mean() if counts is None else (found * counts).sum() / counts.sum()
