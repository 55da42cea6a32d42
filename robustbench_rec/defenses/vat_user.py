import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._users import PerUser
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import margin
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, innermost
from robustbench_rec.shifted import Shifted


@defenses.register
class VATUser(PerUser):
    """Vulnerability-aware: APR on each triple's vectors, longer for a user of small loss (Zhang et al., RecSys 2024).

    c(u) = scale · σ(mean ℓ / ℓ_u − 1), ℓ_u the sum of a user's losses in the batch, as in the released code, and the
    mean over its users: the sum makes an active user look hard. Everything else as in PamaCF. It has nothing to do with
    virtual adversarial training, which is `vat`.
    """

    def __init__(self, config: PerUser.Config, inner: Objective, model: RecModel) -> None:
        if innermost(inner).loss is margin:
            raise RrecError("defense=vat_user divides by a user's losses, which loss=margin may leave below 0; use bpr")
        super().__init__(config, inner, model)

    @torch.no_grad()
    def ratio(self, at: Shifted, batch: Batch, users: Tensor) -> Tensor:
        losses = self.loss(at(batch), batch)
        owners, place = batch.owners.unique(return_inverse=True)
        sums = torch.zeros(len(owners), dtype=losses.dtype, device=losses.device).index_add(0, place, losses)
        return (sums.mean() / sums.clamp_min(torch.finfo(sums.dtype).tiny)).clamp_max(1e6)[place]
