"""Sections about clean quality, limits on it, poisoned training data, and other parts, protocols and noise."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_rec.reports.page import Cell, Section, Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.cells import NOISE, change, frame_of, marked, table_of
from robustbench_rec.reports.sections.grouping import (
    NAN,
    chosen_metrics,
    in_words,
    judged_again,
    judging_of,
    places,
    settings_of,
)
from robustbench_rec.significance import over_seeds

CHECK = ["check", "wanted", "found", "verdict"]
"""Columns of `gate.csv`."""


def clean(trained: Mapping[str, Sequence[Found]], book: Book, main: str) -> Section | None:
    """Quality on test, the main metrics and then all of them, a table for each place."""
    part, blocks = "test", []
    for number, (place, here) in enumerate(places(trained, book).items()):
        every = list(dict.fromkeys(name for runs in here.values() for run in runs for name in run.metrics or ()))
        names = [name.partition("/")[2] for name in every if name.startswith(f"{part}/")]
        suffix = f"_{number + 1}" if number else ""
        for title, chosen, folded in (
            ("Quality on test", chosen_metrics(names, main), False),
            ("All metrics", names, True),
        ):
            if not names:
                continue
            columns = [
                marked(
                    [over_seeds([(e.metrics or {}).get(f"{part}/{name}", NAN) for e in r]) for r in here.values()], name
                )
                for name in chosen
            ]
            short = book.brief(here)
            rows = [
                [Cell(short[label]), Cell(len(runs)), *(column[index] for column in columns)]
                for index, (label, runs) in enumerate(here.items())
            ]
            name = f"clean_all{suffix}" if folded else f"clean{suffix}"
            note = "" if folded else NOISE
            blocks.append(Table(name, f"{title}: {place}", ["model", "runs", *chosen], rows, note, folded))
    return Section("clean", "Clean quality", "", blocks) if blocks else None


def poisoned(done: Sequence[Found], book: Book, main: str) -> Section | None:
    """Runs that trained again with fake users."""
    here = [each for each in done if each.poisoned]
    if not here:
        return None
    groups: dict[tuple[str, str], list[Found]] = {}
    named: dict[str, tuple[str, dict[str, Any]]] = {}
    for run in here:
        how = settings_of(run)
        exact = json.dumps(how, sort_keys=True, default=str)
        named[exact] = run.named("poison"), how
        groups.setdefault((book.victim(run), exact), []).append(run)
    words = in_words(named)
    rows = []
    for (victim, exact), runs in groups.items():
        names = [key.partition("/")[2] for key in runs[0].metrics or () if key.startswith("clean/")]
        for name in chosen_metrics(names, main) + [each for each in names if each.startswith("t_")]:
            spreads = [
                over_seeds([(run.metrics or {}).get(f"{side}/{name}", NAN) for run in runs])
                for side in ("clean", "poisoned", "change")
            ]
            cells = [*map(Cell, spreads[:2]), change(spreads[2])]
            rows.append([Cell(victim), Cell(words[exact]), Cell(name), Cell(len(runs)), *cells])
    columns = ["model", "poison", "metric", "runs", "clean", "poisoned", "change"]
    told = "Trained again with fake users; t_… are about the items that these are to push, for users without them."
    return Section("poisoned", "Poisoned training data", told, [Table("poisoned", "Retrained", columns, rows)])


def judged(done: Sequence[Found], book: Book, main: str) -> Section | None:
    """`rrec eval`: other parts, protocols, noise."""
    found = judged_again(done, book)
    if not found:
        return None
    names = [key.partition("/")[2] for runs in found.values() for run in runs for key in run.metrics or ()]
    chosen = chosen_metrics(names, main)
    rows = []
    for (label, where), runs in found.items():
        told = [{key.partition("/")[2]: value for key, value in (run.metrics or {}).items()} for run in runs]
        spreads = [over_seeds([each.get(name, NAN) for each in told]) for name in chosen]
        rows.append([Cell(label), Cell(where), Cell(len(runs)), *map(Cell, spreads)])
    table = Table("judged", "Judged again", ["model", "on", "runs", *chosen], rows)
    return Section("judged", "Other parts, protocols and noise", "", [table])


def certified(done: Sequence[Found], book: Book) -> Section | None:
    """What `rrec eval certify=…` proved."""
    blocks = []
    for number, run in enumerate(each for each in done if each.named("certify") != "none"):
        frame = frame_of(run.path / "certified.csv", ["metric", "clean", "certified"], ["clean", "certified"])
        if frame is not None:
            title = f"{book.victim(run)}, {judging_of(run)}"
            blocks.append(table_of(f"certified_{number + 1}", title, frame, folded=len(frame) > 24))
    told = (
        "A certified value holds against every attacker of that budget; an empirical one is what the best attack left."
    )
    return Section("certified", "Certificates", told, blocks) if blocks else None


def gates(done: Sequence[Found], book: Book) -> Section | None:
    """`rrec gate`: what each model was held to, and whether it kept it."""
    rows = []
    for run in done:
        if run.verb != "gate":
            continue
        attack = run.named("attack")
        attack += "" if attack == "none" or run.eps is None else f", eps {run.eps:g}"
        frame = frame_of(run.path / "gate.csv", CHECK, [])
        checks = [[NAN, NAN, NAN, "unknown"]] if frame is None else frame[CHECK].astype(str).to_numpy().tolist()
        rows += [[Cell(each) for each in (run.name, book.victim(run), attack, *check)] for check in checks]
    table = Table("gates", "Checks", ["run", "model", "attack", *CHECK], rows)
    return Section("gates", "Gates", "", [table]) if rows else None
