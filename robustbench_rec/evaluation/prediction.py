"""Judges single predictions: whether an event is a click, or how it is rated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.config import Judge
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation.base import CELLS, PARTS, Evaluator, Portion, Predicted, Result
from robustbench_rec.metrics import prediction, uncertainty
from robustbench_rec.metrics.direction import LESS
from robustbench_rec.metrics.prediction import PredictionMetric
from robustbench_rec.negatives import Negatives

ROWS = 2**16  # events scored at once


@dataclass(frozen=True)
class Events(Portion):
    """labels: `[B, C]`."""

    labels: Tensor


class Prediction(Evaluator[Events]):
    """Every event of a part by itself; values are over all events, not means over users."""

    known: ClassVar[Mapping[str, PredictionMetric]]
    smaller: ClassVar[frozenset[str]] = LESS

    def __init__(self, data: Data, judge: Judge, *, seed: int = 0, alone: bool = False) -> None:
        super().__init__(data, judge, seed=seed, alone=alone)
        for name in judge.metrics or ():
            if name not in self.known:
                raise unknown(f"metric of protocol '{judge.protocol}'", name, self.known)

    def names(self) -> list[str]:
        return list(self.judge.metrics or self.metrics)

    def label(self, portion: Events, batch: Batch) -> Batch:
        return replace(batch, labels=portion.labels)

    def split(self, part: str) -> Iterator[Events]:
        events = self.data.part(part)
        for rows in torch.arange(len(events), device=events.users.device).split(1 if self.alone else min(ROWS, CELLS)):
            context = None if events.context is None else events.context[rows]
            yield Events(events.users[rows], events.items[rows, None], context, events.values[rows, None])

    def measure(self, scores: Iterator[Tensor], portions: list[Events], names: list[str]) -> Result:
        found = torch.cat([each.flatten() for each in scores])
        if not bool(found.isfinite().all()):
            raise RrecError("a score is NaN or infinite: such a model cannot be judged (lower lr or eps)")
        labels = torch.cat([each.labels.flatten() for each in portions])
        users = torch.cat([each.users.repeat_interleave(each.labels.shape[1]) for each in portions])
        items = torch.cat([each.items.flatten() for each in portions if each.items is not None])
        metrics = {name: self.known[name](found, labels).item() for name in names}
        return Result(metrics, torch.unique(users), {}, predicted=Predicted(users, items, found, labels))


class Clicks(Prediction):
    """Click prediction. Where the data has positives only, each has `n_negatives` (1) sampled items beside it.

    They are drawn once, uniform over what the user has no event with in the part or in those before it, nor had in
    train before a noise.
    """

    known: ClassVar[Mapping[str, PredictionMetric]] = {**prediction.CLICKS, **uncertainty.OF_CLICKS}
    metrics: ClassVar[tuple[str, ...]] = (
        *("auc", "logloss", "accuracy", "precision", "recall", "f1", "no_positives"),
        *("ece", "adaptive_ece", "mce", "brier", "sharpness", "aurc", "error_auroc"),
    )
    monitor: ClassVar[str] = "auc"
    draws: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("bce",)
    ensemble: ClassVar[tuple[str, ...]] = ("bce",)

    def split(self, part: str) -> Iterator[Events]:
        values = self.data.part(part).values
        if not bool(((values == 0) | (values == 1)).all()):
            raise RrecError(
                f"protocol=clicks: dataset '{self.data.name}' has ratings; prepare.label=<rating> makes clicks of them"
            )
        if any(bool((self.data.part(each).values == 0).any()) for each in ("train", *PARTS)):
            yield from super().split(part)
            return
        count = 1 if self.judge.n_negatives is None else self.judge.n_negatives
        if count < 1:
            raise RrecError(f"n_negatives={count}: dataset '{self.data.name}' has clicks only, at least 1 is needed")
        hidden = [] if self.data.hidden is None else [self.data.hidden]
        before = [self.data.valid] if part == "test" else []
        draws = Negatives(self.data, [self.data.taught, *hidden, *before, self.data.part(part)])
        generator = torch.Generator().manual_seed(self.seed)
        chunks = list(super().split(part))
        drawn = draws.draw(self.data.part(part).users, count, generator)  # at once: the same for chunks of any size
        for each, others in zip(chunks, drawn.split([len(each.users) for each in chunks]), strict=True):
            assert each.items is not None
            items = torch.cat([each.items, others], 1)  # [B, 1 + n]
            labels = torch.zeros(items.shape, device=items.device)
            labels[:, 0] = 1
            yield Events(each.users, items, each.context, labels)


class Ratings(Prediction):
    """Rating prediction: scores are ratings."""

    known: ClassVar[Mapping[str, PredictionMetric]] = prediction.RATINGS
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae")
    monitor: ClassVar[str] = "rmse"
    losses: ClassVar[tuple[str, ...]] = ("mse",)
    ensemble: ClassVar[tuple[str, ...]] = ("mse",)
