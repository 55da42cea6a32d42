from dataclasses import dataclass

from robustbench_rec.adversarial import Adversarial
from robustbench_rec.ascent import Ascent
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective


@defenses.register
class APR(Adversarial):
    """Adversarial personalised ranking: L(θ) + λ · L(θ + δ), δ on the embedding rows (He et al., SIGIR 2018).

    eps: l2 radius of every row; absolute with relative=no as in the paper (ε = 0.5), of the row's own norm with own.
    weight: λ. δ is one gradient step; the gradients of all samples of a batch that touch a row are summed before the
    row is normalised, rows outside the batch stay as they are. Differences from the published code: no pretrained start
    (train a run first and go on from it with `rrec finetune` for that), no clipping of the margin, mean loss, not sum.
    """

    @dataclass
    class Config:
        eps: float
        weight: float
        relative: str

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.weight < 0:
            raise RrecError(f"defense.weight={config.weight}: must not be negative")
        ball = Ball(eps=config.eps, norm="l2", per="row", relative=config.relative)
        ascent = Ascent(surface="embedding", ball=ball, steps=1)
        ascent.check(model)
        super().__init__(inner, ascent, clean=1.0, robust=config.weight)
