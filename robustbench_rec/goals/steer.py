from dataclasses import dataclass
from typing import Any, ClassVar

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Moved, Result
from robustbench_rec.goals import goals
from robustbench_rec.goals._aimed import Aimed, AimedConfig, full
from robustbench_rec.shifted import Shifted


@goals.register
class Steer(Aimed):
    """Make everyone's list the given one: its items take the first places, in any order."""

    @dataclass
    class Config:
        items: list[str]

    verb = "steer to"
    losses: ClassVar[tuple[str, ...]] = ("promote", "promote_margin", "promote_softmax", "promote_rank")
    ensemble: ClassVar[tuple[str, ...]] = ("promote_softmax", "promote")
    hinge: ClassVar[str] = "promote_margin"
    upwards: ClassVar[int] = 1

    def __init__(self, config: Config, data: Data) -> None:
        if len(set(config.items)) < len(config.items):
            raise RrecError("goal.items: an item stands there twice")
        super().__init__(AimedConfig(len(config.items), config.items, "random", 0, 0), data)

    def measure(self, judging: Evaluator[Any], at: Shifted | Moved, part: str, judged: Result) -> Result:
        return full(judging).exposure(at, part, self.items, top_k=[self.k])
