"""Plots of runs, as PNG files or as SVG in a page."""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rec.files import write_bytes

TIP = "tip: "
"""Begins the id of what tells about itself where the pointer rests on it."""
FEW = 7
"""Curves whose names fit among them; those of more stand beside."""
LABEL = 48
"""Characters of the longest label."""


def tradeoff(
    frame: pd.DataFrame, metric: str, path: Path | None = None, *, title: str = "Early-stopping frontier"
) -> Any:
    """Attacked over clean quality, a line through the states of each run in the order of its epochs.

    frame: run, state, clean, attacked; the first state of a run is the one that it ended with.
    """
    drawn, axes = figure(xlabel=f"clean {metric}", ylabel=f"attacked {metric}", title=title)
    names = _legend(frame["run"].astype(str))
    for name, states in frame.groupby("run", sort=False):
        epochs, ended = states.iloc[1:], states.iloc[0]
        (line,) = axes.plot(epochs["clean"], epochs["attacked"], marker=".", linewidth=0.8, label=names[str(name)])
        axes.plot(ended["clean"], ended["attacked"], "o", color=line.get_color(), markersize=9)
    axes.legend(fontsize="small", title="large: the state that was chosen", title_fontsize="small")
    return _kept(drawn, path)


def bars(
    values: Mapping[str, float],
    marked: Sequence[str],
    title: str,
    xlabel: str,
    path: Path | None = None,
    *,
    std: Sequence[float] | None = None,
) -> Any:
    """One bar a name, the first on top; those that are marked stand out. std: to draw at the ends of the bars."""
    drawn, axes = figure(xlabel=xlabel, ylabel="", title=title, height=1.4 + 0.28 * len(values))
    colors = ["tab:red" if name in marked else "tab:grey" for name in values]
    places = range(len(values))  # names that are cut may be equal
    axes.barh(places, list(values.values()), color=colors, xerr=std)
    axes.set_yticks(places, list(map(plain, values)))
    axes.invert_yaxis()
    return _kept(drawn, path)


def lines(frame: pd.DataFrame, x: str, title: str, path: Path | None = None, *, marked: float | None = None) -> Any:
    """Every other column over one, and a dashed line at what was chosen."""
    drawn, axes = figure(xlabel=x, ylabel="", title=title)
    names = _legend(frame.columns.drop(x).astype(str))
    for name in frame.columns.drop(x):
        axes.plot(frame[x], frame[name], marker="o", label=names[str(name)])
    if marked is not None:
        axes.axvline(marked, linestyle="--", color="grey", label="chosen")
    axes.legend(fontsize="small")
    return _kept(drawn, path)


def points(
    named: Mapping[str, tuple[float, float, float, float]], front: Sequence[str], xlabel: str, ylabel: str
) -> Any:
    """A point for each name (x, y, half the widths of their bars; NaN: none), a line through those of the front."""
    drawn, axes = figure(xlabel=xlabel, ylabel=ylabel, title="")
    best = sorted(named[name][:2] for name in front)
    axes.plot(*zip(*best, strict=True), linestyle="--", linewidth=0.9, color="grey", zorder=1)
    names = _legend(named)
    for name, (x, y, width, height) in named.items():
        (line,) = axes.plot([], [])  # takes the next colour
        color, error = line.get_color(), [each if each == each else 0.0 for each in (width, height)]
        axes.errorbar(x, y, xerr=error[0], yerr=error[1], color=color, capsize=2, linewidth=0.9)
        told = f"{name}: {xlabel} {x:.4f}, {ylabel} {y:.4f}"
        axes.plot(x, y, "o" if name in front else "X", color=color, markersize=8, gid=TIP + told)
        line.set(marker="o" if name in front else "X", linestyle="", label=names[name])
    axes.margins(0.1)
    axes.legend(fontsize="small")
    return drawn


def plain(text: str, longest: int = LABEL) -> str:
    """For a label: no mathematics in it, and not too long; matplotlib hides labels that begin with an underscore."""
    half = longest // 2  # cut in the middle: names of modules differ at their ends
    cut = text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
    return cut.replace("\\", "/").replace("$", r"\$").lstrip("_")


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


GREY = 7
"""Its number in the cycle of colors."""


@dataclass(frozen=True)
class Curve:
    """Means and standard deviations (NaN: one seed) over x; color: a number of matplotlib's cycle."""

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]
    color: int
    dashed: bool = False


def curves(
    found: Sequence[Curve], xlabel: str, ylabel: str, title: str, path: Path | None = None, *, from_zero: bool = False
) -> Any:
    """Lines through means, with a band of a standard deviation to each side; x over two decades is logarithmic.

    from_zero: y begins there, unless something is below it.
    """
    drawn, axes = figure(xlabel=xlabel, ylabel=ylabel, title=title)
    lowest = _lines(axes, found, _legend(each.label for each in found), xlabel)
    places = [at for each in found for at in each.x]
    if _wide(places):
        axes.set_xscale("log")
    if from_zero and lowest >= 0:
        axes.set_ylim(bottom=0)
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(found) > FEW else {}
    axes.legend(fontsize="small", **beside)
    return _kept(drawn, path)


