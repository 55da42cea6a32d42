"""Training on events of which some are noise: what defences share that drop, weigh or correct single events."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import bce, bpr, softmax
from robustbench_rec.objective import Objective, Plain

PAIRED = ("bce", "bpr")
"""Losses that are made of yes-or-no questions."""
SINGLE = (*PAIRED, "softmax")
"""Losses of which every event has a value of its own that is −log of a probability."""
LOSSES = {"bce": bce, "bpr": bpr, "softmax": softmax}


class Denoiser(Objective):
    """A defence that acts on the losses of single events, and so stands innermost, around the plain loss.

    An event is a candidate with its label for bce, positive or negative, and a whole example, always positive, for bpr
    and softmax. supported: the losses that it can act on. RrecError for another loss, or around another defence.
    """

    supported: Sequence[str] = SINGLE

    def __init__(self, inner: Objective) -> None:
        super().__init__()
        name = type(self).__module__.rpartition(".")[2]
        if not isinstance(inner, Plain):
            around = type(inner).__module__.rpartition(".")[2]
            raise RrecError(
                f"defense '{name}' acts on the losses of single events: it is innermost, not around '{around}'"
            )
        found = [each for each in self.supported if inner.loss is LOSSES[each]]
        if not found:
            told = getattr(inner.loss, "__name__", str(inner.loss))
            raise RrecError(f"defense '{name}' works with loss={', '.join(self.supported)}; the loss here is {told}")
        self.inner, self.kind, self.epoch = inner, found[0], 0

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.epoch = epoch

    def events(self, output: Output, batch: Batch) -> "Events":
        """The loss of each event."""
        if self.kind == "bce":
            logits, labels, counted = questions(bce, output, batch)
            return Events(F.binary_cross_entropy_with_logits(logits, labels, reduction="none"), labels > 0, counted)
        losses = LOSSES[self.kind](output, batch)
        everything = torch.ones_like(losses, dtype=torch.bool)
        return Events(losses, everything, everything)


class Events(NamedTuple):
    """losses, positive, counted: of one shape; counted is False for padding."""

    losses: Tensor
    positive: Tensor
    counted: Tensor

    def mean(self, losses: Tensor) -> Tensor:
        """Of other values of the events, over those that count."""
        return (losses * self.counted).sum() / self.counted.sum().clamp_min(1)


def questions(loss: Callable[[Output, Batch], Tensor], output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and what counts, of the yes-or-no questions of bce (relevant?) or bpr (the positive first?)."""
    scores = output.scores.float()
    if loss is bpr:
        margins = scores[:, :1] - scores[:, 1:]  # [B, N]
        return margins, torch.ones_like(margins), torch.ones_like(margins, dtype=torch.bool)
    counted = torch.ones_like(scores, dtype=torch.bool) if batch.mask is None else batch.mask
    return scores, batch.labels.float(), counted
