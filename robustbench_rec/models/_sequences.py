"""What models of histories share."""

from typing import Any

import torch
from torch import Tensor

from robustbench_rec.batch import History
from robustbench_rec.catalogue import product
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import pairs


def from_the_end(history: History, window: int) -> Tensor:
    """Positions `[B, L]` that count back from a history's last event, which has window - 1."""
    places = torch.arange(window - history.items.shape[1], window, device=history.items.device)  # [L]
    return (places + history.items.shape[1] - history.lengths[:, None]).clamp_max(window - 1)


def dots(states: Tensor, table: Tensor, items: Tensor | None) -> Tensor:
    """Dot products of states `[N, D]` with candidates `[N, C]`, or with all rows of the table."""
    if items is None:
        return product(states, table)
    return pairs(states, None, table, items)


def checked(name: str, config: Any, *, normed: bool = False) -> None:
    """RrecError where a size of a model's config is below 1, heads do not divide dim, or the dropout is no share.

    normed: layer normalisation makes vectors of one number all the same, so dim is at least 2.
    """
    sizes = {key: value for key, value in vars(config).items() if type(value) is int}
    if min(sizes.values()) < 1 or not 0 <= config.dropout < 1:
        told = ", ".join(f"{key}={value}" for key, value in sizes.items())
        raise RrecError(f"{name} with {told}, dropout={config.dropout}: sizes are at least 1, dropout is in [0, 1)")
    if normed and sizes["dim"] < 2:
        raise RrecError(f"model.dim={config.dim}: {name} normalises its vectors, which are all the same with dim=1")
    if sizes["dim"] % sizes.get("heads", 1):
        raise RrecError(f"model.heads={config.heads}: must divide model.dim={config.dim}")
