"""What noises on events share."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.noise import pairs, repeated

BIASES = ("degree", "none")
EDITS = ("delete", "insert", "replace")
"""What changes events one by one."""
ITEMS = ("popular", "uniform", "unpopular")
REDRAWS = 20
log = logging.getLogger(__name__)


def rows(part: Interactions, index: Tensor) -> Interactions:
    """The events of the given places."""
    return Interactions(**{name: each[index] for name, each in vars(part).items() if each is not None})


def with_train(data: Data, train: Interactions, origin: Tensor, noise: Tensor | None = None) -> Data:
    """The data with other training events, put into order.

    origin: of each, the old event that its ground truth is taken from `[N]`. noise: which are made up `[N]`; it joins
    `train/noise` of the ground truth.
    """
    order = torch.arange(len(train)) if train.times is None else train.times.argsort(stable=True)
    order = order[train.users[order].argsort(stable=True)]
    truth = {name: each[origin[order]] if name.startswith("train/") else each for name, each in data.truth.items()}
    if noise is not None:
        truth["train/noise"] = noise[order] | truth.get("train/noise", torch.zeros_like(noise))
    return replace(data, train=rows(train, order), truth=truth)


def without(data: Data, places: Tensor) -> Data:
    """The data without some training events."""
    kept = torch.ones(len(data.train), dtype=torch.bool)
    kept[places] = False
    left = kept.nonzero().squeeze(1)
    return with_train(data, rows(data.train, left), left)


def with_test(data: Data, kept: Tensor, told: str) -> Data:
    """The data with some of the test events, bool `[N]`; RrecError where none is left."""
    if not bool(kept.any()):
        raise RrecError(f"dataset '{data.name}' has no test event {told}")
    truth = {name: each[kept] if name.startswith("test/") else each for name, each in data.truth.items()}
    return replace(data, test=rows(data.test, kept), truth=truth)


def spared(data: Data, generator: torch.Generator) -> Tensor:
    """One training event of each user, a liked one where there is one, bool `[N]`."""
    train = data.train
    worth = torch.rand(len(train), generator=generator) + (train.values != 0)
    order = worth.argsort(stable=True)
    order = order[train.users[order].argsort(stable=True)]  # the best of each user is the last of a run
    last = torch.ones(len(order), dtype=torch.bool)
    last[:-1] = train.users[order[1:]] != train.users[order[:-1]]
    found = torch.zeros_like(last)
    found[order[last]] = True
    return found


def spare(data: Data, places: Tensor, generator: torch.Generator) -> Tensor:
    """Those of the places that can go, so that every user keeps an event, a liked one where there is one."""
    train = data.train
    gone = torch.zeros(len(train), dtype=torch.bool).index_fill(0, places, True)
    liked = train.values != 0
    able = torch.bincount(train.users[liked], minlength=data.n_users) > 0
    counts = liked | ~able[train.users]
    left = torch.bincount(train.users[counts & ~gone], minlength=data.n_users) > 0
    return (gone & (left[train.users] | ~spared(data, generator))).nonzero().squeeze(1)


def edited(data: Data, op: str, places: Tensor, items: str, generator: torch.Generator) -> Data:
    """The data with training events at some places edited one by one.

    op: delete, as far as every user keeps an event; replace, by an item that the user has in no part; insert, such an
    item behind each. items: what is put in, drawn by its training events (popular), by the inverse of one more
    (unpopular), or uniform.
    """
    train = data.train
    if op == "delete":
        return without(data, spare(data, places, generator))
    popular = torch.bincount(train.items, minlength=data.n_items).float()
    drawn_by = {"popular": popular, "unpopular": 1 / (1 + popular), "uniform": torch.ones(data.n_items)}[items]
    origin = torch.arange(len(train))
    false, places = added(data, places, drawn_by, generator)
    if op == "insert":
        return inserted(data, origin, false, places)
    others, noise = train.items.clone(), torch.zeros(len(train), dtype=torch.bool)
    others[places], noise[places] = false.items, True
    return with_train(data, replace(train, items=others), origin, noise)


def inserted(data: Data, kept: Tensor, false: Interactions, base: Tensor) -> Data:
    """The data with the training events at the places `kept`, and false ones behind those at `base` that they copy."""
    origin = torch.cat([kept, base])
    order = origin.argsort(stable=True)  # a copy has the time of what it copies, or none
    return with_train(data, rows(joined(rows(data.train, kept), false), order), origin[order], order >= len(kept))


def allotted(sizes: Tensor, level: float, generator: torch.Generator, *, least: int = 1) -> Tensor:
    """Events of each user `[n_users]`, in all as many as the level says: each share is rounded up or down.

    sizes: how many a user has `[n_users]`. In multiples of `least`, as far as a user has so many.
    """
    able = sizes.masked_fill(sizes < least, 0)
    order = torch.randperm(len(able), generator=generator)
    ends = (level * able[order].double().cumsum(0) / least + 0.5).floor().long()
    count = torch.empty_like(able)
    count[order] = least * F.pad(ends, (1, 0)).diff()
    return count.minimum(able)


def weights(data: Data, bias: str) -> Tensor:
    """What each training event is drawn by `[N]`: 1, or the degrees of its user and its item, multiplied."""
    train = data.train
    if bias == "none":
        return torch.ones(len(train))
    users, items = (torch.bincount(each)[each].float() for each in (train.users, train.items))
    return users * items


def checked(bias: str) -> None:
    """RrecError for an unknown bias."""
    if bias not in BIASES:
        raise unknown("noise.bias", bias, BIASES)


def added(data: Data, base: Tensor, popularity: Tensor, generator: torch.Generator) -> tuple[Interactions, Tensor]:
    """Copies of training events at places `[N]` with items that their users have nowhere, and the places.

    popularity: what items are drawn by `[n_items]`. An event for which no such item is found is left out, and a warning
    says how many were found.
    """
    known = torch.cat([pairs(data.part(each), data) for each in ("train", "valid", "test")])
    copies = rows(data.train, base)
    items = (
        torch.multinomial(popularity, len(base), replacement=True, generator=generator) if len(base) else copies.items
    )
    for _ in range(REDRAWS):
        wrong = repeated(copies.users * data.n_items + items, known).nonzero().squeeze(1)
        if not len(wrong):
            break
        items[wrong] = torch.multinomial(popularity, len(wrong), replacement=True, generator=generator)
    right = ~repeated(copies.users * data.n_items + items, known)
    if not bool(right.all()):
        log.warning("%d of %d false events were found, others are hardly there", int(right.sum()), len(right))
    return rows(replace(copies, items=items), right), base[right]


def joined(one: Interactions, two: Interactions) -> Interactions:
    """The events of both."""
    fields: Mapping[str, Any] = vars(two)
    return Interactions(
        **{name: torch.cat([each, fields[name]]) for name, each in vars(one).items() if each is not None}
    )
