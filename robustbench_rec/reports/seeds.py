"""What a sweep over seeds says: means, their spread, and which differences seeds alone would make."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from robustbench_rec.significance import over_seeds, verdict

SEED = "seed"


def by_seed(settings: Sequence[Mapping[str, str]], metrics: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """A row for each metric of each group of runs that differ in their seed alone; the first group is the reference.

    settings: the overrides of each run that differ, `seed` among them. Columns: those but the seed, seeds, metric,
    mean, std, difference to the first group and what it is worth.
    """
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key != SEED]
    runs: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
    for each, found in zip(settings, metrics, strict=True):
        runs.setdefault(tuple(each.get(key, "") for key in keys), []).append(found)
    first = next(iter(runs), ())
    rows: list[dict[str, Any]] = []
    nan = float("nan")
    for group, members in runs.items():
        for name in dict.fromkeys(name for each in members for name in each):
            spread, base = (over_seeds([each.get(name, nan) for each in runs[key]]) for key in (group, first))
            told = {"seeds": spread.n, "metric": name, "mean": spread.mean, "std": spread.std}
            apart = {"difference": spread.mean - base.mean, "verdict": verdict(spread, base)}
            rows.append(dict(zip(keys, group, strict=True)) | told | (apart if group != first else {"verdict": ""}))
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame, shown: Sequence[str]) -> Table:
    """Mean ± spread of some metrics, a row a group; ≈ where seeds alone make a difference as large to the first row."""
    keys = [str(each) for each in frame.columns[: list(frame.columns).index("seeds")]]
    found = Table(title="over seeds: mean ± standard deviation", title_justify="left", title_style="bold")
    found.caption = "≈: within seed noise of the first row"
    for key in [*keys, "seeds"]:
        found.add_column(key)
    for name in shown:
        found.add_column(name.replace("/", "\n"), justify="right")
    told: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        told.setdefault(tuple(str(row[key]) for key in keys), {})[str(row["metric"])] = row
    for group, rows in told.items():
        seeds = max(row["seeds"] for row in rows.values())
        found.add_row(*group, str(seeds), *(_cell(rows[name]) if name in rows else "–" for name in shown))
    return found


def _cell(row: Mapping[Any, Any]) -> str:
    return f"{row['mean']:.4f} ± {row['std']:.4f}{' ≈' if row['verdict'].startswith('within') else ''}"
