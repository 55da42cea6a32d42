from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Evaluator, Moved, Result
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
    (null: numbers above the median are spared, the others lose; else the least frequent value loses).
    """

    @dataclass
    class Config:
        k: int
        attribute: str
        value: str | None

    losses: ClassVar[tuple[str, ...]] = ("topk", "softmax")
    ensemble: ClassVar[tuple[str, ...]] = ("topk", "softmax")

    def __init__(self, config: Config, data: Data) -> None:
        self.k = config.k
        losing, told = _losing(data, config.attribute, config.value)
        if not 0 < int(losing.sum()) < len(losing):
            raise RrecError(f"goal 'fairness': {told} leaves one of the two groups without users")
        self.losing = losing.to(data.train.users.device)
        self.words = f"fairness gap at the cost of {told}"

    def weigh(self, loss: Loss) -> Loss:
        share = self.losing.float().mean()
        weights = torch.where(self.losing, 1 / share, -1 / (1 - share))

        def weighed(output: Output, batch: Batch) -> Tensor:
            return loss(output, batch) * weights[batch.users]

        return weighed

    def serves(self, metric: str, *, smaller: bool) -> int:
        return 1 if metric.startswith("gap_") else super().serves(metric, smaller=smaller)

    def measure(self, judging: Evaluator[Any], at: Shifted | Moved, part: str, judged: Result) -> Result:
        lose = self.losing[judged.users]
        gaps = {
            f"gap_{name}": (each[~lose].nanmean() - each[lose].nanmean()).item()
            for name, each in judged.per_user.items()
        }
        return Result(gaps, judged.users, {})


def _losing(data: Data, attribute: str, value: str | None) -> tuple[Tensor, str]:
    import pandas as pd

    if attribute == ACTIVITY:
        column = pd.Series(torch.bincount(data.train.users.cpu(), minlength=data.n_users)[: data.n_genuine].numpy())
    else:
        table = data.user_table
        if table is None or attribute not in table:
            has = [ACTIVITY, *([] if table is None else map(str, table.columns))]
            raise unknown("user attribute", attribute, has)
        column = table[attribute][: data.n_genuine]
    if value is not None:
        found = column.astype(str) == value
        if not bool(found.any()):
            raise unknown(f"value of {attribute}", value, sorted(column.astype(str).unique())[:20])
        return torch.tensor(found.to_numpy(dtype=bool)), f"{attribute} {value}"
    column = numbers(column)
    if pd.api.types.is_numeric_dtype(column):
        middle = column.median()
        return torch.tensor((column <= middle).to_numpy(dtype=bool)), f"{attribute} at most {middle:g}"
    rarest = column.value_counts().index[-1]
    return torch.tensor((column == rarest).to_numpy(dtype=bool)), f"{attribute} {rarest}"
