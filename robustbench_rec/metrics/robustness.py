"""What an attack takes from a quality, and what a defence gives back; numbers or tensors of them."""

from typing import NamedTuple

import torch
from torch import Tensor

NO_EFFECT = 1e-3
"""Share of the clean quality below which an attack took nothing that a defence could give back."""


def drop(clean: Tensor, attacked: Tensor) -> Tensor:
    """(clean - attacked) / clean, negative where it rose; NaN where the clean quality is 0."""
    return torch.where(clean == 0, float("nan"), (clean - attacked) / clean)


def offset(clean: Tensor, attacked: Tensor) -> Tensor:
    """|attacked - clean| / |clean|, whichever way it went; NaN where the clean quality is 0."""
    return drop(clean, attacked).abs()


class Improvement(NamedTuple):
    """value: NaN where it is not defined. undefined: 1 there, else 0."""

    value: Tensor
    undefined: Tensor


def improvement(defended: Tensor, undefended: Tensor, clean: Tensor, *, smaller: bool = False) -> Improvement:
    """Robustness improvement: the share of what the attack took from the undefended model that the defence gives back.

    (defended - undefended) / (clean - undefended) of the attacked qualities, and the clean one of the *undefended*
    model. 1: full repair, 0: none, below 0: worse. smaller: less is better. Not defined where the attack took nothing
    from the undefended model, less than 1e-3 |clean|, or made it better.
    """
    taken = clean - undefended
    harm = -taken if smaller else taken
    undefined = (harm < NO_EFFECT * clean.abs()) | (harm == 0)
    value = torch.where(undefined, float("nan"), (defended - undefended) / taken)
    return Improvement(value, undefined.double())


def exposure_improvement(defended: Tensor, undefended: Tensor) -> Improvement:
    """The same of the exposure of target items, by how much it rose: 1 - defended rise / undefended rise.

    The share of the rise that the defence prevents. 1: nothing rose, 0: as much as without a defence. Where the
    attacker lowers exposure both are negative. Not defined where |undefended rise| < 1e-3.
    """
    undefined = undefended.abs() < NO_EFFECT
    value = torch.where(undefined, float("nan"), 1 - defended / undefended)
    return Improvement(value, undefined.double())


def area(eps: Tensor, values: Tensor) -> Tensor:
    """Area under a security curve `[P]` over the span of eps `[P]`: the mean quality over it, by the trapezoid rule.

    In any order; NaN for a single eps.
    """
    eps, order = eps.double().sort(stable=True)
    return torch.trapezoid(values.double()[order], eps) / (eps[-1] - eps[0])


def selection_gap(valid: Tensor, test: Tensor) -> Tensor:
    """What is lost on test by choosing the state `[E]` on validation: the best on test less the one chosen."""
    return test.amax() - test[valid.argmax()]
