from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.distillation import Lesson, Term, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.errors import RrecError
from robustbench_rec.objective import Adding, Plain
from robustbench_rec.shifted import Shifted


@distills.register
class Robust(Term):
    """What the student says and what it says under a perturbation: symKL(p(x), p(x + ξ)) (+ its loss at x + ξ).

    by: the defence that perturbs, of which this is what it adds to the student's own loss, its own weights included:
    `smart`, `vat` (KL(p(x) ‖ p(x + ξ)), p(x) fixed), `gaussian`, `rdrop`, `neftune` (the loss at x + ξ alone). The
    teacher has no part in it. The same with a constant weight is the defence itself, which is then a part of the task.
    [R] After the abstract of arXiv:2510.27077; weight 0.5 and a warmup of 0.2 are those of the reconstruction.
    """

    @dataclass
    class Config(Weighted):
        by: dict[str, Any]

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        built = defenses.build(config.by, Plain(lesson.loss), lesson.student)
        if not isinstance(built, Adding):
            known = ", ".join(name for name in defenses if issubclass(defenses[name], Adding))
            raise RrecError(f"distill 'robust' by={config.by['name']}: that adds nothing beside a loss ({known} do)")
        self.by = built

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        return self.by.added(at, batch) if self.by.adds else torch.zeros((), device=batch.users.device)
