from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adaptation, Adapting, LoRA, freeze_body, layers
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@adaptations.register
class LowRank(Adapting):
    """Low-rank maps beside the frozen linear maps of the body, and the head (Hu et al., ICLR 2022).

    rank: of each. alpha: they count α/rank, 2 · rank is usual. dropout: of their input. They start as zero.
    """

    Config = Adaptation

    def __init__(self, config: Adaptation) -> None:
        if config.rank < 1 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"adaptation.rank={config.rank}, dropout={config.dropout}: rank >= 1 and dropout in [0, 1) are needed"
            )
        self.config = config

    def __call__(self, model: RecModel) -> None:
        found = [(owner, leaf) for owner, leaf in layers(model) if not isinstance(owner, LoRA)]
        if not found or any(isinstance(each, LoRA) for each in model.modules()):
            name = type(model).__module__.rpartition(".")[2]
            told = "has LoRA already: set model.lora" if found else "has no linear maps in its body: adaptation=adapter"
            raise RrecError(f"model '{name}' {told} or adaptation=head")
        freeze_body(model)
        for owner, leaf in found:
            setattr(owner, leaf, LoRA(owner.get_submodule(leaf), self.config))
