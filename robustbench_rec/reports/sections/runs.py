"""Sections about the runs themselves: what was run, what it cost, what failed."""

from collections.abc import Mapping, Sequence

from robustbench_rec.reports.page import Cell, Section, Table
from robustbench_rec.reports.reading import Book, Found, is_number, parameters
from robustbench_rec.reports.sections.grouping import NAN, judging_of, kind_of, root_of, split_seeds
from robustbench_rec.significance import over_seeds


def ran(asked: Sequence[Found], book: Book) -> Section:
    """All runs that were asked for, what they were told, their data and versions."""
    rows = []
    for run in asked:
        what = book.label(run) if run.verb in ("train", "distill", "finetune") else book.victim(run)
        how = f"{kind_of(run)}, eps {run.config.get('eps')}" if run.verb == "attack" and not run.poisoned else ""
        how = f"poison {run.named('poison')}" if run.poisoned else how
        how = judging_of(run) if run.verb in ("eval", "gate") else how
        stopped = "unfinished" if run.record.get("status") == "running" else "failed"
        state = stopped if run.metrics is None else "done"
        cells = [run.name, run.verb, what, how, _seeds(run, book), state, run.record.get("start")]
        rows.append([Cell(each if each is None or is_number(each) else str(each)) for each in cells])
    columns = ["run", "verb", "model", "how", "seed", "state", "started"]
    blocks = [Table("runs", "Runs", columns, rows, folded=len(rows) > 24)]
    words = [[Cell(run.name), Cell(" ".join(run.overrides))] for run in asked if run.overrides]
    if words:
        blocks.append(Table("overrides", "What they were told", ["run", "overrides"], words, folded=True))
    data: dict[tuple[str, ...], int] = {}
    for run in asked:
        name = root_of(run, book).named("dataset")
        name = str(run.record.get("dataset", "unknown")) if name == "none" else name
        key = (name, str(run.record.get("fingerprint", "–"))[:16])
        data[key] = data.get(key, 0) + 1
    told = [[Cell(name), Cell(print_), Cell(n)] for (name, print_), n in data.items()]
    blocks.append(Table("data", "Data", ["dataset", "fingerprint", "runs"], told))
    versions: dict[tuple[str, str], int] = {}
    for run in asked:
        there = run.record.get("versions")
        told_of = {"python": run.record.get("python"), "platform": run.record.get("platform")}
        for name, version in (told_of | dict(there if isinstance(there, Mapping) else {})).items():
            if version is not None:
                versions[str(name), str(version)] = versions.get((str(name), str(version)), 0) + 1
    table = [[Cell(name), Cell(version), Cell(n)] for (name, version), n in versions.items()]
    blocks.append(Table("versions", "Versions", ["of", "version", "runs"], table, folded=True))
    return Section("ran", "What was run", "", blocks)


def _seeds(run: Found, book: Book) -> str:
    """Of the training, distillation or fine-tuning that it is about, and of the split."""
    made = run if run.verb in ("train", "distill", "finetune") else book.source(run) or run
    split = split_seeds([run], book)
    return f"{made.config.get('seed')}{f', split {split}' if split else ''}"


def cost(done: Sequence[Found], book: Book) -> Section | None:
    """Time and memory of each kind of run."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for run in done:
        label = book.label(run) if run.verb in ("train", "distill", "finetune") else book.victim(run)
        verb = f"{run.verb} {run.named('poison' if run.poisoned else 'attack')}" if run.verb == "attack" else run.verb
        verb += " along a frontier" if run.config.get("frontier") is not None else ""
        verb += f" {run.named('certify')}" if run.named("certify") != "none" else ""
        groups.setdefault((label, verb), []).append(run)
    rows = []
    for (label, verb), runs in groups.items():
        seconds, memory = (
            over_seeds(
                [float(each.record.get(key) or NAN) if is_number(each.record.get(key)) else NAN for each in runs]
            )
            for key in ("seconds", "peak_memory_mib")
        )
        if seconds.n:
            device = ", ".join(sorted({str(each.record.get("device", "?")) for each in runs}))
            sizes = {size for each in runs if (size := parameters(each.path)) is not None}
            held = Cell(sizes.pop() if len(sizes) == 1 else None)
            told = [f"{each.mean:.1f}" if each.n else "–" for each in (seconds, memory)]
            cells = [*map(Cell, told), held, Cell(device)]
            rows.append([Cell(label), Cell(verb), Cell(len(runs)), *cells])
    columns = ["model", "verb", "runs", "seconds", "peak memory (MiB)", "parameters", "device"]
    note = (
        "Wall time of the whole run on the machine that it ran on; memory is the largest resident set of its process."
    )
    return Section("cost", "Cost", "", [Table("cost", "Time and memory", columns, rows, note)]) if rows else None


def failed(asked: Sequence[Found]) -> Section | None:
    """Why there are no results."""
    here = [each for each in asked if each.metrics is None]
    if not here:
        return None
    rows = [[Cell(each.name), Cell(each.verb), Cell(each.error or "")] for each in here]
    return Section("failed", "Failed runs", "", [Table("failed", "No results", ["run", "verb", "why"], rows)])
