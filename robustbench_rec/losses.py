"""Losses: (Output, Batch) -> one value an example `[B]`; an attack climbs them, a trainer goes down."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.catalogue import Products, surprise
from robustbench_rec.errors import unknown
from robustbench_rec.largest import largest

Loss = Callable[[Output, Batch], Tensor]


def bpr(output: Output, batch: Batch) -> Tensor:
    """Pairwise ranking: column 0 above each other column (Rendle et al., UAI 2009)."""
    scores = output.scores.float()  # [B, 1 + N]
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean(1)


def bce(output: Output, batch: Batch) -> Tensor:
    """Binary cross-entropy of every candidate, from logits."""
    each = F.binary_cross_entropy_with_logits(output.scores.float(), batch.labels.float(), reduction="none")
    if batch.mask is None:
        return each.mean(1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1).clamp_min(1)


def softmax(output: Output, batch: Batch) -> Tensor:
    """Cross-entropy of the positives over all candidates, averaged over the positives of an example."""
    if batch.targets is not None:
        if isinstance(output.given, Products):
            return surprise(output.given, batch.targets)
        return F.cross_entropy(output.scores.float(), batch.targets, reduction="none")
    scores = output.scores.float()  # [B, C]
    if batch.mask is not None:
        scores = scores.masked_fill(~batch.mask, float("-inf"))
    positives = batch.labels.sum(1).clamp_min(1)
    return scores.logsumexp(1) - (output.scores.float() * batch.labels).sum(1) / positives


def margin(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """How far the positives inside the top k are from falling out of it, negated: 0 when none is inside.

    The hinge of Carlini & Wagner on the k-th best negative. Cross-entropy is unbounded, so an attack that climbs it
    spends a shared budget on few users whom it buries; this loss is spent where a list can still be broken.
    """
    scores, positive = output.scores.float(), batch.labels > 0  # [B, C]
    others = scores.masked_fill(positive if batch.mask is None else positive | ~batch.mask, float("-inf"))
    bar = largest(others, min(k, scores.shape[1] - 1))[0][:, -1:]
    inside = F.relu(scores - bar).masked_fill(~positive | bar.isinf(), 0.0)  # no k-th negative: always inside
    return -inside.sum(1) / positive.sum(1).clamp_min(1)


def lead(output: Output, batch: Batch) -> Tensor:
    """How far the positives are ahead of the best sampled negative, negated: 0 when none is.

    The hinge of Carlini & Wagner on what a model is trained with, ratings excepted. Over the whole catalogue it is
    `margin`, since few positives are ahead of everything there; an event by itself is ahead by its score, with the sign
    of its label.
    """
    scores = output.scores.float()
    if scores.shape[1] == 1:
        return -F.relu(torch.where(batch.labels > 0, scores, -scores)).squeeze(1)
    if batch.targets is None:
        return margin(output, batch, k=1)
    return margin(output, replace(batch, labels=positives(scores, batch).float()))


def mse(output: Output, batch: Batch) -> Tensor:
    """Squared error of every candidate, scores as ratings."""
    each = (output.scores.float() - batch.labels.float()).square()
    if batch.mask is None:
        return each.mean(1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1).clamp_min(1)


def squared_hinge(output: Output, batch: Batch, *, kappa: float = 1.0) -> Tensor:
    """max(0, κ − y·score)² of every candidate, y = 1 for a positive and −1 for the others; κ is the margin wanted."""
    scores = output.scores.float()  # [B, C]
    each = F.relu(kappa - torch.where(positives(scores, batch), scores, -scores)).square()
    if batch.mask is None:
        return each.mean(1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1).clamp_min(1)


def topk(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """How far the positives are below the k-th best other candidate: softplus, averaged over the positives."""
    scores, positive = candidates(output, batch), batch.labels > 0  # [B, C]
    short = F.softplus(bar(scores, scores, k) - scores).masked_fill(~positive, 0.0)
    return short.sum(1) / positive.sum(1).clamp_min(1)


def dlr(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """The least margin of a positive inside the top k, in units of the spread of the list, negated; 0 with none inside.

    The difference of logits ratio of AutoAttack (Croce & Hein, ICML 2020) with the (k+1)-th score in the place of the
    runner-up: shifting or scaling all scores changes nothing, so scores that are large or small hide no gradient.
    """
    scores, positive = candidates(output, batch), batch.labels > 0
    top, _ = largest(scores, min(k + 2, scores.shape[1]))
    margin = scores - top[:, -2:-1]
    inside = positive & (margin > 0)
    least = margin.masked_fill(~inside, float("inf")).amin(1)
    least = torch.where(least.isinf(), torch.zeros_like(least), least)
    return -least / spread(top)


def divergence(output: Output, other: Output, batch: Batch, loss: Loss) -> Tensor:
    """How far two outputs are apart in what a loss makes of scores `[B]`: 0 for equal ones, symmetric.

    The squared difference for mse; for other losses of single candidates the mean over the candidates of KL(p‖q) +
    KL(q‖p) between Bernoulli distributions, for losses of lists that between the two softmaxes.
    """
    one, two = candidates(output, batch), candidates(other, batch)
    counts = one.isfinite()
    apart = torch.where(counts, one - two, 0.0)
    if loss in (mse, bce) or getattr(loss, "func", loss) is squared_hinge:
        # Σ (p − q) (log p − log q), where the normalisers cancel
        each = apart * (apart if loss is mse else one.sigmoid() - two.sigmoid())
        return each.sum(1) / counts.sum(1).clamp_min(1)
    return ((one.softmax(1) - two.softmax(1)) * apart).sum(1)


def kl(output: Output, other: Output, batch: Batch, loss: Loss) -> Tensor:
    """KL(p‖q) of what a loss makes of the scores of two outputs, p and q `[B]`; `divergence` is that both ways.

    Of Bernoulli distributions, the mean over the candidates, of two softmaxes, or for mse of two Gaussians of variance
    1, which is half the squared difference.
    """
    one, two = candidates(output, batch), candidates(other, batch)
    counts = one.isfinite()
    if loss in (mse, bce) or getattr(loss, "func", loss) is squared_hinge:
        p, q = (torch.where(counts, each, 0.0) for each in (one, two))
        each = 0.5 * (p - q).square() if loss is mse else bernoulli(p, q)
        return each.sum(1) / counts.sum(1).clamp_min(1)
    return (one.softmax(1) * torch.where(counts, one.log_softmax(1) - two.log_softmax(1), 0.0)).sum(1)


def bernoulli(p: Tensor, q: Tensor) -> Tensor:
    """KL of answers with logits p from answers with logits q."""
    return p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))


def positives(scores: Tensor, batch: Batch) -> Tensor:
    """Which of the candidates `[B, C]` are positive."""
    if batch.targets is None:
        return batch.labels > 0
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, batch.targets[:, None], value=True)


def candidates(output: Output, batch: Batch) -> Tensor:
    """Scores in single precision, −∞ where a candidate does not count."""
    scores = output.scores.float()
    return scores if batch.mask is None else scores.masked_fill(~batch.mask, float("-inf"))


def bar(scores: Tensor, own: Tensor, k: int) -> Tensor:
    """For each of `own` `[B, T]` the k-th largest of the other scores `[B, C]`."""
    top, _ = largest(scores, min(k + 1, scores.shape[1]))
    return torch.where(own >= top[:, -2:-1], top[:, -1:], top[:, -2:-1])


def spread(top: Tensor) -> Tensor:
    """Between the best score of a list and the one behind its cut."""
    return (top[:, 0] - top[:, -1]).clamp_min(1e-12)


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "bpr": bpr,
    "dlr": dlr,
    "margin": margin,
    "mse": mse,
    "softmax": softmax,
    "squared_hinge": squared_hinge,
    "topk": topk,
}
POINTWISE = ("bce", "mse", "squared_hinge")
"""Losses of single candidates, which need nothing to compare them with."""
CLICKED = ("bce", "squared_hinge")
"""Those of them whose labels are 0 and 1."""
TRAINED = ("bce", "bpr", "mse", "softmax", "squared_hinge")
"""Losses that a model can be trained with."""
CUT = ("dlr", "margin", "topk")
"""Losses that look at a list of k."""


def loss(name: str, *, k: int | None = None) -> Loss:
    """The loss of that name; k: where the list ends that it looks at. RrecError names the choices."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    cut: Callable[..., Tensor] = LOSSES[name]
    return partial(cut, k=k) if k is not None and name in CUT else cut


def trained(name: str) -> Loss:
    """A loss to train with."""
    if name not in TRAINED:
        raise unknown("loss", name, TRAINED)
    return LOSSES[name]
