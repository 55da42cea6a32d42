from dataclasses import dataclass, replace

from robustbench_rec.adversarial import Adversarial, shares, weight_ascent
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._directions import directed
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import tunable


@defenses.register
class AWP(Adversarial):
    """Adversarial weight perturbation: L(θ + v), v climbing L, ‖v_l‖ = γ‖w_l‖ in each layer (Wu et al., NeurIPS 2020).

    gamma: γ. per: layer, as in the paper, or row or element; with `layer` an embedding table shares one budget among
    all its rows and the few that a batch touches move far. steps: of the ascent, each of 2.5γ/steps if there are
    several. clean_weight: c in c · L(θ) + (1 − c) · L(θ + v); 0 in the paper. Only parameters with at least two
    dimensions that are trained move. direction: gradient, or random for a control, Gaussian directions of the same
    norms. Differences from the published code: the inputs are clean (defense=[awp,at] for both); the ascent needs no
    proxy network and the outer step is taken on θ itself, the gradient being the one at θ + v.
    """

    @dataclass
    class Config:
        gamma: float
        per: str
        steps: int
        clean_weight: float
        direction: str

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        clean, robust = shares(config.clean_weight)
        ascent = replace(weight_ascent(config.gamma, config.per, config.steps), names=tuple(tunable(model)))
        attack = directed(config.direction, ascent)
        super().__init__(inner, attack, clean=clean, robust=robust)
