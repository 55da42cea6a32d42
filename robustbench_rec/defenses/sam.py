from typing import ClassVar

from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._sharpness import Sharpness


@defenses.register
class SAM(Sharpness):
    """Sharpness-aware minimisation: L(θ + v), v = ρ g/‖g‖ over all parameters at once (Foret et al., ICLR 2021).

    rho: ρ, an absolute length, biases included. clean_weight: c in c · L(θ) + (1 − c) · L(θ + v); 0 in the paper. The
    outer step is taken on θ itself with the gradient at θ + v, and the penalty of the model is not climbed. The default
    0.05 is the paper's, for images; where nearly all parameters are embeddings it is next to nothing (on `mf` and
    ML-100K it changes the gradient by half a percent, 2 by a fifth).
    """

    scaled: ClassVar[bool] = False
