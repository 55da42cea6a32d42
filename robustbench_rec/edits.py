"""Attacks that edit the histories that a model reads, and how far an edited history is from what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from robustbench_rec.attack import Attack, Scope
from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import Events
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted

GAMMA = -0x61C8864680B583EB


class HistoryAttack(Attack):
    """Changes `Batch.history` alone, every row by itself; δ stays what it is.

    n_items, window: of the data and of the model that it is prepared for.
    """

    n_items: int = 0
    window: int

    def prepared(self, model: RecModel, data: Data) -> Self:
        self.check(model)
        held = copy(self)
        held.n_items, held.window = data.n_items, model.window
        return held

    def history(self, batch: Batch) -> History:
        """What is edited."""
        assert self.n_items, "it is not prepared"
        assert batch.history is not None
        return batch.history

    def check(self, model: RecModel) -> None:
        if not model.window:
            raise RrecError(f"{_name(model)} reads no history: nothing to edit; take a model of sequences")

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        return "row"

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Edits (the least number of them that leads there), their share of the events, and the Jaccard distance."""
        old, new = known(batch), known(changed)
        edits = distance(old, new).float()
        return {"edits": edits, "share": edits / old.lengths.clamp_min(1), "jaccard_distance": 1 - jaccard(old, new)}


class Reading(NamedTuple):
    """What a model read of histories: rows `[B, L, D]` of a table `[n_items, D]`."""

    table: Tensor
    rows: Tensor


@contextmanager
def read(model: RecModel) -> Iterator[list[Reading]]:
    """What the model reads of histories for a while; the rows are leaves, to take gradients in."""
    found: list[Reading] = []

    def keep(_: torch.nn.Module, args: tuple[Tensor, History], out: Tensor) -> Tensor:
        found.append(Reading(args[0].detach(), out.detach().requires_grad_()))
        return found[-1].rows

    hooks = [each.register_forward_hook(keep) for each in lookups(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Draws:
    """Uniform numbers in [0, 1) for the rows of users `[B]`, which do not depend on the rows beside them.

    Counter-based: splitmix64 (Steele et al., OOPSLA 2014) of seed, user, number of the call and place.
    """

    def __init__(self, users: Tensor, seed: int) -> None:
        self.keys, self.calls = _mixed(_mixed(torch.full_like(users, seed)) + users), 0

    def __call__(self, width: int) -> Tensor:
        """`[B, width]`, others at every call; those of a wider row begin with the same."""
        self.calls += 1
        places = torch.arange(1, 1 + width, device=self.keys.device) * GAMMA
        mixed = _mixed(_mixed(self.keys + self.calls)[:, None] + places)
        return _shifted(mixed, 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x + GAMMA) ^ _shifted(x + GAMMA, 30)
    x = x * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, as if without sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def lookups(model: RecModel) -> list[Events]:
    """Where the model looks up item vectors for the events of a history."""
    return [each for each in model.modules() if isinstance(each, Events)]


def vectors(model: RecModel) -> None:
    """RrecError where events are not read as rows of a table."""
    if not lookups(model):
        raise RrecError(f"{_name(model)} has no table of item vectors that it reads histories from")


def known(batch: Batch) -> History:
    """The history of a batch to score."""
    assert batch.history is not None
    assert batch.history.steps is None
    return batch.history


def latest(history: History, window: int) -> History:
    """Its latest `window` events."""
    dropped = (history.lengths - window).clamp_min(0)
    width = min(history.items.shape[1], window)
    places = dropped[:, None] + torch.arange(width, device=dropped.device)
    return replace(history, items=history.items.gather(1, places), lengths=history.lengths - dropped)


def ordered(items: Tensor, keys: Tensor, padding: int) -> History:
    """Items `[B, W]` in the order of their keys, without those whose key is infinite."""
    order, there = keys.argsort(dim=1, stable=True), keys.isfinite()
    lengths = there.sum(1)
    width = max(int(lengths.max()), 1)
    found = items.masked_fill(~there, padding).gather(1, order)[:, :width]
    return History(found, lengths)


def distance(old: History, new: History) -> Tensor:
    """Levenshtein distance of the histories of each row `[B]`."""
    device, width = old.items.device, new.items.shape[1]
    places = torch.arange(width + 1, device=device)
    best = places.expand(len(old.items), -1)  # from no event of the old one to the first of the new one [B, 1 + L']
    for place in range(old.items.shape[1]):
        replaced = best[:, :-1] + (old.items[:, [place]] != new.items)
        found = torch.cat([best[:, :1] + 1, torch.minimum(best[:, 1:] + 1, replaced)], 1)
        found = (found - places).cummin(1).values + places  # inserted: one more than its neighbour
        best = torch.where((place < old.lengths)[:, None], found, best)
    return best.gather(1, new.lengths[:, None]).squeeze(1)


def jaccard(old: History, new: History) -> Tensor:
    """Of the sets of items of each row, `[B]`; 1 for two empty ones."""
    width = 1 + int(torch.maximum(old.items.max(), new.items.max()))
    sets = []
    for each in (old, new):
        marks = torch.zeros(len(each.items), width + 1, dtype=torch.bool, device=each.items.device)
        sets.append(marks.scatter_(1, each.items.masked_fill(~each.real, width), True)[:, :width])
    either = (sets[0] | sets[1]).sum(1)
    return torch.where(either > 0, (sets[0] & sets[1]).sum(1) / either.clamp_min(1), 1.0)


def _name(model: RecModel) -> str:
    return f"model '{type(model).__module__.rpartition('.')[2]}'"
