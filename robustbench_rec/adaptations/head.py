from dataclasses import dataclass

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adapting, freeze_body
from robustbench_rec.model import RecModel


@adaptations.register
class Head(Adapting):
    """The head alone: the body of the model is frozen, what is around it is trained (linear probing)."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, model: RecModel) -> None:
        freeze_body(model)
