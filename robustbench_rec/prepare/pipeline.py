"""Source, cleaning, threshold, cores, split, indices, tensors."""

import json
import logging
from dataclasses import asdict, replace
from hashlib import file_digest, sha256

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.config import Prepare, Recipe
from robustbench_rec.data import Data, Interactions
from robustbench_rec.datasets import datasets, root
from robustbench_rec.errors import RrecError
from robustbench_rec.noises import noises
from robustbench_rec.prepare import cache
from robustbench_rec.prepare.events import clean, thin
from robustbench_rec.prepare.graph import index_kg
from robustbench_rec.prepare.pseudonyms import pseudonyms, salt
from robustbench_rec.prepare.report import Report
from robustbench_rec.raw import PARTS, Array, Raw
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import TEST, TRAIN, VALID, Split

log = logging.getLogger(__name__)


def load(recipe: Recipe, data_dir: str | None) -> Data:
    """The data that a recipe describes, fetched, prepared and cached as needed; noise comes last and is not cached.

    data_dir: see `datasets.root`. Data computed from a seed, without files, is made anew each time. RrecError for
    everything that is wrong with the files or the recipe.
    """
    place = root(data_dir)
    name = str(recipe.dataset.get("name", "???"))
    source, split, noise = datasets.build(recipe.dataset), splits.build(recipe.split), noises.build(recipe.noise)
    _check(recipe.prepare)
    source.fetch(place)
    files = source.files(place)
    if not files:
        return noise(replace(_told(prepare(source.load(place), name, split, recipe.prepare), split), place=place))
    config = {"dataset": recipe.dataset, "split": recipe.split, "prepare": asdict(recipe.prepare)}
    digests = []
    for path in files:
        try:
            with open(path, "rb") as file:
                digests.append(file_digest(file, "sha256").hexdigest())
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise RrecError(f"{path} {'does not exist' if missing else f'cannot be read: {error.strerror}'}") from error
    if recipe.prepare.pseudonyms:
        digests.append(sha256(salt()).hexdigest())
    described = json.dumps([cache.FORMAT, config, digests], sort_keys=True)
    entry = cache.folder(place) / f"{name}-{sha256(described.encode()).hexdigest()[:32]}"
    data = cache.recall(entry) or cache.keep(entry, prepare(source.load(place), name, split, recipe.prepare))
    return noise(replace(_told(data, split), place=place))


def prepare(raw: Raw, name: str, split: Split, config: Prepare) -> Data:
    """Raw tables to indexed tensors; the report counts what was found and left out on the way."""
    _check(config)
    report = Report(name, config.defects)
    events, known_users, known_items = _encode(raw)
    events, below = thin(clean(events, raw, report), config, report)
    for kind, known in (("user", known_users), ("item", known_items)):
        if events[kind].nunique() < 2:
            only = known[events[kind].iloc[0]]
            raise RrecError(f"dataset '{name}' has only one {kind}, '{only}': nothing can be learnt from that")
    events = _assign(events, split, report)

    user_codes, users = pd.factorize(events["user"])
    item_codes, items = pd.factorize(events["item"])
    user_ids, item_ids = known_users[users], known_items[items]
    for kind, ids in (("user", user_ids), ("item", item_ids)):
        if len(ids) < 2:
            raise RrecError(f"dataset '{name}' has only one {kind}, '{ids[0]}': nothing can be learnt from that")
    events = events.assign(user=user_codes, item=item_codes)
    order = np.lexsort([events["row"], *([events["time"]] if "time" in events else []), events["user"]])
    events = events.iloc[order]
    parts = {part: events[events["part"].to_numpy() == code] for code, part in enumerate(PARTS)}
    _count_unseen(parts, len(items), report)
    codes, context_sizes = _context(raw, parts)
    data = Data(
        name=name,
        fingerprint="",
        train=_interactions(parts["train"], codes["train"]),
        valid=_interactions(parts["valid"], codes["valid"]),
        test=_interactions(parts["test"], codes["test"]),
        user_ids=(pseudonyms(user_ids) if config.pseudonyms else user_ids).tolist(),
        item_ids=item_ids.tolist(),
        item_table=_side_table(raw.items, "item", item_ids, known_items, report),
        user_table=_side_table(raw.users, "user", user_ids, known_users, report),
        kg=index_kg(raw, item_ids, known_items, report),
        ordered=raw.ordered or "time" in raw.events,
        context_sizes=context_sizes,
        truth=_truth(raw, parts, user_ids, item_ids),
        disliked=_disliked(below, users, items),
        report=report.counts,
    )
    return replace(data, fingerprint=cache.fingerprint(data))


def _told(data: Data, split: Split) -> Data:
    """The data; a split by an order that nobody vouches for is worth a warning."""
    if split.by_order and not data.ordered:
        log.warning("dataset '%s' has no times: its split takes a user's rows in the order of the file", data.name)
    return data


def _check(config: Prepare) -> None:
    for name in ("user_core", "item_core"):
        if getattr(config, name) < 0:
            raise RrecError(f"prepare.{name} must be at least 0, got {getattr(config, name)}")
    for name in ("threshold", "label"):
        value = getattr(config, name)
        if value is not None and not np.isfinite(value):
            raise RrecError(f"prepare.{name}={value}: a rating is needed, or null")


