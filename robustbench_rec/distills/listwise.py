from torch import Tensor

from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import Mixture, OverMixtures, divergence


@distills.register
class Listwise(OverMixtures):
    """T² KL(teacher ‖ student) between the softmaxes of a list for each user: the teacher's best items and random ones.

    The list is the teacher's `top` items that the user has no training event with (fewer where a user has fewer), and
    what `uniform` draws from the catalogue find beside them and training items, each once, anew every epoch. With
    `seen=true` training items are candidates as any other. temperature: T. standardise: z-score each list of scores
    first, since the scale of dot products is arbitrary (logit standardisation). A standard form (ListNet with softmax
    lists), not one paper's method.
    """

    Config = Mixture

    def apart(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        return divergence(student, taught, there)
