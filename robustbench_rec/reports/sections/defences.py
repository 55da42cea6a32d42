"""Sections about fine-tuning and the early-stopping frontier."""

from collections.abc import Sequence
from functools import partial

from robustbench_rec.reports import plots
from robustbench_rec.reports.page import Cell, Figure, Section, Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.cells import frame_of, table_of
from robustbench_rec.reports.sections.grouping import NAN, kind_of


def finetuned(done: Sequence[Found], book: Book) -> Section | None:
    """Criticality of modules and the way from the start to the tuned model."""
    blocks: list[Table | Figure] = []
    tuned_runs = [each for each in done if each.verb == "finetune"]
    labels = [book.label(each) for each in tuned_runs]
    for number, (run, label) in enumerate(zip(tuned_runs, labels, strict=True)):
        label = label if labels.count(label) == 1 else f"{label}, {run.name}"
        for path in sorted(run.path.glob("criticality.csv")) or sorted(run.path.glob("round-*/criticality.csv")):
            frame = frame_of(path, ["module", "criticality", "tuned"], ["criticality"])
            if frame is None or not len(frame):
                continue
            name = f"criticality_{number + 1}" + ("" if path.parent == run.path else f"_{path.parent.name}")
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
    for number, run in enumerate(each for each in done if each.config.get("frontier") is not None):
        frame = frame_of(run.path / "frontier.csv", ["run", "state", "clean", "attacked"], ["clean", "attacked"])
        if frame is None:
            continue
        metrics = run.metrics or {}
        metric = next((name.partition("/")[2] for name in metrics if name.startswith("clean/")), main)
        title = f"{book.victim(run)}, {kind_of(run)}, eps {run.config.get('eps')}"
        blocks.append(Figure(f"frontier_{number + 1}", title, partial(plots.tradeoff, frame, metric, title="")))
        blocks.append(table_of(f"frontier_{number + 1}", title, frame))
        for name in ("gap", "area"):
            if f"frontier/{name}" in metrics:
                low, high, p = (metrics.get(f"frontier/{name}/{each}", NAN) for each in ("low", "high", "p"))
                verdict = "not known" if low != low else "beats it" if low > 0 else "does not beat it"
                value = Cell(metrics[f"frontier/{name}"], "within noise" if low <= 0 <= high else "")
                rows.append([Cell(title), Cell(name), value, Cell(low), Cell(high), Cell(p), Cell(verdict)])
    if rows:
        columns = ["model", "measure", "beyond the frontier", "95 % from", "to", "p", "verdict"]
        blocks.insert(0, Table("frontier", "At equal clean quality", columns, rows))
    told = "A defence is worth something where it leaves more under attack than an undefended run that stops earlier."
    return Section("frontier", "Early-stopping frontier", told, blocks) if blocks else None
