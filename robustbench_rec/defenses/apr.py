from typing import ClassVar

from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._rows import Rows


@defenses.register
class APR(Rows):
    """Adversarial personalised ranking: L(θ) + λ · L(θ + δ), δ on the embedding rows (He et al., SIGIR 2018).

    eps: l2 radius of every row; absolute with relative=no as in the paper (ε = 0.5), of the row's own norm with own.
    weight: λ. steps, step_size: of the ascent, sizes in radii; 1 and 1 in the paper, 10 or 25 and 0.25 are the
    multi-step perturbations of Anelli et al. (MSAP, 2020). direction: gradient, or random for the control of the
    paper, Gaussian directions of the same norms.

    The gradients of all samples of a batch that touch a row are summed before the row is normalised. Rows that the loss
    of a batch does not reach stay as they are; on a graph it reaches those around the batch too. With random all rows
    move, those to no effect. Differences from the published code: no pretrained
    start (train a run first and go on from it with `rrec finetune` for that), no clipping of the margin, mean loss, not
    sum. From that of MSAP: every step is projected on the same l2 ball that one step has, not on a box whose corners
    are √dim as far.
    """

    surface: ClassVar[str] = "embedding"
