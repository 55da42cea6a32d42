import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.distillation import Lesson, Term, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.shifted import Shifted


@distills.register
class Distance(Term):
    """‖θ − θ₀‖² of what is trained, θ₀ where training began, e.g. at `start=` (L2-SP, Li et al., ICML 2018)."""

    Config = Weighted

    def __init__(self, config: Weighted, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        self.trained = [name for name, each in lesson.student.named_parameters() if each.requires_grad]
        if config.weight:
            for number, name in enumerate(self.trained):
                self.register_buffer(f"start_{number}", lesson.student.get_parameter(name).detach().clone())

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        now = map(at.model.get_parameter, self.trained)  # not what a noise makes of it
        starts = [self.get_buffer(f"start_{number}") for number in range(len(self.trained))]
        return torch.stack([(each - start).square().sum() for each, start in zip(now, starts, strict=True)]).sum()
