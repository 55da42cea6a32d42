"""Items that an attacker is about: named, or drawn from a stratum of popularity."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown

STRATA = ("unpopular", "random", "popular")
SHARE = 0.2  # of the items with a training event, at either end


def targets(data: Data, items: Sequence[str] | None, *, stratum: str, count: int, seed: int) -> Tensor:
    """Indices of items by their original ids, or `count` of them drawn from a stratum.

    stratum: unpopular and popular are the fifth of the items with the fewest and the most training events, among those
    that have any; fake users do not count. RrecError where an id is unknown or named twice, or the stratum too small.
    """
    device = data.train.users.device
    if items is not None:
        index = {each: number for number, each in enumerate(data.item_ids)}
        missing = [each for each in items if each not in index]
        if missing or not items:
            told = f"dataset '{data.name}' has no item '{missing[0]}'" if missing else "no item is named"
            raise RrecError(f"targets: {told}; name original item ids, or null and a stratum")
        if twice := [each for each in items if items.count(each) > 1]:
            raise RrecError(f"targets: item '{twice[0]}' is named twice")
        return torch.tensor([index[each] for each in items], device=device)
    if stratum not in STRATA:
        raise unknown("stratum of items", stratum, STRATA)
    counts = torch.bincount(data.clicks().items, minlength=data.n_items).cpu()
    known = counts.nonzero().squeeze(1)
    ranked = known[counts[known].argsort(stable=True)]
    size = max(1, round(SHARE * len(ranked)))
    among = {"unpopular": ranked[:size], "random": ranked, "popular": ranked[-size:]}[stratum]
    if not 1 <= count <= len(among):
        raise RrecError(f"count={count}: between 1 and the {len(among)} items of stratum '{stratum}' are needed")
    chosen = torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))[:count]
    return among[chosen].sort().values.to(device)
