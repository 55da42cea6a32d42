from dataclasses import dataclass

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adapting, Probe, freeze_body, put_behind
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@adaptations.register
class Head(Adapting):
    """The head alone: the body of the model is frozen, what is around it is trained (linear probing).

    A model that is nothing but its body gets a linear map of its last states, y + W y + b, which starts as nothing.
    """

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, model: RecModel, data: Data) -> None:
        freeze_body(model)
        if not model.trainable:
            put_behind(model, model.ends, Probe)
        if not model.trainable:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no head beside its body: adaptation=lora, or adapter")
