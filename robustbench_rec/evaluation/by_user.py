"""Values of single users, kept beside every run, so that two runs can be compared user by user later."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from robustbench_rec.evaluation.base import Evaluator, Result
from robustbench_rec.savepoint import save_state

FILE = "by_user.safetensors"
LARGEST = 2**28
"""Bytes of such a file that is read."""


@dataclass(frozen=True)
class ByUser:
    """values: by name, "attacked/ndcg@10", `[n_users]` in the order of the data, NaN for users who have none.

    who: sha256 of the original ids of these users, fake ones left out: with the same, row i is the same user.
    """

    who: str
    values: Mapping[str, Tensor]


def write(out: Path, judging: Evaluator[Any], sides: Mapping[str, Result]) -> None:
    """Write the metric that the protocol watches, of each side of a run, atomically; nothing where it is no mean over
    users (AUC of clicks, RMSE).
    """
    name, n = judging.watched(None), judging.data.n_genuine
    tensors = {}
    for side, result in sides.items():
        if name in result.per_user:
            values = result.per_user[name]
            tensors[f"{side}/{name}"] = values.new_full((n,), float("nan")).index_copy(0, result.users, values)
    if tensors:
        ids = "\n".join(map(repr, judging.data.user_ids[:n]))
        save_state(out / FILE, tensors, {"users": sha256(ids.encode()).hexdigest()})


def read(run: Path) -> ByUser | None:
    """What `write` wrote; None where there is nothing, or something else."""
    try:
        if (run / FILE).stat().st_size > LARGEST:
            return None
        with safe_open(run / FILE, "pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            who = (file.metadata() or {}).get("users")
    except (SafetensorError, OSError):
        return None
    sound = [each.ndim == 1 and each.is_floating_point() and not bool(each.isinf().any()) for each in values.values()]
    same = len({len(each) for each in values.values()}) == 1
    return ByUser(who, values) if who and same and all(sound) else None
