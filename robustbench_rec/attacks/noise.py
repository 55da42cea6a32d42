from dataclasses import dataclass, replace
from typing import ClassVar

from robustbench_rec.ascent import Ascent, Budget
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat


@attacks.register
@dataclass(frozen=True, init=False)
class Noise(Ascent):
    """Random noise of exactly the budget's norm: the control that every gradient attack must beat.

    A direction uniform on the sphere (l2) or a random corner of the box (linf) in each unit; no gradient is used. With
    the same budget it differs from FGM or FGSM in the direction alone.
    """

    @dataclass
    class Config(Budget):
        pass

    threat: ClassVar[Threat] = replace(Ascent.threat, knowledge="none")

    def __init__(self, config: Config) -> None:
        super().__init__(**config.ascent(), steps=0)

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        generator = self.stream(batch)
        base = self.base(at, batch)
        radii, real = self.radii(base), base.real
        delta = {n: radii[n] * self.ball.surface(each, generator, real.get(n)) for n, each in base.items()}
        return at.shift(delta), batch
