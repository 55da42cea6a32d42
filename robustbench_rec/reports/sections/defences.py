"""Sections about fine-tuning and the early-stopping frontier."""

from collections.abc import Sequence
from functools import partial

from robustbench_rec.evaluation.frontier import verdict
from robustbench_rec.reports import plots
from robustbench_rec.reports.page import Cell, Figure, Section, Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.cells import frame_of, table_of
from robustbench_rec.reports.sections.grouping import beyond, held_against

EARLY = (
    "Mean ± standard deviation over the runs of one recipe; 95 %: over users, the mean of their intervals. It beats "
    "the undefended run, or is worse, only where 0 is not in that interval and the mean is larger than the deviation."
)


def finetuned(done: Sequence[Found], book: Book) -> Section | None:
    """Criticality of modules and the way from the start to the tuned model."""
    blocks: list[Table | Figure] = []
    tuned_runs = [each for each in done if each.verb == "finetune"]
    labels = [book.label(each) for each in tuned_runs]
    for number, (run, label) in enumerate(zip(tuned_runs, labels, strict=True)):
        label = label if labels.count(label) == 1 else f"{label}, {run.name}"
        several = sorted(run.path.glob("round-*/criticality.csv"), key=lambda each: (len(each.parts[-2]), each))
        for place, path in enumerate(sorted(run.path.glob("criticality.csv")) or several):
            frame = frame_of(path, ["module", "criticality", "tuned"], ["criticality"])
            if frame is None or not len(frame):
                continue
            name = f"criticality_{number + 1}" + ("" if path.parent == run.path else f"_round-{place + 1}")
            values = {str(m): float(c) for m, c in zip(frame["module"], frame["criticality"], strict=True)}
            tuned = [str(m) for m in frame.loc[frame["tuned"].notna(), "module"]]
            title = f"{label}: criticality of its modules"
            draw = partial(plots.bars, values, tuned, "", "rise of the loss, the module alone moved")
            blocks.append(Figure(name, title, draw, "Red: tuned."))
            rows = [[Cell(m), Cell(c), Cell("yes" if m in tuned else "")] for m, c in values.items()]
            blocks.append(Table(name, title, ["module", "criticality", "tuned"], rows, folded=True))
        frame = frame_of(run.path / "alpha.csv", ["alpha", "score"], None)
        if frame is not None and len(frame):
            scores = frame["score"].fillna(float("-inf")).to_numpy()
            best = float(frame["alpha"].to_numpy()[scores.argmax()])
            draw = partial(plots.lines, frame.drop(columns="score"), "alpha", "", marked=best)
            title = f"{label}: from the start (α = 0) to the tuned model (α = 1), on validation"
            blocks.append(Figure(f"alpha_{number + 1}", title, draw))
            blocks.append(table_of(f"alpha_{number + 1}", title, frame))
    return Section("finetuned", "Fine-tuning", "", blocks) if blocks else None


def frontiers(done: Sequence[Found], book: Book, main: str) -> Section | None:
    """Runs beside an undefended one that stopped earlier."""
    blocks: list[Table | Figure] = []
    rows = []
    for (victim, attack), runs in held_against(done, book).items():
        for run in runs:
            frame = frame_of(run.path / "frontier.csv", ["run", "state", "clean", "attacked"], ["clean", "attacked"])
            if frame is None:
                continue
            metric = next((name.partition("/")[2] for name in run.metrics or () if name.startswith("clean/")), main)
            title = f"{victim}, {attack}" + (f", {run.name}" if len(runs) > 1 else "")
            name = f"frontier_{len(blocks) // 2 + 1}"
            blocks.append(Figure(name, title, partial(plots.tradeoff, frame, metric, title="")))
            blocks.append(table_of(name, title, frame))
        for measure in ("gap", "area"):
            value, low, high = beyond(runs, measure)
            if value.n:
                words = [Cell(f"{victim}, {attack}"), Cell(measure), Cell(value), Cell(low), Cell(high)]
                rows.append([*words, Cell(value.n), Cell(verdict(value, low, high))])
    if rows:
        columns = ["model", "measure", "beyond the frontier", "95 % from", "to", "runs", "verdict"]
        blocks.insert(0, Table("frontier", "At equal clean quality", columns, rows, EARLY))
    told = "A defence is worth something where it leaves more under attack than an undefended run that stops earlier."
    return Section("frontier", "Early-stopping frontier", told, blocks) if blocks else None
