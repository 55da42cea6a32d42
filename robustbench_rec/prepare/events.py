"""Cleaning and thinning of events."""

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from robustbench_rec.config import Prepare
from robustbench_rec.errors import RrecError
from robustbench_rec.prepare.cores import core
from robustbench_rec.prepare.report import DEFECTS, Report
from robustbench_rec.raw import Array, Raw

DAY = 86_400


def clean(events: pd.DataFrame, raw: Raw, report: Report) -> pd.DataFrame:
    """Events without their defects, in the order that they had; `row` tells where each stood in the source."""
    scale, repeats = raw.scale, raw.repeats
    rules: dict[
        str, Callable[[pd.DataFrame], Array]
    ] = {}  # repeats last: a defective copy must not take a good one away
    if "rating" in events:
        rules["nonfinite_ratings"] = _nonfinite
    if "rating" in events and scale is not None:
        rules["out_of_scale"] = lambda left: ~left["rating"].between(*scale).to_numpy()
    if "time" in events:
        rules["impossible_times"] = lambda left: ~left["time"].between(1, int(time.time()) + DAY).to_numpy()
    if (
        "time" in events or not repeats
    ):  # without times, a sequence that comes back to an item repeats itself in everything
        rules["duplicates"] = lambda left: left.drop(columns="row").duplicated().to_numpy()
    if not repeats:
        rules["repeated_pairs"] = _repeated_pairs
    for rule, find in rules.items():
        bad = find(events)
        if bad.all() and report.mode == "drop":
            hint = "; is dataset.time_format right?" if rule == "impossible_times" else ""
            raise RrecError(f"dataset '{report.name}' has no event left: all {len(bad):,} are {DEFECTS[rule]}{hint}")
        if report.defect(rule, int(bad.sum())):
            events = events[~bad]
    return events


def thin(events: pd.DataFrame, config: Prepare, report: Report) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events that are positives and whose user and item have enough of them, and those below the threshold."""
    below = events.iloc[:0]
    if config.threshold is not None:
        if "rating" not in events:
            raise RrecError(
                f"dataset '{report.name}' has no ratings that prepare.threshold={config.threshold:g} could cut"
            )
        low = events["rating"].to_numpy() < config.threshold
        report.note("below_threshold", int(low.sum()))
        events, below = events[~low], events[low]
    if config.label is not None:
        if "rating" not in events:
            raise RrecError(f"dataset '{report.name}' has no ratings that prepare.label={config.label:g} could turn")
        events = events.assign(rating=(events["rating"] >= config.label).astype("float64"))
        report.note("clicks", int(events["rating"].sum()))
    if config.user_core > 1 or config.item_core > 1:
        users, items = (pd.factorize(events[name])[0] for name in ("user", "item"))
        needs = [(users, config.user_core), (items, config.item_core)]
        kept = core([(codes, np.full(codes.max(initial=-1) + 1, need)) for codes, need in needs])
        report.note("core_users", users.max(initial=-1) + 1 - len(np.unique(users[kept])))
        report.note("core_items", items.max(initial=-1) + 1 - len(np.unique(items[kept])))
        report.note("core_events", int((~kept).sum()))
        events = events[kept]
    if events.empty:
        raise RrecError(
            f"dataset '{report.name}' has no event left: prepare.threshold or the cores are too strict for it"
        )
    return events, below


def _nonfinite(events: pd.DataFrame) -> Array:
    """Also what single precision, which ratings are kept in, has no room for."""
    with np.errstate(over="ignore"):
        kept = events["rating"].to_numpy(np.float32)
    found: Array = ~np.isfinite(kept)
    return found


def _repeated_pairs(events: pd.DataFrame) -> Array:
    ordered = events.sort_values("time", kind="stable") if "time" in events else events
    return ordered.duplicated(["user", "item"]).reindex(events.index).to_numpy()
