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
class ReweightedLoss(Denoiser):
    """R-CE: a loss weighs as much as its event is likely, p^β, so that hard ones count less (Wang et al., WSDM 2021).

    beta: β; 0 is plain training. p is the probability that the model gives the label of an event, exp(−loss): σ(s) of a
    positive and 1 − σ(s) of a negative with bce as in the paper, the softmax with softmax, σ of the margin with bpr, of
    several negatives the geometric mean. Weights are constants for the gradient and are not normalised.
    """

    @dataclass
    class Config:
        beta: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        super().__init__(inner)
        if config.beta < 0:
            raise RrecError(f"defense.beta={config.beta}: must not be negative")
        self.config = config

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        events = self.events(at(batch), batch)
        return events.mean((-self.config.beta * events.losses).detach().exp() * events.losses)
