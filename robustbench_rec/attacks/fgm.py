from dataclasses import dataclass

from robustbench_rec.ascent import Ascent, Budget
from robustbench_rec.attacks import attacks


@attacks.register
@dataclass(frozen=True, init=False)
class FGM(Ascent):
    """Fast gradient method: one step of the full budget along the normalised gradient (Miyato et al., ICLR 2017).

    With the embedding surface, l2 rows and an absolute budget this is the perturbation of APR (He et al., SIGIR 2018).
    """

    @dataclass
    class Config(Budget):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(**config.ascent(), steps=1)
