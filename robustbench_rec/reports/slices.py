"""Tables of slices."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_rec.evaluation.slices import Slices
from robustbench_rec.files import write_text
from robustbench_rec.reports.tables import Row, show

KEYS = ["attribute", "slice", "users", "events", "metric"]


def show_slices(sides: Mapping[str, Slices], main: str, path: Path) -> None:
    """Print the main metric, and recall and exposure by items, of every slice; write all metrics as CSV.

    sides: what was judged by its column, e.g. clean and attacked.
    """
    first = next(iter(sides.values()))
    frame = first.frame[KEYS].copy()
    for name, each in sides.items():
        frame[name] = each.frame["value"].to_numpy()
    write_text(path, frame.to_csv(index=False))
    k = main.partition("@")[2]
    shown = frame[frame["metric"].isin([main, f"recall@{k}", f"exposure@{k}", "catalogue"])]
    by_item = shown["attribute"].isin(shown.loc[shown["metric"] == "catalogue", "attribute"])
    shown = shown[by_item | (shown["metric"] == main)]
    show("by slice", [str(each) for each in shown.columns], _cells(shown))
    names = [name for name in first.metrics if name.endswith((main, f"@{k}"))]
    rows: list[Row] = [[name, *(each.metrics[name] for each in sides.values())] for name in names]
    show("how evenly", ["measure", *sides], rows)


def _cells(frame: pd.DataFrame) -> list[Row]:
    return [list(map(_cell, each)) for each in frame.to_numpy()]


def _cell(value: Any) -> str | float | int:
    return value if isinstance(value, (float, int)) else str(value)
