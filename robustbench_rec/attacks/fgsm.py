from dataclasses import dataclass

from robustbench_rec.ascent import Ascent, Budget
from robustbench_rec.attacks import attacks
from robustbench_rec.errors import RrecError


@attacks.register
@dataclass(frozen=True, init=False)
class FGSM(Ascent):
    """Fast gradient sign method: one step to the corner of the linf box (Goodfellow et al., ICLR 2015)."""

    @dataclass
    class Config(Budget):
        pass

    def __init__(self, config: Config) -> None:
        if config.norm != "linf":
            raise RrecError(f"attack 'fgsm' is defined for norm=linf, not {config.norm}; for l2 use attack=fgm")
        super().__init__(**config.ascent(), steps=1)
