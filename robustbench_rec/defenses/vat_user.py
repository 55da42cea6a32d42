import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._users import PerUser
from robustbench_rec.shifted import Shifted


@defenses.register
class VATUser(PerUser):
    """Vulnerability-aware: APR on each triple's vectors, longer for a user of small loss (Zhang et al., RecSys 2024).

    c(u) = scale · σ(mean ℓ / ℓ_u − 1), ℓ_u the sum of a user's losses in the batch, as in the released code, and the
    mean over its users: the sum makes an active user look hard. Everything else as in PamaCF. It has nothing to do with
    virtual adversarial training, which is `smart`.
    """

    @torch.no_grad()
    def ratio(self, at: Shifted, batch: Batch, users: Tensor) -> Tensor:
        losses = self.loss(at(batch), batch)
        owners, place = batch.owners.unique(return_inverse=True)
        sums = torch.zeros(len(owners), dtype=losses.dtype, device=losses.device).index_add(0, place, losses)
        return (sums.mean() / sums.clamp_min(torch.finfo(sums.dtype).tiny)).clamp_max(1e6)[place]
