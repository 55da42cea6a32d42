from dataclasses import dataclass

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adapting, Bottleneck, blocks, freeze_body
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@adaptations.register
class Adapter(Adapting):
    """Bottlenecks behind the frozen layers of the body, and the head (Houlsby et al., ICML 2019).

    size: of the bottleneck. dropout: of its input. They start as nothing.
    """

    @dataclass
    class Config:
        size: int
        dropout: float

    def __init__(self, config: Config) -> None:
        if config.size < 1 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"adaptation.size={config.size}, dropout={config.dropout}: size >= 1 and dropout in [0, 1) are needed"
            )
        self.config = config

    def __call__(self, model: RecModel) -> None:
        name, widths = type(model).__module__.rpartition(".")[2], model.widths
        found = list(blocks(model))
        if not found or len(widths) != len(found):
            raise RrecError(f"model '{name}' has no stack of layers in its body: adaptation=head, or none")
        freeze_body(model)
        for (stack, number), width in zip(found, widths, strict=True):
            stack[number] = Bottleneck(stack[number], width, self.config.size, self.config.dropout)
