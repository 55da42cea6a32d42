from typing import ClassVar

from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._rows import Rows


@defenses.register
class AMR(Rows):
    """Adversarial multimedia recommendation: L(θ) + λ · L(θ + δ), δ on features (Tang et al., TKDE 2020).

    eps: l2 radius of every row of a `feature_*` buffer, of the row's own norm with relative=own, absolute with no.
    weight: λ. steps, step_size, direction: as in APR. The features are those that the model has, of users, items or
    edges; the paper's are images of items alone. They are standardised numbers or text vectors and are not clipped to
    the range that occurs. No pretrained start.
    """

    surface: ClassVar[str] = "feature"
