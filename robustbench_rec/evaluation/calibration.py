"""What validation teaches about the scores: probabilities that are right, a threshold, an interval."""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.base import Evaluator, Result
from robustbench_rec.evaluation.prediction import Clicks, Ratings
from robustbench_rec.metrics import prediction, uncertainty
from robustbench_rec.shifted import Shifted

LEVEL = 0.9
"""Of the intervals of ratings."""
CHANGED = ("logloss", "ece", "adaptive_ece", "mce", "brier", "sharpness")
DECIDED = ("accuracy", "precision", "recall", "f1", "no_positives")


class Calibrated:
    """What was fitted on validation, and each metric of a part before and after.

    Of clicks: a temperature, the same for probabilities of all clicks, and the threshold of the best F1. Of ratings:
    the half width of an interval around the score that has 9 of 10 ratings. Of a ranking: slope and shift that make
    probabilities of a hit from the scores in the list (Platt), as scores of a ranking need not be logits; and where a
    model says how far its scores are in doubt, the mean doubt, AURC and error-AUROC of what is listed by it.
    fitted: by name. frame: metric, before, after. reliability: bin, cases, probability, share; before and after.
    """

    def __init__(self, judging: Evaluator[Any], at: Shifted, part: str, result: Result) -> None:
        if part == "valid":
            raise RrecError("calibrate=true part=valid: validation is what is calibrated on; judge part=test")
        valid = judging.evaluate(at, "valid")
        self.fitted: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.curves: list[pd.DataFrame] = []
        if isinstance(judging, Clicks):
            self._clicks(*_predicted(valid), *_predicted(result))
        elif isinstance(judging, Ratings):
            self._ratings(*_predicted(valid), *_predicted(result))
        else:
            for k in judging.judge.top_k:
                self._list(k, *_listed(valid, k), *_listed(result, k))
            self._doubted(judging, at, part, result)

    def _doubted(self, judging: Evaluator[Any], at: Shifted, part: str, result: Result) -> None:
        """Of a model that says how far a score is in doubt: whether the misses in the lists are those in doubt."""
        shown = result.shown
        doubts = deviations(judging, at, part, result)
        if doubts is None or shown is None:
            return
        for k in judging.judge.top_k:
            there = shown.items[:, :k] >= 0
            sure, misses = -doubts[:, :k][there], (~shown.hits[:, :k][there]).double()
            self.before |= {
                f"doubt@{k}": -sure.mean().item(),
                f"aurc@{k}": uncertainty.aurc(sure, misses).item(),
                f"error_auroc@{k}": uncertainty.error_auroc(sure, misses).item(),
            }

    @property
    def frame(self) -> pd.DataFrame:
        names = {**self.before, **self.after}
        nan = float("nan")
        rows = [[name, self.before.get(name, nan), self.after.get(name, nan)] for name in names]
        return pd.DataFrame(rows, columns=["metric", "before", "after"])

    @property
    def reliability(self) -> pd.DataFrame:
        return pd.concat(self.curves, ignore_index=True) if self.curves else pd.DataFrame()

    def _clicks(self, scores: Tensor, labels: Tensor, new: Tensor, truth: Tensor) -> None:
        heat = uncertainty.temperature(scores, labels)
        line = uncertainty.threshold(scores, labels)
        self.fitted = {"temperature": heat, "threshold": torch.tensor(line).sigmoid().item()}
        known = {**prediction.CLICKS, **uncertainty.OF_CLICKS}
        for name in CHANGED:
            self.before[name] = known[name](new, truth).item()
            self.after[name] = known[name](new / heat, truth).item()
        for name in DECIDED:
            self.before[name] = known[name](new, truth).item()
            self.after[name] = known[name](new - line, truth).item()
        self._curve("", new, new / heat, truth)

    def _ratings(self, scores: Tensor, labels: Tensor, new: Tensor, truth: Tensor) -> None:
        width = uncertainty.interval_width(scores, labels, LEVEL)
        spread = (scores - labels).double().square().mean()
        self.fitted = {"interval": width.item(), "std": spread.sqrt().item()}
        self.after = {
            "interval_coverage": uncertainty.interval_coverage(new, truth, width).item(),
            "nll": uncertainty.gaussian_nll(new, spread.expand(len(new)), truth).item(),
        }

    def _list(self, k: int, scores: Tensor, hits: Tensor, new: Tensor, truth: Tensor) -> None:
        slope, shift = uncertainty.scaling(scores, hits)
        moved = slope * new.double() + shift
        self.fitted |= {f"slope@{k}": slope, f"shift@{k}": shift}
        for name in CHANGED:
            metric = uncertainty.OF_CLICKS.get(name, prediction.logloss)
            self.before[f"{name}@{k}"] = metric(new, truth).item()
            self.after[f"{name}@{k}"] = metric(moved, truth).item()
        self._curve(f"@{k}", new, moved, truth)

    def _curve(self, name: str, before: Tensor, after: Tensor, labels: Tensor) -> None:
        for when, scores in (("before", before), ("after", after)):
            size, confidence, share = uncertainty.reliability(scores.double().sigmoid(), labels)
            columns = {"cases": size.tolist(), "probability": confidence.tolist(), "share": share.tolist()}
            frame = pd.DataFrame(columns)
            frame.insert(0, "scores", f"{when}{name}")
            self.curves.append(frame)


@torch.no_grad()
def deviations(judging: Evaluator[Any], at: Shifted, part: str, result: Result) -> Tensor | None:
    """How far the scores of the listed items are in doubt `[R, K]`; None for a model that does not say."""
    assert result.shown is not None
    found, first = [], 0
    at.model.eval()
    for batch in judging.inputs(at.model, part):
        lists = result.shown.items[first : first + len(batch)].clamp_min(0)
        each = at.model.deviation(replace(batch, items=lists), at.encoded)
        if each is None:
            return None
        found.append(each)
        first += len(batch)
    return torch.cat(found)


def _predicted(result: Result) -> tuple[Tensor, Tensor]:
    assert result.predicted is not None
    return result.predicted.scores, result.predicted.labels


def _listed(result: Result, k: int) -> tuple[Tensor, Tensor]:
    """Scores and hits of the first k places that hold an item."""
    assert result.shown is not None
    there = result.shown.items[:, :k] >= 0
    return result.shown.scores[:, :k][there], result.shown.hits[:, :k][there].double()
