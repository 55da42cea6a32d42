"""How alike the lists of the users are before and after an attack, or any other change."""

from collections.abc import Sequence

import torch

from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.base import Result
from robustbench_rec.evaluation.ranking import means_by_user
from robustbench_rec.metrics.stability import STABILITY, top1


def alike(before: Result, after: Result, top_k: Sequence[int]) -> Result | None:
    """jaccard@k, frbo@k, kendall@k and top1, means over users; None where the protocol has no lists.

    Lists of the same users (of the same events, where candidates are sampled) are compared. A user without candidates
    is not counted.
    """
    if before.shown is None or after.shown is None:
        return None
    one, two = before.shown, after.shown
    if not torch.equal(one.users, two.users):
        raise RrecError("the lists before and after are not those of the same users: there is nothing to compare")
    values = {
        f"{name}@{k}": each(one.items[:, :k], two.items[:, :k]) for k in top_k for name, each in STABILITY.items()
    }
    users, per_user = means_by_user(one.users, values | {"top1": top1(one.items, two.items)})
    return Result({name: each.nanmean().item() for name, each in per_user.items()}, users, per_user)
