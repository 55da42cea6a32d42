"""Sections about attacks on models as they are: tables, security curves, what clean quality costs."""

from collections.abc import Mapping, Sequence
from functools import partial

from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports import plots
from robustbench_rec.reports.page import Cell, Figure, Section, Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.cells import NOISE, budget, change, marked
from robustbench_rec.reports.sections.grouping import Attacked, typical, worded


def threats(done: Sequence[Found], book: Book) -> Section | None:
    """What the attackers may do, each kind once."""
    rows: dict[tuple[str, ...], int] = {}
    for run in done:
        threat = run.record.get("threat")
        if isinstance(threat, Mapping):
            words = tuple(str(threat.get(key, "–")) for key in ("surface", "goal", "knowledge", "scope", "budget"))
            kind = run.named("poison") if run.poisoned else run.named("attack")
            row = (kind, *words, str(run.record.get("labels", "–")))
            rows[row] = rows.get(row, 0) + 1
    if not rows:
        return None
    columns = ["attack", "surface", "goal", "knowledge", "scope", "budget", "labels", "runs"]
    table = Table(
        "threats", "What the attacker may do", columns, [[*map(Cell, row), Cell(n)] for row, n in rows.items()]
    )
    return Section("threats", "Threat model", "", [table])


def robust(attacks: Sequence[Attacked], main: str) -> Section | None:
    """Quality before and after attacks, all metrics, and signs of attacks that are too weak."""
    if not attacks:
        return None
    groups = dict.fromkeys((each.kind, each.eps, each.splits) for each in attacks)
    several = len({each.splits for each in attacks}) > 1
    rows: list[list[Cell]] = []
    for kind, eps, splits in groups:
        here = [each for each in attacks if (each.kind, each.eps, each.splits) == (kind, eps, splits)]
        how = f"{kind}, split {splits}" if several else kind
        cells = marked([each.spread(f"attacked/{main}") for each in here], main)
        for each, cell in zip(here, cells, strict=True):
            drop = change(each.spread(f"drop/{main}"), share=True)
            clean = Cell(each.spread(f"clean/{main}"))
            rows.append([Cell(each.victim), Cell(how), budget(eps), Cell(len(each.runs)), clean, cell, drop])
    columns = ["model", "attack", "eps", "runs", f"clean {main}", f"attacked {main}", "drop"]
    blocks = [Table("robust", "Before and after the attack", columns, rows, NOISE)]
    if (aimed := _exposure(attacks)) is not None:
        blocks.append(aimed)
    every = list(dict.fromkeys(name for each in attacks for run in each.runs for name in run.metrics or ()))
    full = [
        [Cell(e.victim), Cell(e.kind), budget(e.eps), Cell(name), Cell(e.spread(name))]
        for e in attacks
        for name in every
        if e.spread(name).n
    ]
    blocks.append(Table("robust_all", "All metrics", ["model", "attack", "eps", "metric", "value"], full, folded=True))
    flags = [name for name in every if name.startswith("flag/") and not name.startswith("flag/improvement_undefined/")]
    if flags:
        flagged = [each for each in attacks if any(each.spread(name).n for name in flags)]
        weak = [
            [Cell(e.victim), Cell(e.kind), budget(e.eps), *(Cell(e.spread(name)) for name in flags)] for e in flagged
        ]
        columns = ["model", "attack", "eps", *(name.partition("/")[2].replace("_", " ") for name in flags)]
        told = "All 0 means that nothing suggests masked gradients."
        blocks.append(Table("flags", "Signs of a weak attack", columns, weak, told))
    return Section("robust", "Quality under attack", "", blocks)


def _exposure(attacks: Sequence[Attacked]) -> Table | None:
    """Of the target items of attacks that have such: the share of users who see them."""
    names = dict.fromkeys(name.partition("/")[2] for each in attacks for run in each.runs for name in run.metrics or ())
    main = next((name for name in names if name.startswith("t_hr@")), None)
    if main is None:
        return None
    rows = [
        [
            *(Cell(each.victim), Cell(each.kind), budget(each.eps), Cell(len(each.runs))),
            *(Cell(each.spread(f"{side}/{main}")) for side in ("clean", "attacked")),
            change(each.spread(f"rise/{main}")),
        ]
        for each in attacks
        if each.spread(f"attacked/{main}").n
    ]
    columns = ["model", "attack", "eps", "runs", f"clean {main}", f"attacked {main}", "rise"]
    told = "Share of the users without a target item who have it among their first; what such an attack is for."
    return Table("exposure", "Exposure of the target items", columns, rows, told)


def curves(attacks: Sequence[Attacked], book: Book, main: str) -> Section | None:
    """Security curves of each attack with three points or more, and attacked over clean quality."""
    blocks = []
    for number, kind in enumerate(dict.fromkeys(each.kind for each in attacks)):
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for each in attacks:
            value, clean = each.spread(f"attacked/{main}"), each.spread(f"clean/{main}")
            if each.kind == kind and each.eps is not None and value.n:
                points = lines.setdefault(each.victim, [(0.0, clean.mean, clean.std)] if clean.n else [])
                points[:] = [point for point in points if point[0] != each.eps]
                points.append((each.eps, value.mean, value.std))
        lines = {name: points for name, points in lines.items() if len(points) > 2}
        if lines:
            found, short = [], book.brief(lines)
            for color, (name, points) in enumerate(lines.items()):
                x, mean, std = zip(*points, strict=True)
                found.append(plots.Curve(short[name], x, mean, std, color))
            draw = partial(plots.curves, found, "eps", f"attacked {main}", "", from_zero=True)
            blocks.append(Figure(f"security_curve_{number + 1}", kind, draw))
    traded = _traded(attacks, book, main)
    blocks += [] if traded is None else [traded]
    told = "Quality over the budget of the attack; eps 0 is the clean quality. Bands and bars: sd over seeds."
    return Section("curves", "Security curves and trade-off", told, blocks) if blocks else None


def _traded(attacks: Sequence[Attacked], book: Book, main: str) -> Figure | None:
    """Attacked over clean quality."""
    here = typical(attacks, main)
    way = sign(main)
    if len(here) < 2 or not way:
        return None
    named, short = {}, book.brief(each.victim for each in here)
    for each in here:
        clean, attacked = each.spread(f"clean/{main}"), each.spread(f"attacked/{main}")
        named[short[each.victim]] = (clean.mean, attacked.mean, clean.std, attacked.std)
    front = [
        name
        for name, (x, y, *_) in named.items()
        if not any(way * a >= way * x and way * b >= way * y and (a, b) != (x, y) for a, b, *_ in named.values())
    ]
    draw = partial(plots.points, named, front, f"clean {main}", f"attacked {main}")
    return Figure("tradeoff", worded(here[0]), draw, "Round: no other model is at least as good in both.")
