from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec import profiles
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Poison
from robustbench_rec.poisons import poisons
from robustbench_rec.threat import Threat


@poisons.register
class File(Poison):
    """The fake users of another run, against whatever model: how far a poison transfers.

    path: a run directory, or its poison.json. RrecError where the data is not what they were made for.
    """

    @dataclass
    class Config:
        path: str | None

    threat: ClassVar[Threat] = Threat(
        surface="training data", knowledge="transfer", scope="all users at once", budget="as stored"
    )

    def __init__(self, config: Config) -> None:
        if config.path is None:
            raise RrecError("poison=file needs poison.path=<directory of a run with a poison>")
        self.profiles = profiles.load(config.path, "poison.path")

    def __call__(self, data: Data) -> Data:
        return profiles.inject(data, self.profiles)
