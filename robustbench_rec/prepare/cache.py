"""Prepared data on disk: either whole and good, or made anew."""

import io
import json
import logging
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustbench_rec.data import KG, Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.files import read_json, write_bytes, write_text
from robustbench_rec.raw import PARTS

FORMAT = 5  # raise it whenever the same files and recipe come to other data
log = logging.getLogger(__name__)


def folder(root: Path) -> Path:
    """Where prepared data lies, a folder for each recipe and content, `<dataset>-<key>`."""
    return root / "prepared"


def fingerprint(data: Data) -> str:
    """sha256 over tensors, ids and side tables; equal fingerprints mean equal data and split."""
    digest = sha256()
    for name, tensor in sorted(_tensors(data).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    for name, ids in _ids(data).items():
        digest.update(json.dumps([name, ids]).encode())
    for name, table in _tables(data).items():
        digest.update(f"{name} {list(table.columns)}\n".encode())
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().data)
    return digest.hexdigest()


def keep(entry: Path, data: Data) -> Data:
    """Store a copy; where that is not possible the data is used all the same, and a warning says so."""
    draft = entry.with_name(f".{entry.name}.{uuid4().hex[:8]}")
    meta: dict[str, Any] = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "report": data.report,
        "ordered": data.ordered,
        "context_sizes": data.context_sizes,
        "ids": _ids(data),
    }
    meta["tables"] = list(_tables(data))
    try:
        draft.mkdir(parents=True)
        write_bytes(draft / "arrays.safetensors", save_tensors(_tensors(data) | _beside(data)))
        for name, table in _tables(data).items():
            content = io.BytesIO()
            table.to_parquet(content)
            write_bytes(draft / f"{name}.parquet", content.getvalue())
        write_text(draft / "meta.json", json.dumps(meta))
        shutil.rmtree(entry, ignore_errors=True)
        os.rename(draft, entry)
    except (OSError, RrecError) as error:
        if not entry.is_dir():  # else another process was faster
            log.warning("prepared data is not cached: %s", error)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return data


def recall(entry: Path) -> Data | None:
    """The copy, or None where there is none or it is not what was stored."""
    if not entry.is_dir():
        return None
    try:
        data = _restore(entry)
        if fingerprint(data) == data.fingerprint:
            return data
        reason = "its content has changed"
    except (OSError, RrecError, KeyError, TypeError, ValueError, SafetensorError, pa.ArrowException) as error:
        reason = str(error)
    log.warning("cached data %s is made anew: %s", entry, reason)
    return None


def _restore(entry: Path) -> Data:
    meta = read_json(entry / "meta.json", "cached data")
    tensors = load_tensors((entry / "arrays.safetensors").read_bytes())
    ids = meta["ids"]
    parts = {part: _group(tensors, part) for part in PARTS}
    tables = {name: pd.read_parquet(entry / f"{name}.parquet") for name in meta["tables"]}
    kg = _group(tensors, "kg")
    return Data(
        name=meta["name"],
        fingerprint=meta["fingerprint"],
        train=Interactions(**parts["train"]),
        valid=Interactions(**parts["valid"]),
        test=Interactions(**parts["test"]),
        user_ids=ids["user_ids"],
        item_ids=ids["item_ids"],
        item_table=tables.get("item_table"),
        user_table=tables.get("user_table"),
        kg=KG(**kg, entity_ids=ids["entity_ids"], relation_ids=ids["relation_ids"]) if kg else None,
        ordered=meta["ordered"],
        context_sizes=meta["context_sizes"],
        report=meta["report"],
        truth=_group(tensors, "truth"),
        disliked=Interactions(**disliked) if (disliked := _group(tensors, "disliked")) else None,
    )


def _tensors(data: Data) -> dict[str, Tensor]:
    """Every tensor of the data by `<part>/<name>`."""
    owners: dict[str, Mapping[str, Any]] = {part: vars(data.part(part)) for part in PARTS}
    owners |= {"kg": vars(data.kg) if data.kg else {}, "truth": data.truth}
    named = {f"{owner}/{name}": value for owner, values in owners.items() for name, value in values.items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _beside(data: Data) -> dict[str, Tensor]:
    """What is kept and makes no other data: nothing learns from it or is judged by it."""
    found = {} if data.disliked is None else vars(data.disliked)
    return {f"disliked/{name}": value for name, value in found.items() if value is not None}


def _group(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Any]:
    return {name.removeprefix(f"{owner}/"): value for name, value in tensors.items() if name.startswith(f"{owner}/")}


def _ids(data: Data) -> dict[str, list[str]]:
    entities = {"entity_ids": data.kg.entity_ids, "relation_ids": data.kg.relation_ids} if data.kg else {}
    return {"user_ids": data.user_ids, "item_ids": data.item_ids, **entities}


def _tables(data: Data) -> dict[str, pd.DataFrame]:
    tables = {"item_table": data.item_table, "user_table": data.user_table}
    return {name: table for name, table in tables.items() if table is not None}
