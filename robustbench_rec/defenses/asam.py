from typing import ClassVar

from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._sharpness import Sharpness


@defenses.register
class ASAM(Sharpness):
    """Adaptive SAM: L(θ + v), v = ρ T²g/‖Tg‖ with T = |θ|, rescaled layers count alike (Kwon et al., ICML 2021).

    rho: ρ. clean_weight: as in SAM. T has no constant added to |θ|, unlike in the released code, so that the scale of a
    layer cancels exactly; a parameter at 0 does not move. It counts for biases too. The default 0.5 is the paper's, and
    little for embeddings, as in SAM.
    """

    scaled: ClassVar[bool] = True
