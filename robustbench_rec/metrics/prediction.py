"""Metrics of single predictions: (scores `[N]`, labels `[N]`) -> one value.

Scores of clicks are logits, labels 0 or 1, and a click is predicted above a probability of 0.5; scores of ratings are
ratings.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

PredictionMetric = Callable[[Tensor, Tensor], Tensor]


def auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Probability that a random positive stands above a random negative, a tie counting half; NaN without both."""
    ordered, order = scores.sort()
    _, group, sizes = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0).double()
    ranks = (ends - (sizes - 1) / 2)[group]  # 1 … N, the mean rank among equals
    positive = labels[order] > 0
    n = positive.sum().double()
    found: Tensor = (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(labels) - n))
    return found


def logloss(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labels."""
    return F.binary_cross_entropy_with_logits(scores.double(), labels.double())


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Share of right predictions."""
    return ((scores > 0) == (labels > 0)).double().mean()


def precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Share of true clicks among the predicted ones; 0 where none is predicted."""
    return _hits(scores, labels) / (scores > 0).sum().clamp_min(1)


def recall(scores: Tensor, labels: Tensor) -> Tensor:
    """Share of the true clicks that are predicted; 0 where there is none."""
    return _hits(scores, labels) / (labels > 0).sum().clamp_min(1)


def f1(scores: Tensor, labels: Tensor) -> Tensor:
    """Harmonic mean of precision and recall; 0 where nothing is predicted or nothing is true."""
    return 2 * _hits(scores, labels) / ((scores > 0).sum() + (labels > 0).sum()).clamp_min(1)


def of_clicks(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Those metrics that are means over events, `[N]` before the mean, by name; of clicks."""
    scores, labels = scores.double(), labels.double()
    return {
        "logloss": F.binary_cross_entropy_with_logits(scores, labels, reduction="none"),
        "accuracy": ((scores > 0) == (labels > 0)).double(),
        "brier": (scores.sigmoid() - labels).square(),
    }


def of_ratings(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The same of ratings."""
    return {"mae": (scores.double() - labels.double()).abs()}


def no_positives(scores: Tensor, labels: Tensor) -> Tensor:
    """A flag: 1 where no click is predicted, so that precision and F1 are 0 by convention."""
    return (scores > 0).logical_not().all().double()


def rmse(scores: Tensor, labels: Tensor) -> Tensor:
    """Root of the mean squared error."""
    return (scores.double() - labels.double()).square().mean().sqrt()


def mae(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute error."""
    return (scores.double() - labels.double()).abs().mean()


def _hits(scores: Tensor, labels: Tensor) -> Tensor:
    return ((scores > 0) & (labels > 0)).sum().double()


CLICKS: dict[str, PredictionMetric] = {
    "accuracy": accuracy,
    "auc": auc,
    "f1": f1,
    "logloss": logloss,
    "no_positives": no_positives,
    "precision": precision,
    "recall": recall,
}
RATINGS: dict[str, PredictionMetric] = {"mae": mae, "rmse": rmse}
SMALLER = frozenset({"logloss", "no_positives", "mae", "rmse"})
"""Of which less is better."""
