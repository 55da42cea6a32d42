"""Edges that take each other's ends."""

import logging

import torch
from torch import Tensor

from robustbench_rec.noise import repeated

TRIES = 1000
"""Couples of edges that are looked at in a round, at least."""
PATIENCE = 3
"""Rounds in which nothing moves until other edges may move too, or it ends."""

log = logging.getLogger(__name__)


def swapped(
    starts: Tensor, ends: Tensor, kinds: Tensor, known: Tensor, order: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Ends of edges `[N]` after swaps of two ends each, so that every degree stays.

    An edge has the key `starts + ends`; no new one is among `known` ones, the present ones included, or comes twice.
    kinds: an edge swaps with those of its kind. order: places `[N]`; the first `count` are to move, later ones where
    these cannot. A warning says how many moved, where that is fewer.
    """
    ends, moved, reach, still = ends.clone(), torch.zeros(len(ends), dtype=torch.bool), count, 0
    while left := count - int(moved.sum()):
        one, two = _couples(order[:reach], moved, kinds, generator)
        keys = torch.stack([starts[one] + ends[two], starts[two] + ends[one]], 1)
        right = ~torch.isin(keys, torch.cat([known, starts + ends])).any(1) & (left > (~moved[two]).long())
        one, two, keys = one[right], two[right], keys[right]
        once = _once(torch.stack([one, two], 1))
        once[once.clone()] = _once(keys[once])
        one, two = one[once], two[once]
        within = (1 + (~moved[two]).long()).cumsum(0) <= left
        one, two = one[within], two[within]
        ends[one], ends[two] = ends[two], ends[one]
        moved[one] = moved[two] = True
        still = 0 if len(one) else still + 1
        if still == PATIENCE:
            if reach >= len(order):
                log.warning("%d of %d edges were rewired: no others can swap their ends", count - left, count)
                break
            reach, still = reach + max(left, reach // 4), 0
    return ends


def _couples(places: Tensor, moved: Tensor, kinds: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places that have not moved, each at least once, and for each of them a random place of its kind."""
    one = places[~moved[places]]
    one = one.repeat(-(-max(TRIES, len(places)) // len(one)))
    alike = places[kinds[places].argsort(stable=True)]
    first, last = (torch.searchsorted(kinds[alike], kinds[one], right=right) for right in (False, True))
    draw = torch.rand(len(one), dtype=torch.double, generator=generator)
    return one, alike[first + (draw * (last - first)).long()]


def _once(numbers: Tensor) -> Tensor:
    """Rows of `[N, 2]` with no number that came before, bool `[N]`."""
    return ~repeated(numbers.flatten(), numbers[:0, 0]).view(-1, 2).any(1)
