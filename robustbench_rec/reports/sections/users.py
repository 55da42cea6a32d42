"""Sections about groups of users and items, and about the lists of some users."""

from collections.abc import Sequence

from robustbench_rec.reports.page import Before, Cell, Section, Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.cells import frame_of, table_of
from robustbench_rec.reports.sections.grouping import kind_of


def slices(done: Sequence[Found], book: Book) -> Section | None:
    """The slices of every run that has some."""
    blocks = []
    for number, run in enumerate(done):
        frame = frame_of(run.path / "slices.csv", ["attribute", "slice", "metric"], [])
        if frame is None:
            continue
        label = book.victim(run) if "ckpt" in run.config and run.verb != "finetune" else book.label(run)
        title = f"{label}, {kind_of(run)}, eps {run.config.get('eps')}" if run.verb == "attack" else label
        blocks.append(table_of(f"slices_{number + 1}", title, frame, folded=len(frame) > 40))
    return Section("slices", "Slices", "Groups of users and items, each judged by itself.", blocks) if blocks else None


def lists(shown: Sequence[Before]) -> Section | None:
    """The first items before and after an attack."""
    blocks = []
    for number, each in enumerate(shown):
        for user in each.users:
            rows = [
                [Cell(place + 1), Cell(was, "hit" if hit else ""), Cell(now, "hit" if kept else "")]
                for place, ((was, hit), (now, kept)) in enumerate(zip(user.before, user.after, strict=True))
            ]
            title = f"{each.label}: user {user.name}, {user.why}"
            note = f"Before: {', '.join(user.history)}" if user.history else ""
            columns = ["place", "before the attack", "after it"]
            blocks.append(Table(f"lists_{number + 1}_{user.place}", title, columns, rows, note, folded=number > 0))
    told = "The attack was run again for these lists. Hits are what the user really chose in the part that is judged."
    return Section("lists", "Lists of some users", told, blocks) if blocks else None
