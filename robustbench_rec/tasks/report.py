"""rrec report."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rec.console import line
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.progress import Bar
from robustbench_rec.reports.page import Before
from robustbench_rec.reports.reading import Book, Found, runs
from robustbench_rec.reports.render import FORMATS, write
from robustbench_rec.reports.sections import page
from robustbench_rec.tasks.lists import lists

PATIENCE = 120.0
"""Seconds that an attack may have taken to be run again for its lists."""
MODELS = 4
"""Whose lists are shown."""


def run(paths: Sequence[Path], out: Path, formats: Sequence[str], users: int, data_dir: str | None) -> list[Path]:
    """Read the runs in directories and write a report about them; the files that it consists of."""
    for each in formats:
        if each not in FORMATS:
            raise unknown("format of a report", each, FORMATS)
    if out.suffix not in (".html", ".htm"):
        raise RrecError(f"--out {out}: a report is an .html file (other formats of its tables: --formats md,csv,tex)")
    if users < 0:
        raise RrecError(f"users={users}: 0 or more are needed")
    book = Book(runs(paths))
    shown, notes = _lists(book, users, data_dir) if users else ([], [])
    with Bar("report", total=1, steps=1) as bar:
        written = write(page(book, shown, notes), out, formats)
        count = sum(each.asked for each in book.runs)
        bar.note(0, f"{count} run{'s' * (count != 1)}")
    for path in written:
        line(str(path))
    return written


def _lists(book: Book, users: int, data_dir: str | None) -> tuple[list[Before], list[str]]:
    """Of one attack a model, the one with the largest budget that did not take long."""
    found: dict[str, tuple[Found, Found]] = {}
    for each in book.runs:
        source = book.source(each)
        plain = each.verb == "attack" and not each.poisoned and each.config.get("frontier") is None
        if not plain or source is None or each.metrics is None or any(n.startswith("member/") for n in each.metrics):
            continue
        seconds = each.record.get("seconds")
        if isinstance(seconds, (int, float)) and seconds <= PATIENCE:
            best = found.get(book.victim(each))
            if best is None or (each.eps or 0) > (best[0].eps or 0):
                found[book.victim(each)] = (each, source)
    told, notes = [], []
    chosen = list(found.items())[:MODELS]
    with Bar("lists", total=len(chosen), steps=1) as bar:
        for number, (victim, (each, source)) in enumerate(chosen):
            label = f"{victim}, {each.named('attack')}" + ("" if each.eps is None else f", eps {each.eps:g}")
            try:
                told.append(lists(each, source, label, n=users, data_dir=data_dir))
            except RrecError as error:
                notes.append(f"No lists of {label}: {error}")
            bar.note(number, label)
    return told, notes
