"""rrec distill."""

from pathlib import Path

from robustbench_rec import checkpoint
from robustbench_rec.config import Distill
from robustbench_rec.data import Data
from robustbench_rec.distills import distills
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.train import train


def run(cfg: Distill, out: Path) -> dict[str, float]:
    """Train a student with a defence and the knowledge of a frozen teacher, both on the same data."""

    def wrap(objective: Objective, model: RecModel, data: Data) -> Objective:
        teacher = checkpoint.load(cfg.teacher, data_dir=cfg.data_dir, device=data.train.users.device, key="teacher")
        if teacher.data.fingerprint != data.fingerprint:
            raise RrecError(
                f"teacher={cfg.teacher} was trained on data {teacher.data.fingerprint[:12]}, the student's are "
                f"{data.fingerprint[:12]}: use the teacher's dataset, prepare and split settings"
            )
        frozen = Shifted(teacher.model.requires_grad_(False).eval())
        return distills.build(cfg.distill, objective, frozen, data)

    return train(cfg, out, "distill", wrap, {"distill": cfg.distill, "teacher": cfg.teacher})
