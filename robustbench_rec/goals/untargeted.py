from dataclasses import dataclass

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals


@goals.register
class Untargeted(Goal):
    """Spoil what the users are shown: relevant items leave the first k, predictions become wrong."""

    @dataclass
    class Config:
        k: int

    words = "untargeted"

    def __init__(self, config: Config, data: Data) -> None:
        if config.k < 1:
            raise RrecError(f"goal.k={config.k}: at least 1")
        self.k = config.k