def _encode(raw: Raw) -> tuple[pd.DataFrame, pd.Index, pd.Index]:
    """Events with codes for ids, and `row`, their place in the source; and the ids of the codes."""
    users, user_ids = pd.factorize(raw.events["user"])
    items, item_ids = pd.factorize(raw.events["item"])
    events = raw.events.assign(user=users, item=items, row=np.arange(len(users))).reset_index(drop=True)
    if "part" in events:
        events["part"] = pd.Categorical(events["part"], categories=PARTS)
    return events, pd.Index(user_ids), pd.Index(item_ids)


def _assign(events: pd.DataFrame, split: Split, report: Report) -> pd.DataFrame:
    """Events with their `part` as a code; users that have no train event are left out."""
    parts = split(events.drop(columns="row"))
    events = events.assign(part=parts)
    trained = np.zeros(int(events["user"].max()) + 1, dtype=bool)
    trained[events["user"].to_numpy()[parts == TRAIN]] = True
    lost = ~trained[events["user"]]
    report.defect("users_without_train", events["user"][lost].nunique())
    report.note("events_without_train", int(lost.sum()))
    events = events[~lost]
    found = np.bincount(events["part"], minlength=len(PARTS))
    for part in (TRAIN, TEST):
        if not found[part]:
            raise RrecError(
                f"dataset '{report.name}' has no {PARTS[part]} event after the split: no user has enough events for "
                "it, or its shares are too small"
            )
    return events


def _count_unseen(parts: dict[str, pd.DataFrame], n_items: int, report: Report) -> None:
    pairs = {part: pd.Series(events["user"] * n_items + events["item"]) for part, events in parts.items()}
    seen = np.bincount(parts["train"]["item"], minlength=n_items) > 0
    for part in (PARTS[VALID], PARTS[TEST]):
        items = parts[part]["item"].to_numpy()
        report.note(f"{part}_items_unseen", len(pd.unique(items[~seen[items]])))
        report.note(f"{part}_seen_in_train", int(pairs[part].isin(pairs["train"]).sum()))


def _context(raw: Raw, parts: dict[str, pd.DataFrame]) -> tuple[dict[str, Tensor | None], dict[str, int]]:
    """Codes of the context columns of each part `[N, K]` and their numbers; 0 is what train does not have."""
    if not raw.context:
        return dict.fromkeys(parts), {}
    known = {name: pd.Index(parts["train"][name].unique()) for name in raw.context}
    codes = {
        part: _tensor(np.stack([known[name].get_indexer(events[name]) + 1 for name in raw.context], axis=1))
        for part, events in parts.items()
    }
    return dict(codes), {name: len(index) + 1 for name, index in known.items()}


def _interactions(events: pd.DataFrame, context: Tensor | None) -> Interactions:
    ratings = events["rating"].to_numpy(np.float32) if "rating" in events else np.ones(len(events), np.float32)
    times = _tensor(np.floor(events["time"].to_numpy()).astype(np.int64)) if "time" in events else None
    users, items = _tensor(events["user"].to_numpy()), _tensor(events["item"].to_numpy())
    return Interactions(users, items, _tensor(ratings), times, context)


def _disliked(below: pd.DataFrame, users: pd.Index, items: pd.Index) -> Interactions | None:
    """The events below the threshold of users and items `[n]` that are left, in their order."""
    codes = [pd.Index(known).get_indexer(below[kind]) for kind, known in (("user", users), ("item", items))]
    left = (codes[0] >= 0) & (codes[1] >= 0)
    if not left.any():
        return None
    found = below[left].assign(user=codes[0][left], item=codes[1][left])
    return _interactions(found.sort_values("user", kind="stable"), None)


def _side_table(
    table: pd.DataFrame | None, kind: str, ids: pd.Index, known: pd.Index, report: Report
) -> pd.DataFrame | None:
    """The features of `ids`, row i for index i, without the column of ids; None where it was all there is."""
    if table is None:
        return None
    repeated = table[kind].duplicated().to_numpy()
    report.defect(f"{kind}s_repeated", int(repeated.sum()))
    indexed = table[~repeated].set_index(kind)
    if len(indexed) and not indexed.index.isin(known).any():
        raise RrecError(
            f"dataset '{report.name}': none of the {len(indexed):,} {kind}s of its table of {kind}s has an event; is "
            f"an id written in two ways, '{indexed.index[0]}' there and '{known[0]}' in the events?"
        )
    report.defect(f"{kind}s_unknown", int((~indexed.index.isin(known)).sum()))
    report.note(f"{kind}s_without_row", int((~ids.isin(indexed.index)).sum()))
    return indexed.reindex(ids).reset_index(drop=True) if len(indexed.columns) else None


def _truth(raw: Raw, parts: dict[str, pd.DataFrame], user_ids: pd.Index, item_ids: pd.Index) -> dict[str, Tensor]:
    """Ground truth in the order of the data: `event/x` becomes `train/x`, `valid/x`, `test/x`."""
    if not raw.truth:
        return {}
    rows = {"event": {part: events["row"].to_numpy() for part, events in parts.items()}}
    for kind, table, ids in (("user", raw.users, user_ids), ("item", raw.items, item_ids)):
        if table is not None:
            rows[kind] = {kind: pd.Index(table[kind]).get_indexer(ids)}
    found = {}
    for name, values in raw.truth.items():
        kind, _, what = name.partition("/")
        for prefix, places in rows[kind].items():
            found[f"{prefix}/{what}"] = _tensor(
                values[places].astype(np.float32 if values.dtype.kind == "f" else values.dtype)
            )
    return found


def _tensor(array: Array) -> Tensor:
    return torch.tensor(array)
