"""Cells and tables that several sections have: marked columns, files of a run."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.page import Cell, Table
from robustbench_rec.reports.reading import LARGEST, is_number
from robustbench_rec.significance import Spread, within_noise

NOISE = (
    "Mean ± standard deviation over seeds where there are several. A ≈ marks what is as good as the best within "
    "seed noise: the means are nearer than √(sd² + sd²). With one seed the noise is not known and nothing is marked so."
)


def marked(spreads: Sequence[Spread], metric: str) -> list[Cell]:
    """A column of means; the best one is marked, and those that are as good as it within seed noise.

    Nothing is marked where neither more nor less of the metric is better.
    """
    way = sign(metric)
    known = [each for each in spreads if each.n and each.mean == each.mean]
    if len(known) < 2 or not way:
        return [Cell(each) for each in spreads]
    best = max(known, key=lambda each: way * each.mean)
    marks = {None: "", True: "≈ best", False: ""}
    return [Cell(each, "best" if each.mean == best.mean else marks[within_noise(each, best)]) for each in spreads]


def change(spread: Spread, *, share: bool = False) -> Cell:
    """What happened to the same runs, marked where that is no more than its own standard deviation over seeds."""
    return Cell(spread, "within noise" if spread.n > 1 and abs(spread.mean) <= spread.std else "", share)


def budget(eps: float | None) -> Cell:
    """An eps, a dash where there is none."""
    return Cell(None if eps is None else f"{eps:g}")


def frame_of(path: Path, columns: Sequence[str], numbers: Sequence[str] | None) -> pd.DataFrame | None:
    """A CSV with at least these columns, some (None: all) of them numbers; None where there is none, or another."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        frame = pd.read_csv(path)
        if not set(columns) <= set(frame.columns):
            return None
        numbers = list(frame.columns) if numbers is None else numbers
        return frame.assign(**{each: frame[each].astype(float) for each in numbers})
    except (OSError, ValueError, TypeError):
        return None


def table_of(name: str, title: str, frame: pd.DataFrame, *, folded: bool = True) -> Table:
    """A frame as it is, columns of counts as such."""
    counts = [each for each in frame.select_dtypes("float") if (frame[each] % 1 == 0).all() and frame[each].max() > 1]
    frame = frame.astype(dict.fromkeys(counts, int))
    records = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    rows = [[Cell(each if each is None or is_number(each) else str(each)) for each in row] for row in records]
    return Table(name, title, [str(each) for each in frame.columns], rows, folded=folded)
