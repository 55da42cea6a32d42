"""What a stated confidence is worth: calibration, and whether the unsure cases are the wrong ones.

probabilities: `[N]` of label 1. labels: `[N]`, 0 or 1. Where values are equal, what a metric says is the mean over all
orders among them, so that the order of the input does not matter.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.metrics.prediction import PredictionMetric, auc
from robustbench_rec.running import running

BINS = 15
FAR = 1e3
"""What a logit is at most shifted by, in sizes."""
ROUNDING = 1e-9
MOST_BINS = 256
"""Up to which the adaptive number of bins grows."""


class Reliability(NamedTuple):
    """Of each bin `[bins]`: how many cases, their mean probability, the share of label 1 among them."""

    size: Tensor
    confidence: Tensor
    share: Tensor


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Bins of equal mass, the smallest probabilities first; no more of them than there are cases."""
    bins = min(bins, len(labels))
    return _binned(*_sorted(probabilities, labels), bins)


def ece(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error: mean of |mean probability - share of label 1| over bins of equal mass, by their size.

    Naeini et al., AAAI 2015, with equal mass as Nguyen and O'Connor, EMNLP 2015.
    """
    return _error(reliability(probabilities, labels, bins))


def adaptive_ece(probabilities: Tensor, labels: Tensor) -> Tensor:
    """ECE with as many bins as keep the shares of label 1 rising (ECE-sweep, Roelofs et al., AISTATS 2022)."""
    cases = _sorted(probabilities, labels)
    best = _binned(*cases, 1)
    for bins in range(2, min(MOST_BINS, len(labels)) + 1):
        found = _binned(*cases, bins)
        if bool((found.share.diff() < -ROUNDING).any()):
            break
        best = found
    return _error(best)


def mce(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Largest |mean probability - share of label 1| of a bin of equal mass."""
    _, confidence, share = reliability(probabilities, labels, bins)
    return (confidence - share).abs().amax()


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean squared difference of probability and label."""
    return (probabilities.double() - labels.double()).square().mean()


def sharpness(probabilities: Tensor) -> Tensor:
    """Mean predictive variance p(1 - p): smaller is sharper, whether right or not."""
    sure = probabilities.double()
    return (sure * (1 - sure)).mean()


def aurc(confidence: Tensor, errors: Tensor) -> Tensor:
    """Area under the risk-coverage curve: the mean error among the k surest cases, mean over k = 1 … N.

    confidence: `[N]`. errors: `[N]`, 0 or 1, or any loss. Geifman and El-Yaniv, NeurIPS 2017; smaller is better.
    """
    risks = _even(confidence.double(), errors.double(), descending=True)[1]
    return (running(risks, 0) / torch.arange(1, len(risks) + 1, device=risks.device)).mean()


def error_auroc(confidence: Tensor, errors: Tensor) -> Tensor:
    """Probability that a wrong case is less sure than a right one, a tie counting half; NaN without both."""
    return auc(-confidence.double(), errors)


def interval_coverage(scores: Tensor, labels: Tensor, width: Tensor | float) -> Tensor:
    """Share of the ratings within `width` of their scores."""
    return ((scores.double() - labels.double()).abs() <= width).double().mean()


def interval_width(scores: Tensor, labels: Tensor, level: float = 0.9) -> Tensor:
    """Half width of an interval that has `level` of new ratings, from ratings that nothing was chosen on.

    Split conformal prediction (Lei et al., JASA 2018): the ⌈(n + 1) level⌉-th smallest error; infinite for too few.
    """
    errors = (scores.double() - labels.double()).abs().sort().values
    place = -int(-(len(errors) + 1) * level // 1)
    return errors[place - 1] if place <= len(errors) else errors.new_tensor(float("inf"))


def gaussian_nll(means: Tensor, variances: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of labels under independent Gaussians."""
    return F.gaussian_nll_loss(means.double(), labels.double(), variances.double(), full=True, eps=1e-12)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """T > 0 for which sigmoid(logits / T) has the least log-loss (Guo et al., ICML 2017).

    Between 1e-3 and 1e3, where the search ends if the labels are no function of the logits or follow from them.
    """
    return scaling(logits, labels, shift=False)[0] ** -1


def scaling(logits: Tensor, labels: Tensor, *, shift: bool = True) -> tuple[float, float]:
    """(a, b) for which sigmoid(a · logit + b) has the least log-loss (Platt, 1999); b = 0 unless `shift`.

    a is kept in [1e-3, 1e3], so that no ranking is reversed. Newton's method with halved steps, in coordinates in which
    the logits have mean 0 and size 1, from where no start is saturated.
    """
    x, y = logits.double(), labels.double()
    centre = x.mean() if shift else x.new_zeros(())
    size = (x - centre).square().mean().sqrt()
    size = torch.where(size > 0, size, 1.0)
    columns = torch.stack([(x - centre) / size, torch.full_like(x, float(shift))], 1)  # [N, 2]
    low, high = x.new_tensor([1e-3 * size, -FAR]), x.new_tensor([1e3 * size, FAR])
    at = torch.ones_like(low).clamp(low, high)
    for _ in range(100):
        sure = (columns @ at).sigmoid()
        gradient = columns.T @ (sure - y) / len(y)
        free = ~(((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0)))  # the others push against a bound
        curvature = (columns.T * (sure * (1 - sure))) @ columns / len(y)
        held = torch.diag((~free).double()) + 1e-9 * torch.eye(2, device=x.device)
        step = torch.linalg.solve(curvature * free[:, None] * free + held, gradient * free)
        moved = _descended(columns, y, at, step, low, high)
        if moved is None:
            break
        at = moved
    slope = (at[0] / size).item()
    return slope, (at[1] * shift).item() - slope * centre.item()


def _descended(columns: Tensor, y: Tensor, at: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
    """The first point along a step, halved and halved again, with a smaller log-loss; None where there is none."""
    here = F.binary_cross_entropy_with_logits(columns @ at, y)
    for halvings in range(40):
        there: Tensor = (at - step / 2**halvings).clamp(low, high)
        if bool(F.binary_cross_entropy_with_logits(columns @ there, y) < here):
            return there
    return None


def threshold(logits: Tensor, labels: Tensor) -> float:
    """The logit above which a click is predicted for the largest F1; the largest of several, 0 without a click.

    Halfway between two scores that occur, below all of them where everything is best called a click.
    """
    scores, order = logits.double().sort(descending=True)
    hits = running((labels[order] > 0).double(), 0)
    if not bool(hits[-1]):
        return 0.0
    said = torch.arange(1, len(scores) + 1, device=scores.device)
    f1 = 2 * hits / (said + hits[-1])
    following = torch.cat([scores[1:], scores[-1:] - 2])
    f1 = f1.masked_fill(following == scores, -1.0)  # equal scores are called alike
    best = int(f1.argmax())
    return ((scores[best] + following[best]) / 2).item()


def _sorted(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative sums `[N + 1]` of probabilities and labels in the order of the probabilities."""
    ordered, even = _even(probabilities.double(), labels.double(), descending=False)
    return F.pad(running(ordered, 0), (1, 0)), F.pad(running(even, 0), (1, 0))


def _even(keys: Tensor, values: Tensor, *, descending: bool) -> tuple[Tensor, Tensor]:
    """Keys in order, and values in that order, each the mean of those with the same key."""
    ordered, order = keys.sort(descending=descending)
    _, group, sizes = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(sizes)).index_add(0, group, values[order])
    return ordered, (sums / sizes)[group]


def _binned(confidence: Tensor, share: Tensor, bins: int) -> Reliability:
    """From cumulative sums `[N + 1]`."""
    n = len(share) - 1
    edges = torch.arange(bins + 1, device=share.device) * n // bins
    size = edges.diff()
    return Reliability(size, confidence[edges].diff() / size, share[edges].diff() / size)


def _error(found: Reliability) -> Tensor:
    return ((found.confidence - found.share).abs() * found.size).sum() / found.size.sum()


def _of_probabilities(metric: PredictionMetric) -> PredictionMetric:
    return lambda scores, labels: metric(scores.double().sigmoid(), labels)


def _of_confidence(metric: PredictionMetric) -> PredictionMetric:
    """The surer, the further the logit is from 0; an error is a wrong prediction."""
    return lambda scores, labels: metric(scores.double().abs(), ((scores > 0) != (labels > 0)).double())


OF_CLICKS: dict[str, PredictionMetric] = {
    "adaptive_ece": _of_probabilities(adaptive_ece),
    "aurc": _of_confidence(aurc),
    "brier": _of_probabilities(brier),
    "ece": _of_probabilities(ece),
    "error_auroc": _of_confidence(error_auroc),
    "mce": _of_probabilities(mce),
    "sharpness": _of_probabilities(lambda probabilities, labels: sharpness(probabilities)),
}
"""Of logits `[N]` and labels `[N]`; the negative log-likelihood is the log-loss."""
SMALLER = frozenset({*OF_CLICKS} - {"error_auroc"})
"""Of which less is better."""
