from dataclasses import dataclass

from robustbench_rec.data import Data
from robustbench_rec.poison import Poison
from robustbench_rec.poisons import poisons
from robustbench_rec.threat import Threat


@poisons.register
class Clean(Poison):
    """No fake users."""

    @dataclass
    class Config:
        pass

    threat = Threat(surface="nothing", knowledge="none", scope="nobody", budget="nothing")

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, data: Data) -> Data:
        return data
