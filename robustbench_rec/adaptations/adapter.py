from dataclasses import dataclass

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adapting, Bottleneck, freeze_body, put_behind
from robustbench_rec.data import Data
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

    def __call__(self, model: RecModel, data: Data) -> None:
        model.embody(data)
        if model.body and not model.widths:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no layers in its body: adaptation=head")
        freeze_body(model)
        put_behind(
            model, model.widths, lambda base, width: Bottleneck(base, width, self.config.size, self.config.dropout)
        )
