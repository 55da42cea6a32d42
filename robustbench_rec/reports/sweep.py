"""What a sweep ends with: one table over seeds, `sweep.csv`, `summary.csv`, `summary.md` and plots."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from robustbench_rec.files import write_text
from robustbench_rec.reports import plots
from robustbench_rec.reports.summary import Group, Job, Summary
from robustbench_rec.significance import Spread

MARKDOWN = 8
"""Metrics in `summary.md`; all of them stand in `summary.csv`."""
PANELS = 24
"""Values of a setting, at most, that have a panel each."""
SECURITY, CURVE, HEATMAP, BARS = PLOTS = ("security_curve.png", "curve.png", "heatmap.png", "bars.png")


def report(found: Summary, directory: Path, console: Console) -> None:
    """Print the table of a sweep and write its files to `directory`.

    `sweep.csv` has a row a job; `summary.csv` and `summary.md` one for each combination of the swept keys that are no
    seeds, with means and standard deviations over these, and nothing that depends on the clock. Plots where they
    apply: `security_curve.png` of attacks over eps, else `curve.png` over the first numeric key and `curve_<key>.png`
    over each other one, `heatmap.png` over the first two, `bars.png` where no key is numeric.
    """
    _write_jobs(found, directory / "sweep.csv")
    _write_summary(found, directory / "summary.csv")
    shown = _interleaved(found)
    write_text(directory / "summary.md", _markdown(found, shown[:MARKDOWN]))
    written = ["sweep.csv", "summary.csv", "summary.md"]
    if found.resilience:
        _write_resilience(found, directory / "robustness.csv")
        written.append("robustness.csv")
    drawn = _draw(found, directory)
    for path in (*(directory / name for name in PLOTS), *directory.glob(f"{Path(CURVE).stem}_*.png")):
        if path.name not in drawn:
            path.unlink(missing_ok=True)  # of a report with fewer jobs
    bold, word = (("[bold]", "[/bold]"), "bold") if console.is_terminal else (("", "*"), "*")
    console.print(_table(found, shown, console.width, bold))
    if any(found.best(metric)[0] for metric in shown):
        console.print(_legend(found, word), style="dim", markup=False, highlight=False, soft_wrap=True)
    if found.resilience:
        console.print(_resilience_table(found))
    for line in _selected(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for job in found.jobs:
        if job.error:
            console.print(f"job {job.name}: {job.error}", style="red", markup=False, soft_wrap=True)
    console.print(f"{directory}: {', '.join(written + drawn)}", markup=False, highlight=False, soft_wrap=True)


def _write_jobs(found: Summary, path: Path) -> None:
    rows = []
    for job in found.jobs:
        values = [(job.metrics or {}).get(key) for key in found.metrics]
        rows.append([job.name, *(job.overrides.get(key) for key in found.swept), *values, job.error])
    _csv(path, ["job", *found.swept, *found.metrics, "error"], rows)


def _write_summary(found: Summary, path: Path) -> None:
    several = bool(found.seeds)
    header = [*found.settings, "done", "failed"]
    for metric in found.metrics:
        header += [metric, f"{metric} std"] if several else [metric]
    rows = []
    for group in found.groups:
        row: list[object] = [*group.settings.values(), group.done, len(group.jobs) - group.done]
        for metric in found.metrics:
            spread = group.spread(metric)
            row += [_plain(spread.mean), _plain(spread.std)] if several else [_plain(spread.mean)]
        rows.append(row)
    _csv(path, header, rows)


def _write_resilience(found: Summary, path: Path) -> None:
    keys, measures = (list(each) for each in found.resilience[0])
    header = [*keys, *(f"{name}{end}" for name in measures for end in ("", " std"))]
    rows = [
        [*settings.values(), *(_plain(value) for each in values.values() for value in (each.mean, each.std))]
        for settings, values in found.resilience
    ]
    _csv(path, header, rows)


def _csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _interleaved(found: Summary) -> list[str]:
    """The main metric and those that differ: the first of each prefix, then the second, …

    Not the offset, which is the drop without its sign.
    """
    by_prefix: dict[str, list[str]] = defaultdict(list)
    done = [job.metrics for job in found.jobs if job.metrics is not None]
    for key in found.metrics:
        if not key.startswith("offset/") and (len(done) < 2 or len({each.get(key) for each in done}) > 1):
            by_prefix[key.rpartition("/")[0]].append(key)
    apart = [key for row in zip_longest(*by_prefix.values()) for key in row if key is not None]
    return apart if found.primary is None or found.primary in apart else [found.primary, *apart]


def _rows(found: Summary, metrics: Sequence[str], bold: tuple[str, str]) -> list[list[str]]:
    """Settings, seeds and metrics of each group; the best between two marks, ≈ after what is as good as seeds tell."""
    best = {metric: found.best(metric) for metric in metrics}
    rows = []
    for number, group in enumerate(found.groups):
        cells = []
        for metric in metrics:
            cell = _spread(group.spread(metric))
            if number in best[metric][0]:
                cell = cell.join(bold)
            cells.append(f"{cell} ≈" if number in best[metric][1] else cell)
        if not group.done:
            cells = ["failed", *("" for _ in metrics)][: len(metrics)]
        settings = [_short(found, each) for each in group.settings.values()]
        rows.append([*settings, *_seeds(found, group.done, len(group.jobs)), *cells])
    return rows


def _seeds(found: Summary, done: int, jobs: int) -> list[str]:
    if not found.seeds:
        return []
    return [str(jobs) if done == jobs else f"{done} of {jobs}"]


def _table(found: Summary, metrics: Sequence[str], width: int, bold: tuple[str, str]) -> Table:
    """A row a group, with as many of the metrics as the console is wide."""
    several = bool(found.seeds)
    rows = _rows(found, metrics, bold)
    left = [*(["job"] if not several else []), *found.settings, *(["seeds"] if several else [])]
    if not several:  # a group is a job
        rows = [[group.jobs[0].name, *row] for group, row in zip(found.groups, rows, strict=True)]
    headers = [*left, *(key.replace("/", "\n") for key in metrics)]
    cells = [[_bare(each) for each in column] for column in zip(headers, *rows, strict=False)]
    wide = [3 + max(len(line) for each in column for line in each.split("\n")) for column in cells]
    room, shown = width - 1 - sum(wide[: len(left)]), 0
    while shown < len(metrics) and (not shown or wide[len(left) + shown] <= room):
        room -= wide[len(left) + shown]
        shown += 1
    hidden = len(metrics) - shown
    table = Table(caption=f"further metrics in summary.csv: {hidden}" if hidden else None)
    for number, header in enumerate(headers[: len(left) + shown]):
        plain = number < len(left) and header not in ("job", "seeds")
        table.add_column(header, justify="left" if plain else "right", no_wrap=number >= len(left))
    for group, row in zip(found.groups, rows, strict=True):
        escaped = [each.replace("[", r"\[") for each in row[: len(left)]]
        table.add_row(*escaped, *row[len(left) : len(left) + shown], style=None if group.done else "red")
    if not metrics:
        table.caption = "no job has results"
    return table


def _resilience_table(found: Summary) -> Table:
    keys, measures = (list(each) for each in found.resilience[0])
    table = Table()
    for key in keys:
        table.add_column(key)
    for name in measures:
        table.add_column(name, justify="right")
    for settings, values in found.resilience:
        table.add_row(
            *(_short(found, each).replace("[", r"\[") for each in settings.values()), *map(_spread, values.values())
        )
    return table


def _markdown(found: Summary, metrics: Sequence[str]) -> str:
    several = bool(found.seeds)
    lines = _pipes(
        [*found.settings, *(["seeds"] if several else []), *metrics], _rows(found, metrics, ("**", "**")), len(metrics)
    )
    lines += ["", _legend(found, "bold")] if metrics else []
    if found.resilience:
        keys, measures = (list(each) for each in found.resilience[0])
        rows = [
            [*(_short(found, each) for each in settings.values()), *map(_spread, values.values())]
            for settings, values in found.resilience
        ]
        lines += ["", *_pipes([*keys, *measures], rows, len(measures))]
    for line in _selected(found):
        lines += ["", line]
    return "\n".join(lines) + "\n"


def _selected(found: Summary) -> list[str]:
    """What comes of choosing on validation, a line for each quality."""
    return [
        f"chosen by valid/{found.monitor}: {_label(found, each.settings)}; its {each.metric} is "
        f"{_number(each.chosen)}, the best {_number(each.best)} (selection gap {_number(each.gap)})"
        for each in found.selections
    ]


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> list[str]:
    rules = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    escaped = [[each.replace("|", r"\|") for each in row] for row in (header, rules, *rows)]
    return [f"| {' | '.join(row)} |" for row in escaped]


def _legend(found: Summary, best: str) -> str:
    apart = [*found.judged, *(["data"] if found.mixed and not found.judged else [])]
    best += ": best of its column" + (f" for each {', '.join(apart)}" if apart else "")
    if not found.seeds:
        return best
    return (
        f"mean ± standard deviation over {', '.join(found.seeds)}; {best}; "
        "≈: differs from it by no more than √(std² + std²), as seeds do"
    )


def _draw(found: Summary, directory: Path) -> list[str]:
    """The plots that apply, by name."""
    numeric, primary = found.numeric, found.primary
    if not found.settings or primary is None:
        return []
    if not numeric:
        return [_bars(found, primary, directory / BARS)]
    drawn = []
    if found.verb == "attack" and "eps" in numeric and primary.startswith("attacked/"):
        drawn.append(_curve(found, "eps", [primary, primary.replace("attacked/", "clean/")], directory / SECURITY))
    else:
        metric = primary.rpartition("/")[2]
        alone = len(found.settings) == 1
        also = [each for each in found.metrics if alone and each != primary and each.rpartition("/")[2] == metric]
        for number, key in enumerate(numeric):
            name = CURVE if not number else f"{Path(CURVE).stem}_{re.sub(r'[^.0-9A-Za-z]', '_', key)}.png"
            drawn.append(_curve(found, key, [primary, *also], directory / name))
    if len(numeric) > 1:
        drawn.append(_heatmap(found, numeric[1], numeric[0], primary, directory / HEATMAP))
    return [each for each in drawn if each]


def _curve(found: Summary, x: str, metrics: Sequence[str], path: Path) -> str:
    """Metrics over a key; where many other settings were swept, a panel for each value of the one with most values."""
    rest = [key for key in found.settings if key != x]
    name = metrics[0].rpartition("/")[2]
    title = "Security curve" if path.name == SECURITY else f"{name} over {x}"
    ylabel, from_zero = name if len(metrics) > 1 else metrics[0], path.name == SECURITY
    most = max(rest, key=lambda key: len(found.by([key])), default=None)
    if most is not None and len(rest) > 1 and len(found.by(rest)) > plots.FEW and len(found.by([most])) <= PANELS:
        others = [key for key in rest if key != most]
        panels = {_label(found, each): _curves(found, x, metrics, others, jobs) for each, jobs in found.by([most])}
        panels = {label: lines for label, lines in panels.items() if lines}
        if panels:
            plots.panels(panels, x, ylabel, title, path, from_zero=from_zero)
        return path.name if panels else ""
    lines = _curves(found, x, metrics, rest, found.jobs)
    if lines:
        plots.curves(lines, x, ylabel, title, path, from_zero=from_zero)
    return path.name if lines else ""


def _curves(
    found: Summary, x: str, metrics: Sequence[str], rest: Sequence[str], jobs: Sequence[Job]
) -> list[plots.Curve]:
    """A color for each combination of the settings of `rest`, all but the first metric dashed."""
    name = metrics[0].rpartition("/")[2]
    lines, clean = [], set()
    colors = {tuple(settings.values()): color for color, (settings, _) in enumerate(found.by(rest))}
    for settings, alike in found.by(rest, jobs):
        label = _label(found, settings)
        groups = [Group(each, same) for each, same in found.by([x], alike)]
        for metric in metrics:
            points = [(float(each.settings[x]), each.spread(metric)) for each in groups]
            known = [(at, spread) for at, spread in points if spread.n]
            if not known:
                continue
            means = [spread.mean for _, spread in known]
            side = metric.rpartition("/")[0] if len(metrics) > 1 else ""
            if side == "clean":
                clean |= set(means)
            lines.append(
                plots.Curve(
                    " ".join(each for each in (side, label) if each) or name,
                    [at for at, _ in known],
                    means,
                    [spread.std for _, spread in known],
                    colors[tuple(settings.values())],
                    dashed=metric != metrics[0],
                )
            )
    if len(clean) == 1:  # the attacks of one model
        first = next(each for each in lines if each.dashed)
        one = replace(first, label="clean", color=plots.GREY)
        lines = [one if each is first else each for each in lines if not each.dashed or each is first]
    return lines


def _bars(found: Summary, metric: str, path: Path) -> str:
    spreads = {_label(found, group.settings): group.spread(metric) for group in found.groups if group.done}
    means = {label: each.mean for label, each in spreads.items()}
    std = [each.std if each.n > 1 else 0.0 for each in spreads.values()]
    plots.bars(means, [], metric, metric, path, std=std if any(std) else None)
    return path.name


def _heatmap(found: Summary, rows: str, columns: str, metric: str, path: Path) -> str:
    panels = {}
    for settings, jobs in found.by([key for key in found.settings if key not in (rows, columns)]):
        values = {
            (each[rows], each[columns]): Group(each, alike).spread(metric).mean
            for each, alike in found.by([rows, columns], jobs)
        }
        order = {key: sorted({job.overrides[key] for job in found.jobs}, key=float) for key in (rows, columns)}
        cells = [[values.get((row, column), float("nan")) for column in order[columns]] for row in order[rows]]
        panels[_label(found, settings)] = pd.DataFrame(
            cells, index=pd.Index(order[rows], name=rows), columns=pd.Index(order[columns], name=columns)
        )
    if all(frame.isna().to_numpy().all() for frame in panels.values()):
        return ""
    plots.heatmap(panels, metric, path)
    return path.name


def _label(found: Summary, settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={found.called.get(value, value)}" for key, value in settings.items())


def _spread(value: Spread) -> str:
    if not value.n:
        return "–"
    return _number(value.mean) if value.n == 1 else f"{_number(value.mean)} ± {_number(value.std)}"


def _number(value: float) -> str:
    return f"{value + 0.0:.4f}"  # no -0.0000


def _plain(value: float) -> float | None:
    return None if value != value else value


def _bare(text: str) -> str:
    return text.replace("[bold]", "").replace("[/bold]", "")


def _short(found: Summary, value: str) -> str:
    """What a run is called; the digits that a sampler draws beyond the fifth are for sweep.csv."""
    if value in found.called:
        return found.called[value]
    return f"{float(value):.5g}" if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", value) else value
