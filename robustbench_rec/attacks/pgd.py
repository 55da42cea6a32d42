from dataclasses import dataclass

from robustbench_rec.ascent import Ascent, Budget
from robustbench_rec.attacks import attacks
from robustbench_rec.errors import RrecError


@attacks.register
@dataclass(frozen=True, init=False)
class PGD(Ascent):
    """Projected gradient descent: steepest steps, each projected on the ball (Madry et al., ICLR 2018).

    steps, restarts: how often. step_size: in radii, null is 2.5 / steps. random_start: uniform in the ball, for the
    first run too, which else starts at δ = 0. momentum: μ of g ← μ·g + ∇/‖∇‖₁ (MIM, Dong et al., CVPR 2018: 1). The
    point with the largest loss that was seen is returned, not the last one. Unlike MSAP (Anelli et al.), which clips
    multi-step perturbations of embeddings element by element and compares them with one-step ones in an l2 ball, every
    attack here stays in the ball that it names.
    """

    @dataclass
    class Config(Budget):
        steps: int
        step_size: float | None
        random_start: bool
        restarts: int
        momentum: float

    def __init__(self, config: Config) -> None:
        if not (config.steps or config.random_start or config.restarts > 1):
            raise RrecError("pgd with steps=0 moves nothing: at least 1, or random_start=true")
        super().__init__(
            **config.ascent(),
            steps=config.steps,
            step_size=2.5 / max(config.steps, 1) if config.step_size is None else config.step_size,
            random_start=config.random_start,
            restarts=config.restarts,
            momentum=config.momentum,
            best=True,
        )
