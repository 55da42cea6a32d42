"""What the defences share that perturb rows of a surface."""

from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec.adversarial import Adversarial, check_steps
from robustbench_rec.ascent import Ascent
from robustbench_rec.defenses._directions import directed
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective


class Rows(Adversarial):
    """L(θ) + λ · L(θ + δ), δ in an l2 ball around each row of a surface."""

    surface: ClassVar[str]

    @dataclass
    class Config:
        eps: float
        weight: float
        relative: str
        steps: int
        step_size: float
        direction: str

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.weight < 0:
            raise RrecError(f"defense.weight={config.weight}: must not be negative")
        check_steps(config.steps)
        ball = Ball(eps=config.eps, norm="l2", per="row", relative=config.relative)
        ascent = Ascent(surface=self.surface, ball=ball, steps=config.steps, step_size=config.step_size)
        ascent.check(model)
        super().__init__(inner, directed(config.direction, ascent), clean=1.0, robust=config.weight)
