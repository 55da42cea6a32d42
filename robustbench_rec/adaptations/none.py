from dataclasses import dataclass

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adapting
from robustbench_rec.data import Data
from robustbench_rec.model import RecModel


@adaptations.register
class Unadapted(Adapting):
    """No adaptation: every parameter is trained."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, model: RecModel, data: Data) -> None:
        pass
