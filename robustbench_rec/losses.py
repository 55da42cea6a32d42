"""Losses: (Output, Batch) -> one value an example `[B]`; an attack climbs them, a trainer goes down."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import unknown

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
    scores = output.scores.float()  # [B, C]
    if batch.targets is not None:
        return F.cross_entropy(scores, batch.targets, reduction="none")
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
    bar = others.topk(min(k, scores.shape[1] - 1), 1).values[:, -1:]
    inside = F.relu(scores - bar).masked_fill(~positive | bar.isinf(), 0.0)  # no k-th negative: always inside
    return -inside.sum(1) / positive.sum(1).clamp_min(1)


def mse(output: Output, batch: Batch) -> Tensor:
    """Squared error of every candidate, scores as ratings."""
    each = (output.scores.float() - batch.labels.float()).square()
    if batch.mask is None:
        return each.mean(1)
    return (each * batch.mask).sum(1) / batch.mask.sum(1).clamp_min(1)


LOSSES: dict[str, Loss] = {"bce": bce, "bpr": bpr, "margin": margin, "mse": mse, "softmax": softmax}
POINTWISE = ("bce", "mse")
"""Losses of single candidates, which need nothing to compare them with."""


def loss(name: str) -> Loss:
    """The loss of that name; RrecError names the choices."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]