def panels(
    found: Mapping[str, Sequence[Curve]], xlabel: str, ylabel: str, title: str, path: Path, *, from_zero: bool = False
) -> None:
    """`curves` in a panel for each name, with the same axes and one legend for all."""
    from matplotlib.figure import Figure

    across = min(4, len(found))
    down = -(-len(found) // across)
    drawn = Figure(figsize=(2.6 * across + 1.6, 2.1 * down + 0.8), layout="constrained")
    drawn.suptitle(plain(title))
    grid = drawn.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    names = _legend(each.label for of in found.values() for each in of)
    lowest, shown = math.inf, dict[str, Any]()
    for axes in list(grid.flat)[len(found) :]:
        axes.set_axis_off()
    for axes, (name, of) in zip(grid.flat, found.items(), strict=False):
        lowest = min(lowest, _lines(axes, of, names, xlabel))
        axes.set_title(plain(name), fontsize="small")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize="x-small", labelbottom=True)
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    if _wide([at for of in found.values() for each in of for at in each.x]):
        grid[0, 0].set_xscale("log")
    if from_zero and lowest >= 0:
        grid[0, 0].set_ylim(bottom=0)
    drawn.supxlabel(plain(xlabel), fontsize="medium")
    drawn.supylabel(plain(ylabel), fontsize="medium")
    drawn.legend([*shown.values()], [*shown], loc="outside right upper", fontsize="small")
    write(drawn, path)


def _wide(places: Sequence[float]) -> bool:
    return min(places) > 0 and max(places) >= 100 * min(places)


def _lines(axes: Any, found: Sequence[Curve], names: Mapping[str, str], xlabel: str) -> float:
    """Draw curves; the lowest value, bands included."""
    lowest = math.inf
    for each in found:
        color, order = f"C{each.color % 10}", sorted(range(len(each.x)), key=lambda at: each.x[at])
        x, mean, known = ([values[at] for at in order] for values in (each.x, each.mean, each.std))
        style = "--" if each.dashed else "-" if each.color < 10 else "-."
        axes.plot(x, mean, style, color=color, label=names[each.label])
        std = [by if math.isfinite(by) else 0.0 for by in known]
        low = [value - by for value, by in zip(mean, std, strict=True)]
        high = [value + by for value, by in zip(mean, std, strict=True)]
        lowest = min(lowest, *low)
        if any(std):
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        for at, value, by in () if each.dashed else zip(x, mean, known, strict=True):
            told = f"{each.label}, {xlabel} {at:g}: {value:.4f}{f' ± {by:.4f}' if math.isfinite(by) else ''}"
            axes.plot(at, value, "o", color=color, gid=TIP + told)
    return lowest


def heatmap(panels: Mapping[str, pd.DataFrame], title: str, path: Path) -> None:
    """Values over two keys, the index and the columns of each frame, one panel a frame, all with the same colors."""
    from matplotlib.figure import Figure

    across = min(3, len(panels))
    down = -(-len(panels) // across)
    rows, columns = next(iter(panels.values())).shape
    size = (across * (1.6 + 0.7 * columns) + 1, down * (1.3 + 0.45 * rows) + 0.3)
    drawn = Figure(figsize=size, layout="constrained")
    drawn.suptitle(title)
    known = [value for frame in panels.values() for value in frame.to_numpy().ravel() if math.isfinite(value)]
    low, high = min(known), max(known)
    cells = []
    for number, (name, frame) in enumerate(panels.items()):
        axes = drawn.add_subplot(down, across, number + 1, title=name)
        cells.append(axes.imshow(frame.to_numpy(), vmin=low, vmax=high, aspect="auto", origin="lower"))
        axes.set(xlabel=frame.columns.name, ylabel=frame.index.name)
        axes.set_xticks(range(columns), list(frame.columns))
        axes.set_yticks(range(rows), list(frame.index))
        for (row, column), value in np.ndenumerate(frame.to_numpy()):
            if math.isfinite(value):
                color = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.4f}", ha="center", va="center", color=color, fontsize=8)
    drawn.colorbar(cells[0], ax=drawn.axes)
    write(drawn, path)


def figure(*, xlabel: str, ylabel: str, title: str, height: float = 4.4) -> tuple[Any, Any]:
    """A figure and its axes, with a grid."""
    from matplotlib.figure import Figure  # half a second, needed here only

    drawn = Figure(figsize=(6.4, height), layout="constrained")
    axes = drawn.add_subplot(xlabel=plain(xlabel), ylabel=plain(ylabel), title=plain(title))
    axes.grid(alpha=0.3)
    return drawn, axes


def write(drawn: Any, path: Path) -> None:
    """Put a figure on disk."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())


def svg(drawn: Any, prefix: str) -> str:
    """A figure as an SVG element in the colours of the page around it; the points of `curves` and `points` tell what
    they are. prefix: of all its ids, so that several figures can stand in one page.
    """
    from matplotlib import rc_context

    content = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif"}):
        drawn.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(rf'<g id="{TIP}([^"]*)">', r"<g><title>\1</title>", text)  # escaped by matplotlib
    prefix = escape(prefix)
    text = re.sub(r'\bid="', lambda _: f'id="{prefix}-', text)
    text = re.sub(r'(xlink:)?href="#', lambda _: f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    text = text.replace("#000000", "currentColor").replace("#ffffff", "var(--card)")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: f'role="img" aria-label="{prefix}"', text, count=1)


def _legend(names: Iterable[str]) -> dict[str, str]:
    """Names as they stand in a legend: cut to a length at which they still differ."""
    whole = list(dict.fromkeys(names))
    longest = LABEL
    while len({plain(each, longest) for each in whole}) < len(whole) and longest < max(map(len, whole)):
        longest += LABEL // 2
    return {each: plain(each, longest) for each in whole}


def _kept(drawn: Any, path: Path | None) -> Any:
    if path is not None:
        write(drawn, path)
    return drawn
