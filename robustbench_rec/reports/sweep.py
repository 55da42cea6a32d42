"""What a sweep ends with: one table, `sweep.csv` and, for attacks over eps, the security curve."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robustbench_rec.files import write_text
from robustbench_rec.reports import plots, seeds


@dataclass(frozen=True)
class Job:
    """One run of a sweep. metrics: None when it failed. error: why, as one line."""

    name: str
    overrides: Mapping[str, str]
    metrics: Mapping[str, float] | None
    error: str | None = None


def report(jobs: Sequence[Job], directory: Path, verb: str, console: Console) -> None:
    """Print the table of a sweep and write `sweep.csv` and, where it applies, `security_curve.png` to `directory`."""
    swept = swept_keys(jobs)
    _write_csv(jobs, swept, directory / "sweep.csv")
    written = ["sweep.csv"]
    if verb == "attack" and "eps" in swept and _curve(jobs, swept, directory / "security_curve.png"):
        written.append("security_curve.png")
    console.print(_table(jobs, swept, console.width))
    if seeds.SEED in swept and _over_seeds(jobs, swept, directory / "seeds.csv", console):
        written.append("seeds.csv")
    for job in jobs:
        if job.error:
            console.print(f"job {job.name} failed: {job.error}", style="red", markup=False, soft_wrap=True)
    console.print(f"{directory}: {', '.join(written)}", markup=False, highlight=False, soft_wrap=True)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides that differ between the jobs, in the order in which they were given; all of them for one job."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    return [key for key in keys if len(jobs) == 1 or len({job.overrides.get(key) for job in jobs}) > 1]


def _metrics(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(key for job in jobs for key in job.metrics or ()))


def _write_csv(jobs: Sequence[Job], swept: Sequence[str], path: Path) -> None:
    metrics = _metrics(jobs)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["job", *swept, *metrics, "error"])
    for job in jobs:
        values = [(job.metrics or {}).get(key) for key in metrics]
        rows.writerow([job.name, *(job.overrides.get(key) for key in swept), *values, job.error])
    write_text(path, text.getvalue())


def _over_seeds(jobs: Sequence[Job], swept: Sequence[str], path: Path, console: Console) -> bool:
    """Means over seeds, the first metric of each prefix shown; whether there are any."""
    done = [job for job in jobs if job.metrics is not None]
    if not done:
        return False
    settings = [{key: job.overrides.get(key, "") for key in swept} for job in done]
    frame = seeds.by_seed(settings, [job.metrics or {} for job in done])
    write_text(path, frame.to_csv(index=False))
    firsts: dict[str, str] = {}
    for name in _metrics(done):
        firsts.setdefault(name.rpartition("/")[0], name)
    console.print(seeds.table(frame, list(firsts.values())[:4]))
    return True


def _table(jobs: Sequence[Job], swept: Sequence[str], width: int) -> Table:
    """As many of the metrics that differ as the console is wide: the first of each prefix, then the second, …"""
    by_prefix: dict[str, list[str]] = defaultdict(list)
    done = [job.metrics for job in jobs if job.metrics is not None]
    for key in _metrics(jobs):
        if len(done) < 2 or len({each.get(key) for each in done}) > 1:
            by_prefix[key.rpartition("/")[0]].append(key)
    interleaved = [key for row in zip_longest(*by_prefix.values()) for key in row if key is not None]
    headers = {key: key.replace("/", "\n") for key in interleaved}

    def wide(*cells: str) -> int:
        return 3 + max(len(line) for cell in cells for line in cell.split("\n"))

    left = (
        width - 1 - wide("job") - sum(wide(key, *(_short(job.overrides.get(key, "")) for job in jobs)) for key in swept)
    )
    shown: list[str] = []
    for key in interleaved:
        left -= wide(headers[key], "-0.0000")
        if shown and left < 0:
            break
        shown.append(key)
    hidden = len(interleaved) - len(shown)
    table = Table(caption=f"further metrics in sweep.csv: {hidden}" if hidden else None)
    table.add_column("job", justify="right")
    for key in swept:
        table.add_column(key)
    for key in shown:
        table.add_column(headers[key], justify="right")
    for job in jobs:
        if job.metrics is None:
            cells = ["failed", *("" for _ in shown[1:])]
        else:
            cells = [_cell(job.metrics.get(key)) for key in shown]
        style = "red" if job.metrics is None else None
        table.add_row(job.name, *(_short(job.overrides.get(key, "")) for key in swept), *cells, style=style)
    if not shown:
        table.caption = "every job failed" if not done else "all jobs have the same metrics"
    return table


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value + 0.0:.4f}"  # no -0.0000


def _short(value: str) -> str:
    """The digits that a sampler draws beyond the fifth are for sweep.csv."""
    return f"{float(value):.5g}" if re.fullmatch(r"-?\d+\.\d{6,}(e-?\d+)?", value) else value


def _curve(jobs: Sequence[Job], swept: Sequence[str], path: Path) -> bool:
    """The attacked metric over eps, a line per combination of the other swept keys, its clean value dashed."""
    lines: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    attacked = [key for key in _metrics(jobs) if key.startswith("attacked/")]
    if not attacked:
        return False
    metric = attacked[0].removeprefix("attacked/")
    for job in jobs:
        values = job.metrics or {}
        hit, clean = values.get(f"attacked/{metric}"), values.get(f"clean/{metric}")
        if hit is not None and clean is not None:
            label = ", ".join(f"{key}={job.overrides.get(key, '')}" for key in swept if key != "eps")
            lines[label].append((float(job.overrides["eps"]), hit, clean))
    if not lines:
        return False
    drawn, axes = plots.figure(xlabel="eps", ylabel=metric, title="Security curve")
    one = len({clean for points in lines.values() for *_, clean in points}) == 1  # the attacks of one model
    for label, points in lines.items():
        eps, hit_line, clean_line = zip(*sorted(points), strict=True)
        (line,) = axes.plot(eps, hit_line, marker="o", label=label or "attacked")
        if not one:
            axes.plot(eps, clean_line, linestyle="--", color=line.get_color(), label=f"clean {label}".strip())
    if one:
        axes.axhline(clean_line[0], linestyle="--", color="grey", label="clean")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    plots.write(drawn, path)
    return True
