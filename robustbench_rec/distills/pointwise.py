import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import Mixture, OverMixtures, mean


@distills.register
class Pointwise(OverMixtures):
    """T² KL(teacher ‖ student) between two Bernoulli distributions for each item of a list (Hinton et al., 2015).

    temperature, top, uniform, standardise: as in `listwise`. The items of a list are averaged.
    """

    Config = Mixture

    def apart(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        share = taught.sigmoid()
        yes = share * (F.logsigmoid(taught) - F.logsigmoid(student))
        no = (1 - share) * (F.logsigmoid(-taught) - F.logsigmoid(-student))
        return mean(yes + no, there)
