"""How far two models agree on what they would show, one value a user."""

from torch import Tensor

from robustbench_rec.largest import largest


def overlap(scores: Tensor, others: Tensor, k: int) -> Tensor:
    """Share of the first k of one list that are among the first k of the other, of scores `[B, C]` each: `[B]`."""
    first, second = (largest(each, min(k, each.shape[1]))[1] for each in (scores, others))
    return (first[:, :, None] == second[:, None]).any(2).float().mean(1)


def kendall(scores: Tensor, others: Tensor) -> Tensor:
    """Kendall's τ-b of two orders of the same C items, `[B]`; NaN where one of them has ties only.

    An item whose score is NaN in both is not there.
    """
    signs = ((each[:, :, None] - each[:, None]).sign() for each in (scores.double(), others.double()))  # [B, C, C]
    one, two = (each.nan_to_num(0.0) for each in signs)
    both = (one * two).sum((1, 2))
    untied = one.abs().sum((1, 2)) * two.abs().sum((1, 2))
    return both / untied.sqrt()
