from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adaptation, Adapting, LowRank, add_low_rank, freeze_body, matrices
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@adaptations.register
class LowRankMaps(Adapting):
    """Low-rank maps beside the frozen linear maps of the body, and the head (Hu et al., ICLR 2022).

    rank: of each. alpha: they count α/rank, 2 · rank is usual. dropout: of their input. They start as zero. In a
    pretrained transformer they stand on the projections of the attention, as those of `model.lora`; in a recurrent
    layer on its weight matrices.
    """

    Config = Adaptation

    def __init__(self, config: Adaptation) -> None:
        config.check("adaptation", 1)
        self.config = config

    def __call__(self, model: RecModel, data: Data) -> None:
        name = type(model).__module__.rpartition(".")[2]
        if any(isinstance(each, LowRank) for each in model.modules()):
            raise RrecError(f"model '{name}' has LoRA already: model.lora.rank=0, or adaptation=head")
        model.embody(data)
        found = matrices(model)
        if model.body and not found:
            raise RrecError(f"model '{name}' has no linear maps in its body: adaptation=head")
        freeze_body(model)
        add_low_rank(model, found, self.config)
