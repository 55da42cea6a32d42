"""How far a long run is, in a file of tensors and texts, so that one that was killed goes on from there."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustbench_rec.errors import RrecError
from robustbench_rec.files import write_bytes

SAVE_EVERY = 5.0
"""Seconds between two states that are kept; what a killed run has to do again at most, beside the round it was in."""

Part = Tensor | torch.Generator | nn.Module | torch.optim.Optimizer


class Savepoint:
    """The parts of a loop over rounds, in one file while they change; None keeps nothing.

    identity: what must be equal for a file to be taken up, else the loop begins anew.
    """

    def __init__(self, path: Path | None, identity: str = "") -> None:
        self.path, self.identity, self.saved = path, identity, time.perf_counter()

    def load(self, parts: Mapping[str, Part], device: torch.device) -> int:
        """Fill the parts with what is kept; the rounds that were done. RrecError where it is of other parts."""
        if self.path is None or not self.path.is_file():
            return 0
        tensors, notes = load_state(self.path, device)
        if notes.get("identity") != self.identity:
            return 0
        try:
            for name, part in parts.items():
                _fill(part, under(f"{name}/", tensors))
            return int(notes["rounds"])
        except (KeyError, RuntimeError, ValueError) as error:
            told = f"resume: {self.path} is not a state of this run; remove it to start the run again"
            raise RrecError(told) from error

    def save(self, rounds: int, parts: Mapping[str, Part]) -> None:
        """Keep the parts after so many rounds, every five seconds."""
        if self.path is None or time.perf_counter() - self.saved <= SAVE_EVERY:
            return
        self.path.parent.mkdir(exist_ok=True)
        tensors = {f"{name}/{key}": each for name, part in parts.items() for key, each in _tensors(part).items()}
        save_state(self.path, tensors, {"identity": self.identity, "rounds": str(rounds)})
        self.saved = time.perf_counter()


def save_state(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """One file with tensors and texts, written atomically."""
    write_bytes(path, packed(tensors, notes))


def load_state(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_state` wrote."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise RrecError(f"resume: {path} cannot be read ({error}); remove it to start the run again") from error


def packed(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """As safetensors; each tensor in memory of its own, as the format demands: also tied weights."""
    apart = {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()}
    return save(apart, None if notes is None else dict(notes))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Those whose names begin with a prefix, by the rest."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser by `<number of the parameter>/<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{key}": each for index, of_one in state.items() for key, each in of_one.items()}


def with_moments(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the state that `moments` told."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, each in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = each
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _tensors(part: Part) -> dict[str, Tensor]:
    if isinstance(part, Tensor):
        return {"": part}
    if isinstance(part, torch.Generator):
        return {"": part.get_state()}
    return moments(part) if isinstance(part, torch.optim.Optimizer) else part.state_dict()


def _fill(part: Part, tensors: dict[str, Any]) -> None:
    if isinstance(part, Tensor):
        if part.shape != tensors[""].shape:  # else it would be broadcast
            raise ValueError("another shape")
        part.detach().copy_(tensors[""])
    elif isinstance(part, torch.Generator):
        part.set_state(tensors[""].cpu())
    elif isinstance(part, torch.optim.Optimizer):
        with_moments(part, tensors)
    else:
        part.load_state_dict(tensors)
