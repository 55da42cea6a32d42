"""Plots of runs, as PNG files."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_rec.files import write_bytes


def tradeoff(frame: pd.DataFrame, metric: str, path: Path) -> None:
    """Attacked over clean quality, a line through the states of each run in the order of its epochs.

    frame: run, state, clean, attacked; the first state of a run is the one that it ended with.
    """
    drawn, axes = figure(xlabel=f"clean {metric}", ylabel=f"attacked {metric}", title="Early-stopping frontier")
    for name, states in frame.groupby("run", sort=False):
        epochs, ended = states.iloc[1:], states.iloc[0]
        (line,) = axes.plot(epochs["clean"], epochs["attacked"], marker=".", linewidth=0.8, label=str(name))
        axes.plot(ended["clean"], ended["attacked"], "o", color=line.get_color(), markersize=9)
    axes.legend(fontsize="small", title="large: the state that was chosen", title_fontsize="small")
    write(drawn, path)


def bars(values: Mapping[str, float], marked: Sequence[str], title: str, xlabel: str, path: Path) -> None:
    """One bar a name, the first on top; those that are marked stand out."""
    drawn, axes = figure(xlabel=xlabel, ylabel="", title=title, height=1.4 + 0.28 * len(values))
    colors = ["tab:red" if name in marked else "tab:grey" for name in values]
    axes.barh(list(values), list(values.values()), color=colors)
    axes.invert_yaxis()
    write(drawn, path)


def lines(frame: pd.DataFrame, x: str, title: str, path: Path, *, marked: float | None = None) -> None:
    """Every other column over one, and a dashed line at what was chosen."""
    drawn, axes = figure(xlabel=x, ylabel="", title=title)
    for name in frame.columns.drop(x):
        axes.plot(frame[x], frame[name], marker="o", label=name)
    if marked is not None:
        axes.axvline(marked, linestyle="--", color="grey", label="chosen")
    axes.legend(fontsize="small")
    write(drawn, path)


def certified(table: Sequence[Sequence[str | float]], unit: str, title: str, path: Path) -> None:
    """Curves of the first NDCG or HR; rows of metric, budget, clean, certified, empirical value (NaN: none)."""
    names = list(dict.fromkeys(str(row[0]) for row in table))
    name = next((each for kind in ("ndcg", "hr") for each in names if each.startswith(kind)), names[0])
    budgets, clean, proven, left = zip(*(row[1:] for row in table if row[0] == name), strict=True)
    drawn, axes = figure(xlabel=unit, ylabel=name, title=title)
    axes.plot(budgets, proven, marker="o", label="certified")
    if any(each == each for each in left):
        axes.plot(budgets, left, marker="s", label="empirical")
    axes.axhline(clean[0], linestyle="--", color="grey", label="clean")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    write(drawn, path)


def figure(*, xlabel: str, ylabel: str, title: str, height: float = 4.4) -> tuple[Any, Any]:
    """A figure and its axes, with a grid."""
    from matplotlib.figure import Figure  # half a second, needed here only

    drawn = Figure(figsize=(6.4, height), layout="constrained")
    axes = drawn.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    return drawn, axes


def write(drawn: Any, path: Path) -> None:
    """Put a figure on disk."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())
