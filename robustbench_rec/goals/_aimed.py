"""Goals about given items."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Full, Moved, Result
from robustbench_rec.goal import Goal
from robustbench_rec.shifted import Shifted
from robustbench_rec.targets import targets


@dataclass
class AimedConfig:
    """items: original ids, null to draw `count` of them from a stratum of popularity, by seed."""

    k: int
    items: list[str] | None
    stratum: str
    count: int
    seed: int


class Aimed(Goal):
    """About the exposure of target items to those who do not have them. upwards: 1 where more is wanted, or -1."""

    told: ClassVar[str] = "t_"
    verb: ClassVar[str]
    upwards: ClassVar[int]

    def __init__(self, config: AimedConfig, data: Data) -> None:
        if config.k < 1:
            raise RrecError(f"goal.k={config.k}: at least 1")
        self.k = config.k
        self.items = targets(data, config.items, stratum=config.stratum, count=config.count, seed=config.seed)
        named = [data.item_ids[each] for each in self.items.tolist()]
        which = "" if config.items is not None else f"{config.stratum} "
        self.words = f"{self.verb} {which}items {', '.join(named)}"

    def aims(self, users: Tensor) -> Tensor:
        return self.items.expand(len(users), -1)

    def serves(self, metric: str, *, smaller: bool) -> int:
        if not metric.startswith("t_"):
            return super().serves(metric, smaller=smaller)
        return -self.upwards if metric == "t_rank" else self.upwards

    def measure(self, judging: Evaluator[Any], at: Shifted | Moved, part: str, judged: Result) -> Result:
        return full(judging).exposure(at, part, self.items)


def full(judging: Evaluator[Any]) -> Full:
    """RrecError unless the whole catalogue is ranked: elsewhere a target may be no candidate."""
    if not isinstance(judging, Full):
        raise RrecError("a goal about given items needs protocol=full, where every item is a candidate")
    return judging
