"""Plots of runs, as PNG files or as SVG in a page."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_rec.files import write_bytes

TIP = "tip: "
"""Begins the id of what tells about itself where the pointer rests on it."""
LABEL = 48
"""Characters of the longest label."""


def tradeoff(
    frame: pd.DataFrame, metric: str, path: Path | None = None, *, title: str = "Early-stopping frontier"
) -> Any:
    """Attacked over clean quality, a line through the states of each run in the order of its epochs.

    frame: run, state, clean, attacked; the first state of a run is the one that it ended with.
    """
    drawn, axes = figure(xlabel=f"clean {metric}", ylabel=f"attacked {metric}", title=title)
    for name, states in frame.groupby("run", sort=False):
        epochs, ended = states.iloc[1:], states.iloc[0]
        (line,) = axes.plot(epochs["clean"], epochs["attacked"], marker=".", linewidth=0.8, label=plain(str(name)))
        axes.plot(ended["clean"], ended["attacked"], "o", color=line.get_color(), markersize=9)
    axes.legend(fontsize="small", title="large: the state that was chosen", title_fontsize="small")
    return _kept(drawn, path)


def bars(values: Mapping[str, float], marked: Sequence[str], title: str, xlabel: str, path: Path | None = None) -> Any:
    """One bar a name, the first on top; those that are marked stand out. path: where it is kept as PNG, if it is."""
    drawn, axes = figure(xlabel=xlabel, ylabel="", title=title, height=1.4 + 0.28 * len(values))
    colors = ["tab:red" if name in marked else "tab:grey" for name in values]
    axes.barh(list(map(plain, values)), list(values.values()), color=colors)
    axes.invert_yaxis()
    return _kept(drawn, path)


def lines(frame: pd.DataFrame, x: str, title: str, path: Path | None = None, *, marked: float | None = None) -> Any:
    """Every other column over one, and a dashed line at what was chosen."""
    drawn, axes = figure(xlabel=x, ylabel="", title=title)
    for name in frame.columns.drop(x):
        axes.plot(frame[x], frame[name], marker="o", label=plain(str(name)))
    if marked is not None:
        axes.axvline(marked, linestyle="--", color="grey", label="chosen")
    axes.legend(fontsize="small")
    return _kept(drawn, path)


def curves(lines: Mapping[str, Sequence[tuple[float, float, float]]], xlabel: str, ylabel: str) -> Any:
    """A line for each name through its points (x, y, half the height of the band; NaN: none)."""
    drawn, axes = figure(xlabel=xlabel, ylabel=ylabel, title="")
    for name, points in lines.items():
        x, y, half = (list(each) for each in zip(*sorted(points), strict=True))
        (line,) = axes.plot(x, y, label=plain(name))
        edges = [(at - by, at + by) if by == by else (at, at) for at, by in zip(y, half, strict=True)]
        axes.fill_between(x, *zip(*edges, strict=True), alpha=0.18, color=line.get_color(), linewidth=0)
        for at, value, by in zip(x, y, half, strict=True):
            told = f"{name}, {xlabel} {at:g}: {value:.4f}{f' ± {by:.4f}' if by == by else ''}"
            axes.plot(at, value, "o", color=line.get_color(), gid=TIP + told)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.legend(fontsize="small")
    return drawn


def points(
    named: Mapping[str, tuple[float, float, float, float]], front: Sequence[str], xlabel: str, ylabel: str
) -> Any:
    """A point for each name (x, y, half the widths of their bars; NaN: none), a line through those of the front."""
    drawn, axes = figure(xlabel=xlabel, ylabel=ylabel, title="")
    best = sorted(named[name][:2] for name in front)
    axes.plot(*zip(*best, strict=True), linestyle="--", linewidth=0.9, color="grey", zorder=1)
    for name, (x, y, width, height) in named.items():
        (line,) = axes.plot([], [])  # takes the next colour
        color, error = line.get_color(), [each if each == each else 0.0 for each in (width, height)]
        axes.errorbar(x, y, xerr=error[0], yerr=error[1], color=color, capsize=2, linewidth=0.9)
        told = f"{name}: {xlabel} {x:.4f}, {ylabel} {y:.4f}"
        axes.plot(x, y, "o" if name in front else "X", color=color, markersize=8, gid=TIP + told)
        line.set(marker="o" if name in front else "X", linestyle="", label=plain(name))
    axes.margins(0.1)
    axes.legend(fontsize="small")
    return drawn


def plain(text: str) -> str:
    """For a label: no mathematics in it, and not too long; matplotlib hides labels that begin with an underscore."""
    cut = text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"
    return cut.replace("\\", "/").replace("$", r"\$").lstrip("_")


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
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:)?href="#', f'href="#{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    text = text.replace("#000000", "currentColor").replace("#ffffff", "var(--card)")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(prefix)}"', text, count=1)


def _kept(drawn: Any, path: Path | None) -> Any:
    if path is not None:
        write(drawn, path)
    return drawn
