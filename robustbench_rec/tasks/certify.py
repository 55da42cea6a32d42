"""rrec eval with a certificate."""

from pathlib import Path
from typing import Any

from robustbench_rec.certificates import certificates
from robustbench_rec.certified import Certificate, certifiable, guaranteed
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.config import Eval
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Full
from robustbench_rec.files import write_text
from robustbench_rec.reports import plots
from robustbench_rec.reports.tables import Row, show

SHOWN = ("hr", "ndcg")
NONE = float("nan")


def certificate(cfg: Eval) -> Certificate | None:
    """The certificate that is asked for; RrecError where it needs another protocol."""
    if cfg.certify["name"] == "none":
        return None
    if cfg.protocol != "full":
        raise RrecError(f"protocol={cfg.protocol}: a certificate is about lists of the whole catalogue, protocol=full")
    return certificates.build(cfg.certify)


def certified(proof: Certificate, cfg: Eval, loaded: Loaded, judging: Evaluator[Any], out: Path) -> dict[str, float]:
    """Certified, empirical and clean quality over the budget: a table, `certified.csv`, `certified.png` and metrics."""
    assert isinstance(judging, Full)
    names = certifiable(judging)
    found = proof.certify(loaded, judging, cfg.part)
    clean = found.clean.metrics
    told = {f"certified/clean/{name}": clean[name] for name in names}
    lines: list[list[str | float]] = []
    for budget, above in zip(proof.budgets, found.above, strict=True):
        proven = guaranteed(judging, cfg.part, above).metrics
        left = {}
        if proof.attacked:
            left = (proof.attack(loaded, judging, cfg.part, budget) if budget else found.clean).metrics
        for name in names:
            told[f"certified/{name}@{budget:g}"] = proven[name]
            if left:
                told[f"empirical/{name}@{budget:g}"] = left[name]
                told[f"gap/{name}@{budget:g}"] = left[name] - proven[name]
            lines.append([name, budget, clean[name], proven[name], left.get(name, NONE)])
    told |= {f"certified/{name}": value for name, value in found.notes.items()}
    header = ["metric", proof.unit, "clean", "certified", "empirical", "gap"]
    rows: list[Row] = [[*line, float(line[4]) - float(line[3])] for line in lines]
    title = what = f"{loaded.data.name}, {cfg.part}: {cfg.certify['name']}"
    if proof.trains:
        what += ", of models trained here; ckpt names the data"
    show(what, ["threat", ""], [list(each) for each in proof.declared.words().items()])
    shown = [row for row in rows if str(row[0]).partition("@")[0] in SHOWN] or rows
    told_of, least = ("proven, and what the best attack left", 6) if proof.attacked else ("proven", 4)
    show(told_of, header[:least], [[row[0], f"{row[1]:g}", *row[2:least]] for row in shown])
    if found.notes:
        show("beside", ["", ""], [[each, value] for each, value in found.notes.items()])
    write_text(out / "certified.csv", "\n".join(",".join(map(_cell, row)) for row in [header, *rows]) + "\n")
    plots.certified(lines, proof.unit, title, out / "certified.png")
    return told


def _cell(value: str | float) -> str:
    return "" if value != value else str(value)
