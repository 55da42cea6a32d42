"""How far the scores and the lists of two models, or of one in two precisions, are from each other."""

from dataclasses import dataclass
from typing import Any

import torch

from robustbench_rec.evaluation.base import Evaluator, Moved
from robustbench_rec.evaluation.ranking import Lists
from robustbench_rec.hardware import autocast
from robustbench_rec.shifted import Shifted


@dataclass(frozen=True)
class Side:
    """One of the two: a model at a point, or with inputs of its own, and the precision that it computes in."""

    at: Shifted | Moved
    precision: str


@torch.no_grad()
def divergence(judging: Evaluator[Any], part: str, one: Side, other: Side) -> dict[str, float]:
    """How far scores and lists of a side are from those of another one, on the candidates that are judged.

    score_rmse: root mean squared difference of the scores of all candidates. overlap@k: share of the first k that both
    lists have, the mean over lists. lists@k: the number of lists whose first k differ, in items or in order. Ties go to
    the item that comes first in the catalogue; in bf16 there are many.
    """
    squares, count, lists = 0.0, 0, 0
    shared = dict.fromkeys(judging.judge.top_k, 0.0)
    differing = dict.fromkeys(judging.judge.top_k, 0)
    device = judging.data.train.users.device
    with judging.judged(one.at, part) as ours, judging.judged(other.at, part) as theirs:
        for portion in judging.portions(part):
            found = []
            for side, scores in ((one, ours), (other, theirs)):
                with autocast(side.precision, device):
                    found.append(next(scores))
            kept = torch.ones_like(found[0], dtype=torch.bool)
            if isinstance(portion, Lists):
                kept[portion.excluded] = False
            squares += (found[0] - found[1])[kept].double().square().sum().item()
            count += int(kept.sum())
            if not isinstance(portion, Lists):
                continue
            lists += len(kept)
            first, second = (
                scores.masked_fill(~kept, float("-inf")).sort(dim=1, descending=True, stable=True).indices
                for scores in found
            )
            for k in shared:
                a, b = first[:, :k], second[:, :k]  # [B, k]
                shared[k] += (a[:, :, None] == b[:, None, :]).any(2).double().mean(1).sum().item()
                differing[k] += int((a != b).any(1).sum())
    apart = {"score_rmse": (squares / count) ** 0.5}
    for k in shared if lists else ():
        apart |= {f"overlap@{k}": shared[k] / lists, f"lists@{k}": float(differing[k])}
    return apart
