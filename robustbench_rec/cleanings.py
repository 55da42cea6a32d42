"""Cleaned training data, and the files that keep what was left out."""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.data import Cleaning, Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.sealed import Sealed, as_bytes
from robustbench_rec.text.rules import TextRules

KEPT = Sealed("cleaning", "a cleaning", format=1)


def digest(cleaning: Cleaning) -> str:
    """sha256 over what changed, and over the rules that stay."""
    told = json.dumps(cleaning.texts, sort_keys=True)
    if cleaning.rules:
        told += json.dumps(_words(cleaning), sort_keys=True)
    return sha256(as_bytes(_tensors(cleaning)) + told.encode()).hexdigest()


def apply(data: Data, cleaning: Cleaning) -> Data:
    """The cleaned data: other training events, item texts or edges, the same users and items.

    Events that are left out are `hidden`: nothing learns from them, and they are no candidates of a ranking, so that
    rankings with and without cleaning can be compared. The fingerprint is that of what changed: rules that stay change
    nothing here. RrecError where it was made for other data, or leaves no event.
    """
    if len(cleaning.kept) != len(data.train):
        raise RrecError(
            f"the cleaning was made for {len(cleaning.kept)} training events, dataset '{data.name}' has "
            f"{len(data.train)}: use the data that it was made for"
        )
    if not bool(cleaning.kept.any()):
        raise RrecError(f"cleaning leaves no training event of dataset '{data.name}': its steps are too strict")
    device = data.train.users.device
    kept = cleaning.kept.to(device)
    table = data.item_table
    if cleaning.texts and table is not None:
        table = table.copy()
        for column, changed in cleaning.texts.items():
            values = table[column].to_numpy(dtype=object, copy=True)
            values[list(changed)] = list(changed.values())
            table[column] = values
    change = replace(cleaning, rules={})
    same = bool(kept.all()) and change.edges is None and not change.texts
    return replace(
        data,
        fingerprint=data.fingerprint if same else sha256(f"{data.fingerprint} {digest(change)}".encode()).hexdigest(),
        uncleaned_fingerprint=data.uncleaned_fingerprint or data.fingerprint,
        train=data.train.where(kept),
        hidden=_hidden(data, ~kept),
        truth={n: each[cleaning.kept] if n.startswith("train/") else each for n, each in data.truth.items()},
        item_table=table,
        cleaning=cleaning,
        edges=None if cleaning.edges is None else cleaning.edges.to(device),
    )


def as_read(data: Data, column: str, rows: Sequence[int], texts: Sequence[str]) -> list[str]:
    """What the rules that stand before a model leave of texts that are written into rows of a column.

    What stands there has passed them already.
    """
    rules = () if data.cleaning is None else data.cleaning.rules.get(column, ())
    if not rules:
        return list(texts)
    assert data.item_table is not None
    standing = data.item_table[column].iloc[list(rows)].tolist()
    return [new if new == old else _passed(new, rules) for old, new in zip(standing, texts, strict=True)]


def reread(before: Data, after: Data) -> Data:
    """Changed data with the texts that are new in them as the rules of their cleaning leave them."""
    old, new = before.item_table, after.item_table
    if after.cleaning is None or new is None or new is old:
        return after
    read = {}
    for column in after.cleaning.rules:
        values = new[column].to_numpy(dtype=object, copy=True)
        rows = [row for row, text in enumerate(values) if isinstance(text, str)]
        values[rows] = as_read(before, column, rows, values[rows].tolist())
        read[column] = values
    return replace(after, item_table=new.assign(**read))


def save(out: Path, cleaning: Cleaning) -> None:
    """Write `cleaning.safetensors` and `cleaning.json` into a run directory."""
    KEPT.save(out, _tensors(cleaning), {**cleaning.about, "texts": cleaning.texts, "rules": _words(cleaning)})


def load(path: str, key: str) -> Cleaning:
    """The cleaning of a run directory; RrecError where it is missing or was changed."""
    return KEPT.load(path, key, _made)


def _made(tensors: dict[str, Tensor], card: dict[str, Any]) -> Cleaning:
    texts = {column: {int(row): str(text) for row, text in rows.items()} for column, rows in card.pop("texts").items()}
    rules = {column: tuple(map(TextRules, words)) for column, words in card.pop("rules", {}).items()}
    return Cleaning(tensors["kept"], tensors.get("edges"), texts, card, rules)


def _words(cleaning: Cleaning) -> dict[str, list[int | None]]:
    """The rules as JSON can hold them: how many words each of them leaves, by column."""
    return {column: [each.words for each in rules] for column, rules in cleaning.rules.items()}


def _passed(text: str, rules: Sequence[TextRules]) -> str:
    for each in rules:
        text = each(text)
    return text


def _tensors(cleaning: Cleaning) -> dict[str, Tensor]:
    return {"kept": cleaning.kept} | ({} if cleaning.edges is None else {"edges": cleaning.edges})


def _hidden(data: Data, gone: Tensor) -> Interactions | None:
    if not bool(gone.any()):
        return data.hidden
    parts = [getattr(data.train, name)[gone] for name in ("users", "items", "values")]
    if data.hidden is not None:
        before = (data.hidden.users, data.hidden.items, data.hidden.values)
        parts = [torch.cat([old, new]) for old, new in zip(before, parts, strict=True)]
    return Interactions(*parts)
