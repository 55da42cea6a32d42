"""What a lower precision changes in scores and lists."""

from typing import Any

import torch

from robustbench_rec.evaluation.base import Evaluator
from robustbench_rec.evaluation.ranking import Lists
from robustbench_rec.hardware import autocast
from robustbench_rec.shifted import Shifted


@torch.no_grad()
def divergence(judging: Evaluator[Any], at: Shifted, part: str, precision: str) -> dict[str, float]:
    """How far scores and lists in a precision are from those in fp32, at the same parameters.

    score_rmse: root mean squared difference of the scores of all candidates. overlap@k: share of the first k that both
    lists have, the mean over lists. lists@k: the number of lists whose first k differ, in items or in order. Ties go to
    the item that comes first in the catalogue; in bf16 there are many.
    """
    squares, count, lists = 0.0, 0, 0
    shared = dict.fromkeys(judging.judge.top_k, 0.0)
    differing = dict.fromkeys(judging.judge.top_k, 0)
    device = judging.data.train.users.device
    with judging.judged(at, part) as exact, judging.judged(at, part) as rough:
        for portion, one in zip(judging.portions(part), exact, strict=True):
            with autocast(precision, device):
                other = next(rough)
            kept = torch.ones_like(one, dtype=torch.bool)
            if isinstance(portion, Lists):
                kept[portion.excluded] = False
            squares += (one - other)[kept].double().square().sum().item()
            count += int(kept.sum())
            if not isinstance(portion, Lists):
                continue
            lists += len(one)
            first, second = (
                scores.masked_fill(~kept, float("-inf")).sort(dim=1, descending=True, stable=True).indices
                for scores in (one, other)
            )
            for k in shared:
                a, b = first[:, :k], second[:, :k]  # [B, k]
                shared[k] += (a[:, :, None] == b[:, None, :]).any(2).double().mean(1).sum().item()
                differing[k] += int((a != b).any(1).sum())
    found = {"score_rmse": (squares / count) ** 0.5}
    for k in shared if lists else ():
        found |= {f"overlap@{k}": shared[k] / lists, f"lists@{k}": float(differing[k])}
    return found
