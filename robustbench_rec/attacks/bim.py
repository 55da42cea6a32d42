from dataclasses import dataclass

from robustbench_rec.ascent import Ascent, Budget
from robustbench_rec.attacks import attacks
from robustbench_rec.errors import RrecError


@attacks.register
@dataclass(frozen=True, init=False)
class BIM(Ascent):
    """The basic iterative method: small steps from δ = 0, the last point is returned (Kurakin et al., ICLR 2017 WS).

    steps: how often. Each step is 1 / steps of the radius, so the edge of the ball can just be reached, in any norm.
    """

    @dataclass
    class Config(Budget):
        steps: int

    def __init__(self, config: Config) -> None:
        if not config.steps:
            raise RrecError("bim with steps=0 moves nothing: at least 1")
        super().__init__(**config.ascent(), steps=config.steps, step_size=1 / max(config.steps, 1))
