from dataclasses import dataclass

from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.denoising import Denoiser
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted


@defenses.register
class TruncatedLoss(Denoiser):
    """T-CE: the positives of a batch with the largest losses are left out (Wang et al., WSDM 2021: ADT).

    rate: share of the positives that is left out in the end. ramp: epochs over which it grows from 0, linearly; 0 for
    the full rate at once. With bce the negatives all stay; with bpr and softmax, where the paper has no form, an
    example is left out with its negatives. Differences from the released code: the rate counts positives alone (there
    positives and negatives, which with one negative each doubles it), the ramp counts epochs and ends where it leads
    to. The training loss is that of what is left: do not compare it between rates.
    """

    @dataclass
    class Config:
        rate: float
        ramp: int

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__(inner)
        if not (0 <= config.rate < 1 and config.ramp >= 0):
            raise RrecError(f"defense.rate={config.rate}, defense.ramp={config.ramp}: a rate in [0, 1) and ramp >= 0")
        self.config = config

    @property
    def waits(self) -> int:
        return min(self.config.ramp, 1)

    @property
    def rate(self) -> float:
        """Share that is left out in this epoch."""
        return self.config.rate * (min(1.0, self.epoch / self.config.ramp) if self.config.ramp else 1.0)

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if not self.rate:
            return self.inner(at, batch)  # type: ignore[no-any-return]
        losses, positive, counted = self.events(at(batch), batch)
        positive = positive & counted
        worst = losses.detach().masked_fill(~positive, float("-inf")).flatten()
        worst = worst.topk(round(self.rate * int(positive.sum()))).indices
        kept = counted.flatten().index_fill(0, worst, False).view_as(counted)
        return (losses * kept).sum() / kept.sum().clamp_min(1)
