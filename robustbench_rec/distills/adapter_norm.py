import torch
from torch import Tensor

from robustbench_rec.adapters import changes
from robustbench_rec.batch import Batch
from robustbench_rec.distillation import Lesson, Term, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.errors import RrecError
from robustbench_rec.shifted import Shifted


@distills.register
class AdapterNorm(Term):
    """‖ΔW‖²_F of what low-rank maps and bottlenecks add to a frozen body, summed over them."""

    Config = Weighted

    def __init__(self, config: Weighted, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.weight and not changes(lesson.student):
            raise RrecError("distill 'adapter_norm': the student has no adapters; add adaptation=lora or adapter")

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        with torch.autocast(batch.users.device.type, enabled=False):
            return torch.stack(changes(at.model)).sum()
