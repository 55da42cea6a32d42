"""Fake users in the training data, and the files that keep them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.data import Data, Interactions, Profiles
from robustbench_rec.errors import RrecError
from robustbench_rec.files import write_text
from robustbench_rec.sealed import Sealed, as_bytes

KEPT = Sealed("poison", "fake users", format=1)
PREFIX = "fake/"


def digest(profiles: Profiles) -> str:
    """sha256 over the events and the targets."""
    return sha256(as_bytes(_tensors(profiles))).hexdigest()


def inject(data: Data, profiles: Profiles) -> Data:
    """The data with the fake users `fake/0`, `fake/1`, … after the genuine ones, in train alone.

    Their row of the user table is empty; in the truth of users and training events they stand with NaN, -1 or False,
    and `user/fake` tells them. RrecError where the data has fakes, or is not what the profiles were made for.
    """
    made_for = profiles.about.get("fingerprint")
    if data.fakes is not None:
        raise RrecError(f"dataset '{data.name}' has {data.fakes.n} fake users already: poison the clean data")
    if made_for != data.fingerprint:
        raise RrecError(
            f"the fake users were made for data {str(made_for)[:12]}, dataset '{data.name}' is "
            f"{data.fingerprint[:12]}: use the dataset, prepare and split settings that they were made for"
        )
    _check(data, profiles)
    device, first = data.train.users.device, data.n_users
    ids = [f"{PREFIX}{row}" for row in range(profiles.n)]
    if not set(ids).isdisjoint(data.user_ids):
        raise RrecError(f"dataset '{data.name}' has users named {PREFIX}…: rename them before it is poisoned")
    events = profiles.events.to(device)
    added = replace(events, users=events.users + first)
    table = data.user_table
    return replace(
        data,
        fingerprint=sha256(f"{data.fingerprint} {digest(profiles)}".encode()).hexdigest(),
        train=_joined(data.train, added, data.name),
        user_ids=data.user_ids + ids,
        user_table=None if table is None else table.reindex(range(first + profiles.n)),
        truth=_truth(data.truth, {"user/": profiles.n, "train/": len(events)}, first),
        fakes=profiles,
    )


def _check(data: Data, profiles: Profiles) -> None:
    """RrecError where a file that was made elsewhere says what cannot be."""
    for told, there in _faults(data, profiles):
        if there:
            raise RrecError(f"the fake users have {told}: they are not what rrec wrote")


def _faults(data: Data, profiles: Profiles) -> Iterator[tuple[str, bool]]:
    """What may be wrong with them, and whether it is; the later ones rely on the earlier ones."""
    events, train, n = profiles.events, data.train, profiles.n
    for name, each in (*vars(events).items(), ("targets", profiles.targets)):
        if each is not None:
            like = train.users if name == "targets" else getattr(train, name)
            same = like is None or (each.dtype, each.shape[1:]) == (like.dtype, like.shape[1:])
            yield f"{name} of another kind than those of dataset '{data.name}'", not same
    yield "columns of different lengths", len({len(each) for each in vars(events).values() if each is not None}) != 1
    yield f"users that are not among 0 … {n - 1}", _outside(events.users, 0, n - 1)
    yield f"events of other than {n} users", len(events.users.unique()) != n
    yield f"items that are not among 0 … {data.n_items - 1}", _outside(events.items, 0, data.n_items - 1)
    yield "an item twice", len((events.users * data.n_items + events.items).unique()) != len(events)
    yield "no targets", not len(profiles.targets)
    yield f"targets that are not among 0 … {data.n_items - 1}", _outside(profiles.targets, 0, data.n_items - 1)
    yield "values that are no numbers", not bool(events.values.isfinite().all())
    low, high = train.values.min().item(), train.values.max().item()
    yield f"values that are not within {low:g} … {high:g}", _outside(events.values, low, high)
    if events.times is not None and train.times is not None:
        first, last = int(train.times.min()), int(train.times.max())
        yield f"times that are not within {first} … {last}", _outside(events.times, first, last)
    if events.context is not None and train.context is not None:
        sizes = torch.tensor(list(data.context_sizes.values()))
        yield "context that the dataset does not have", bool(((events.context < 0) | (events.context >= sizes)).any())


def _outside(values: Tensor, low: float, high: float) -> bool:
    return bool(((values < low) | (values > high)).any())


def save(out: Path, profiles: Profiles) -> None:
    """Write `poison.safetensors` and `poison.json` into a run directory."""
    KEPT.save(out, _tensors(profiles), {**profiles.about, "n": profiles.n})


def export(out: Path, profiles: Profiles, data: Data) -> None:
    """Write `poison.csv` into a run directory: user, original item id and, where the data has ratings, rating."""
    import numpy as np
    import pandas as pd

    events = profiles.events
    columns = {
        "user": [f"{PREFIX}{each}" for each in events.users.tolist()],
        "item": [data.item_ids[each] for each in events.items.tolist()],
    }
    if "rating" in data.has:
        columns["rating"] = [np.format_float_positional(each, trim="-") for each in events.values.numpy()]
    write_text(out / "poison.csv", pd.DataFrame(columns).to_csv(index=False))


def load(path: str, key: str) -> Profiles:
    """The fake users of a run directory, or of a file in it; RrecError where they are missing or were changed."""
    return KEPT.load(path, key, _made)


def _made(tensors: dict[str, Tensor], card: dict[str, Any]) -> Profiles:
    n, targets = int(card.pop("n")), tensors.pop("targets")
    if not isinstance(card["threat"], dict):
        raise TypeError("what their attacker may do is no mapping")
    return Profiles(Interactions(**tensors), n, targets, card)


def _tensors(profiles: Profiles) -> dict[str, Tensor]:
    named = {name: each for name, each in vars(profiles.events).items() if each is not None}
    return {**named, "targets": profiles.targets}


def _joined(train: Interactions, added: Interactions, name: str) -> Interactions:
    parts: dict[str, Tensor] = {}
    for each in fields(Interactions):
        own, more = getattr(train, each.name), getattr(added, each.name)
        if (own is None) != (more is None):
            raise RrecError(f"the fake users {'lack' if more is None else 'have'} {each.name}, unlike dataset '{name}'")
        if own is not None:
            parts[each.name] = torch.cat([own, more])
    return Interactions(**parts)


def _truth(truth: Mapping[str, Tensor], more: Mapping[str, int], n_genuine: int) -> dict[str, Tensor]:
    """The truth with rows for the fakes, of whom nothing is known but that they are fakes."""
    found: dict[str, Any] = dict(truth)
    for name, each in truth.items():
        count = more.get(f"{name.partition('/')[0]}/", 0)
        nothing = float("nan") if each.is_floating_point() else 0 if each.dtype == torch.bool else -1
        found[name] = torch.cat([each, each.new_full((count, *each.shape[1:]), nothing)])
    found["user/fake"] = torch.arange(n_genuine + more["user/"]) >= n_genuine
    return found
