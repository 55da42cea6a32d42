"""A table and a figure of what several runs of frontier.py gave.

python benchmarks/frontiers.py --figure docs/frontier.png "mf, ML-100K=outputs/mf-ml" "mf, FilmTrust=outputs/mf-ft"
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from frontier import PLAIN, TUNED

from robustbench_rec.reports import plots

SEEDS = 0.8
"""Share of the seeds in which an advantage must be beyond noise for its mark in the figure."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="MODEL,DATA=DIR", help="of frontier.py, or a frontier.csv")
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    chosen = parser.parse_args(arguments)
    frames = {}
    for each in chosen.folders:
        names, _, folder = each.partition("=")
        model, _, data = names.partition(",")
        at = Path(folder)
        found = pd.read_csv(at if at.is_file() else at / "frontier.csv")
        frames[model.strip(), data.strip()] = found[found["metric"] == chosen.metric]
    for protocol in dict.fromkeys(each for frame in frames.values() for each in frame["protocol"]):
        own = {names: frame[frame["protocol"] == protocol] for names, frame in frames.items()}
        print(f"\n{chosen.metric}, {protocol}\n\n{_table(own)}")
    if chosen.figure:
        plots.write(_figure(frames, chosen.metric), chosen.figure)
    return 0


def _table(frames: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """Rows of a model, a data set and a run; of each eps: attacked, and area, or gap where no trajectory was kept."""
    budgets = sorted({eps for frame in frames.values() for eps in frame["eps"]})
    header = ["", "", "", "clean", *(f"{what} {eps:g}" for eps in budgets for what in ("attacked", "beyond"))]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for (model, data), frame in frames.items():
        for name, of_run in frame.groupby("run", sort=False):
            cells = [f"`{model}`", data, f"`{name}`", _spread(of_run.groupby("seed")["clean"].first(), 3)]
            for eps in budgets:
                at = of_run[of_run["eps"] == eps]
                beyond = "" if name == PLAIN else f"{_spread(at['area'], 3)} ({_above(at)}, {_below(at)})"
                cells += [_spread(at["attacked"], 3), beyond]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(frames: Mapping[tuple[str, str], pd.DataFrame], metric: str) -> object:
    """Attacked quality over eps, 0 being clean; a panel for each model, data set and protocol."""
    from matplotlib.figure import Figure

    models, data = (list(dict.fromkeys(each[at] for each in frames)) for at in (0, 1))
    protocols = list(dict.fromkeys(each for frame in frames.values() for each in frame["protocol"]))
    columns = [(each, protocol) for each in data for protocol in protocols]
    drawn = Figure(figsize=(2.1 * len(columns), 1.7 * len(models) + 0.9), layout="constrained")
    grid = drawn.subplots(len(models), len(columns), squeeze=False)
    lines = {}
    for (row, model), (column, (name, protocol)) in (
        (down, across) for down in enumerate(models) for across in enumerate(columns)
    ):
        axes, frame = grid[row, column], frames.get((model, name))
        if frame is None:
            axes.set_axis_off()
            continue
        for run, values in frame[frame["protocol"] == protocol].groupby("run", sort=False):
            lines.setdefault(run, axes.plot([], [], f"C{len(lines)}")[0])
            color = lines[run].get_color()
            attacked = values.groupby("eps")["attacked"].agg(["mean", "std"])
            clean = values.groupby("seed")["clean"].first()
            x = [0.0, *attacked.index]
            mean = [clean.mean(), *attacked["mean"]]
            std = [clean.std(), *attacked["std"]]
            axes.plot(x, mean, color=color, marker=".", linewidth=1)
            low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            for eps, at in values.groupby("eps"):
                if run != PLAIN and _above(at) >= SEEDS * len(at):
                    near = {"xytext": (0, 8 if TUNED in run else 3), "textcoords": "offset points"}
                    axes.annotate("*", (eps, at["attacked"].mean()), color=color, ha="center", weight="bold", **near)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
        axes.set_title(f"{model}, {name}\n{protocol}", fontsize=8)
    drawn.supxlabel("eps, of the norm of each matrix (0: clean)", fontsize=9)
    drawn.supylabel(metric, fontsize=9)
    star = f"*: beyond the early-stopping frontier in {SEEDS:.0%} of the seeds or more"
    place = {"loc": "outside upper center", "ncols": len(lines)}
    drawn.legend([*lines.values()], [*lines], title=star, fontsize=9, title_fontsize=9, **place)
    return drawn


def _spread(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


def _above(rows: pd.DataFrame) -> int:
    """In how many seeds the advantage over the frontier is beyond the noise of the users."""
    return int((rows["area"].gt(0) & rows["area_p"].lt(0.05)).sum())


def _below(rows: pd.DataFrame) -> int:
    return int((rows["area"].lt(0) & rows["area_p"].lt(0.05)).sum())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
