import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import Mixture, OverMixtures, mean
from robustbench_rec.losses import bce, mse


@distills.register
class Pointwise(OverMixtures):
    """T² KL(teacher ‖ student) between two Bernoulli distributions for each item of a list (Hinton et al., 2015).

    For a student that learns ratings (loss=mse) it is the squared difference of the scores, whatever T. temperature,
    top, uniform, standardise: as in `listwise`, with null for false where the scores of both are ratings, or logits of
    a click (loss=bce). The items of a list are averaged.
    """

    Config = Mixture

    @property
    def comparable(self) -> bool:
        return (self.lesson.loss, self.lesson.teacher.loss) in ((mse, "mse"), (bce, "bce"))

    def apart(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        if self.lesson.loss is mse:
            return mean((student - taught).square(), there)
        share = taught.sigmoid()
        yes = share * (F.logsigmoid(taught) - F.logsigmoid(student))
        no = (1 - share) * (F.logsigmoid(-taught) - F.logsigmoid(-student))
        return mean(yes + no, there)
