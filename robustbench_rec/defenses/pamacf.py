import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._users import PerUser
from robustbench_rec.shifted import Shifted


@defenses.register
class PamaCF(PerUser):
    """Personalised magnitudes: APR on each triple's vectors, longer for long user vectors (Zhang et al., NeurIPS 2024).

    eps: l2 radius of every vector, before it is multiplied by c(u) = scale · σ(‖p_u‖² / mean ‖p‖² − 1), the mean over
    the batch; absolute with relative=no as in the paper, of the vector's own norm with own. weight: of the adversarial
    term. start: epochs before it begins; 5 in the released code.

    δ is on the vectors that are multiplied, after propagation in graph models, and of each sample by itself: a user
    who occurs twice in a batch has two. In a model of sequences the state at the step that is scored is the user
    vector. Needs sampled negatives.
    """

    def ratio(self, at: Shifted, batch: Batch, users: Tensor) -> Tensor:
        sizes = users.float().square().flatten(1).sum(1)
        return sizes / sizes.mean().clamp_min(torch.finfo(sizes.dtype).tiny)
