"""Certified curves."""

import io
from collections.abc import Sequence
from pathlib import Path

from robustbench_rec.files import write_bytes


def draw(path: Path, lines: Sequence[Sequence[str | float]], *, unit: str, title: str) -> None:
    """A PNG of lines with metric, budget, clean, certified, empirical value (NaN: none), for the first NDCG or HR."""
    from matplotlib.figure import Figure  # half a second, needed here only

    names = list(dict.fromkeys(str(line[0]) for line in lines))
    name = next((each for kind in ("ndcg", "hr") for each in names if each.startswith(kind)), names[0])
    budgets, clean, proven, left = zip(*(line[1:] for line in lines if line[0] == name), strict=True)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel=unit, ylabel=name, title=title)
    axes.plot(budgets, proven, marker="o", label="certified")
    if any(each == each for each in left):
        axes.plot(budgets, left, marker="s", label="empirical")
    axes.axhline(clean[0], linestyle="--", color="grey", label="clean")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_bytes(path, content.getvalue())
