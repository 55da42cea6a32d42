"""How well suspicion tells fake users from genuine ones."""

import torch
from torch import Tensor

from robustbench_rec.running import running


def auroc(scores: Tensor, fake: Tensor) -> float:
    """Probability that a fake user `[N]` scores above a genuine one, ties counted half; NaN without one of both."""
    positives, negatives = int(fake.sum()), int((~fake).sum())
    if not (positives and negatives):
        return float("nan")
    _, place, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place].double()  # the mean rank of ties
    above = ranks[fake].sum() - positives * (positives + 1) / 2
    return float(above) / (positives * negatives)


def average_precision(scores: Tensor, fake: Tensor) -> float:
    """Σ (R_n − R_{n−1}) P_n over the thresholds, those of ties once; NaN without a fake user."""
    if not bool(fake.any()):
        return float("nan")
    _, place, counts = torch.unique(-scores, return_inverse=True, return_counts=True)
    found = torch.zeros(len(counts), dtype=torch.double, device=scores.device).index_add(0, place, fake.double())
    precision = running(found, 0) / counts.cumsum(0)
    return float((precision * found).sum()) / int(fake.sum())


def flags(flagged: Tensor, fake: Tensor) -> dict[str, float]:
    """Of the flagged users `[N]`: precision, recall, F1, and the genuine ones among them; NaN where nothing counts."""
    hits = int((flagged & fake).sum())
    n_flagged, n_fake = int(flagged.sum()), int(fake.sum())
    return {
        "precision": hits / n_flagged if n_flagged else float("nan"),
        "recall": hits / n_fake if n_fake else float("nan"),
        "f1": 2 * hits / (n_flagged + n_fake) if n_flagged + n_fake else float("nan"),
        "genuine_lost": float(n_flagged - hits),
    }
