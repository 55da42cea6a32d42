from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Evaluator, Moved, Ranking, Result
from robustbench_rec.evaluation.slices import numbers
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.losses import Loss
from robustbench_rec.shifted import Shifted

ACTIVITY = "activity"


@goals.register
class Fairness(Goal):
    """Widen the gap between two groups of users: one keeps its quality, the other loses it.

    attribute: a column of the user table, or "activity", the number of training events. value: of those who are to lose
    (null: numbers above the median are spared, the others lose; else the least frequent value loses). Users of whom
    nothing is known are in neither group. What is climbed is the difference of the mean losses of the groups' users who
    are judged.
    """

    @dataclass
    class Config:
        k: int
        attribute: str
        value: str | None

    losses: ClassVar[tuple[str, ...]] = ("topk", "softmax")
    ensemble: ClassVar[tuple[str, ...]] = ("topk", "softmax")
    told: ClassVar[str] = "gap_"

    def __init__(self, config: Config, data: Data) -> None:
        self.k = config.k
        losing, known, told = _losing(data, config.attribute, config.value)
        if not bool(losing.any()) or not bool((known & ~losing).any()):
            raise RrecError(f"goal 'fairness': {told} leaves one of the two groups without users")
        device = data.train.users.device
        self.losing, self.spared = losing.to(device), (known & ~losing).to(device)
        self.words = f"fairness gap at the cost of {told}"
        if unknown_users := int((~known).sum()):
            self.words += f", {unknown_users} users of whom it is not known left out"

    def weigh(self, loss: Loss, users: Tensor) -> Loss:
        lists = torch.bincount(users, minlength=len(self.losing))  # of each user, whose mean counts
        losing, spared = (int((group & (lists > 0)).sum()) for group in (self.losing, self.spared))
        if not losing or not spared:
            raise RrecError(f"{self.words}: one of the two groups has nobody who is judged")
        weights = len(users) * (self.losing / losing - self.spared / spared) / lists.clamp_min(1)

        def weighed(output: Output, batch: Batch) -> Tensor:
            return loss(output, batch) * weights[batch.users]

        return weighed

    def serves(self, metric: str, *, smaller: bool) -> int:
        return 1 if metric.startswith("gap_") else super().serves(metric, smaller=smaller)

    def measure(self, judging: Evaluator[Any], at: Shifted | Moved, part: str, judged: Result) -> Result:
        if not isinstance(judging, Ranking):
            raise RrecError("goal 'fairness' compares lists of users, which protocol=full and sampled have")
        losing, spared = self.losing[judged.users], self.spared[judged.users]
        gaps = {
            f"gap_{name}": (each[spared].nanmean() - each[losing].nanmean()).item()
            for name, each in judged.per_user.items()
        }
        return Result(gaps, judged.users, {})


def _losing(data: Data, attribute: str, value: str | None) -> tuple[Tensor, Tensor, str]:
    """Who loses and of whom that is known, bool `[U]`, and the words for it."""
    import pandas as pd

    def of(users: "pd.Series[bool]") -> Tensor:
        return torch.tensor(users.to_numpy(dtype=bool))

    if attribute == ACTIVITY:
        column = pd.Series(torch.bincount(data.train.users.cpu(), minlength=data.n_users)[: data.n_genuine].numpy())
    else:
        table = data.user_table
        if table is None or attribute not in table:
            has = [ACTIVITY, *([] if table is None else map(str, table.columns))]
            raise unknown("user attribute", attribute, has)
        column = table[attribute][: data.n_genuine]
    known = of(column.notna())
    if value is not None:
        found = column.astype(str) == value
        if not bool(found.any()):
            raise unknown(f"value of {attribute}", value, sorted(column.astype(str).unique())[:20])
        return of(found), known, f"{attribute} {value}"
    column = numbers(column)
    if pd.api.types.is_numeric_dtype(column):
        middle = column.median()
        return of((column <= middle).fillna(False)), known, f"{attribute} at most {middle:g}"
    rarest = column.value_counts().index[-1]
    return of(column.eq(rarest).fillna(False)), known, f"{attribute} {rarest}"
