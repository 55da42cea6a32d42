from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec.data import Data
from robustbench_rec.poison import Poison, Shill
from robustbench_rec.poisons import poisons
from robustbench_rec.threat import Threat


@poisons.register
class Clean(Poison):
    """The training data as it is, without fake users.

    Its config has the keys that all who make fake users share, without effect: so one line of overrides serves a sweep
    over poisons.
    """

    @dataclass
    class Config(Shill):
        pass

    threat: ClassVar[Threat] = Threat(surface="nothing", knowledge="none", scope="nobody", budget="nothing")

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, data: Data) -> Data:
        return data
