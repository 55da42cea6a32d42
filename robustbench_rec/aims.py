"""Losses about given items, the aims of a batch: (Output, Batch) -> one value an example `[B]`, to climb."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.largest import largest
from robustbench_rec.losses import Loss, bar, candidates, spread


def promote(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """How far the aims are below the top k, negated and smooth: −softplus(z − s), averaged over the aims."""
    return _mean(-F.softplus(_short(output, batch, k)), output, batch)


def promote_margin(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """The same as a hinge: 0 once all aims are in the top k."""
    return _mean(-F.relu(_short(output, batch, k)), output, batch)


def promote_dlr(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """The same in units of the spread of the list, and without an end."""
    top, _ = largest(candidates(output, batch), min(k + 2, output.scores.shape[1]))
    return _mean(-_short(output, batch, k), output, batch) / spread(top)


def promote_softmax(output: Output, batch: Batch) -> Tensor:
    """Log-probability of the aims among all candidates."""
    scores = candidates(output, batch)
    return _mean(_aimed(scores, batch) - scores.logsumexp(1, keepdim=True), output, batch)


def promote_rank(output: Output, batch: Batch) -> Tensor:
    """How many candidates are above the aims, counted smoothly, negated."""
    scores = candidates(output, batch)
    above = [torch.sigmoid(scores - each).sum(1) for each in _aimed(scores, batch).split(1, 1)]
    return _mean(-torch.stack(above, 1), output, batch)


def demote(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """How far the aims are above the edge of the top k, negated and smooth: −softplus(s − z)."""
    return _mean(-F.softplus(-_short(output, batch, k)), output, batch)


def demote_margin(output: Output, batch: Batch, *, k: int = 10) -> Tensor:
    """The same as a hinge: 0 once no aim is in the top k."""
    return _mean(-F.relu(-_short(output, batch, k)), output, batch)


def demote_softmax(output: Output, batch: Batch) -> Tensor:
    """Log-probability of the aims among all candidates, negated."""
    return -promote_softmax(output, batch)


def _aimed(scores: Tensor, batch: Batch) -> Tensor:
    """Scores of the aims `[B, T]`."""
    assert batch.aims is not None
    return scores.gather(1, batch.aims)


def _short(output: Output, batch: Batch, k: int) -> Tensor:
    """How far each aim is below the k-th best other candidate `[B, T]`; 0 where there is no such candidate or aim."""
    scores = candidates(output, batch)
    own = _aimed(scores, batch)
    edge = bar(scores, own, k)
    return torch.where(own.isinf() | edge.isinf(), torch.zeros_like(own), edge - own)


def _mean(values: Tensor, output: Output, batch: Batch) -> Tensor:
    """Over the aims that are candidates; 0 where none is."""
    there = _aimed(candidates(output, batch), batch).isfinite()
    return values.masked_fill(~there, 0.0).sum(1) / there.sum(1).clamp_min(1)


AIMED: dict[str, Loss] = {
    "demote": demote,
    "demote_margin": demote_margin,
    "demote_softmax": demote_softmax,
    "promote": promote,
    "promote_dlr": promote_dlr,
    "promote_margin": promote_margin,
    "promote_rank": promote_rank,
    "promote_softmax": promote_softmax,
}
CUT = ("demote", "demote_margin", "promote", "promote_dlr", "promote_margin")
"""Losses that look at a list of k."""


def aimed(name: str, *, k: int) -> Loss:
    """The loss of that name about lists of k."""
    cut: Callable[..., Tensor] = AIMED[name]
    return partial(cut, k=k) if name in CUT else cut
