"""What a report says about runs; every number is one of theirs, or a mean, spread or difference of them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd

from robustbench_rec.metrics.prediction import SMALLER
from robustbench_rec.reports import plots
from robustbench_rec.reports.page import Before, Cell, Figure, Page, Section, Table
from robustbench_rec.reports.reading import LARGEST, LOCAL, Book, Found, without_seeds
from robustbench_rec.significance import Spread, over_seeds, within_noise

PREFERRED = ("ndcg@10", "auc", "rmse")
"""What is shown first, where it is among the metrics."""
COLUMNS = 4
"""Metrics of a table; the folded one has all."""
NAN = float("nan")


@dataclass(frozen=True)
class Attacked:
    """The attack runs of one kind on models that differ in seeds alone.

    victim: their label. kind: of the attack, all but its budget. eps: None where it has none.
    """

    victim: str
    kind: str
    eps: float | None
    runs: Sequence[Found]

    def spread(self, name: str) -> Spread:
        """Of a metric of the runs, "attacked/ndcg@10"."""
        return over_seeds([(each.metrics or {}).get(name, NAN) for each in self.runs])


def page(book: Book, lists: Sequence[Before], notes: Sequence[str]) -> Page:
    """Everything that the files of the runs have something to say about."""
    asked = [each for each in book.runs if each.asked]
    done = _once([each for each in book.runs if each.metrics is not None], book)
    trained = _grouped(done, book)
    attacks = _attacked(done, book)
    main = _main(chain.from_iterable(each.metrics or () for each in done))
    made: list[Section | None] = [
        _threats(done, book),
        _clean(trained, book, main),
        _robust(attacks, main),
        _curves(attacks, main),
        _finetuned(done, book),
        _frontiers(done, book, main),
        _slices(done, book),
        _poisoned(done, book, main),
        _judged(done, book, main),
        _lists(lists),
        _ran(asked, book),
        _cost(done, book),
        _failed(asked),
    ]
    return Page(
        title="What was trained, attacked and found",
        subtitle=_subtitle(asked, book),
        summary=_summary(asked, trained, attacks, done, book, main),
        sections=[each for each in made if each is not None],
        notes=notes,
    )


def _main(names: Iterable[str]) -> str:
    """The metric that stands for all."""
    known = list(dict.fromkeys(each.rpartition("/")[2] for each in names if each.partition("/")[0] in SIDES))
    return next((each for each in PREFERRED if each in known), known[0] if known else "ndcg@10")


SIDES = ("test", "valid", "clean", "attacked", "poisoned")


def _once(done: Sequence[Found], book: Book) -> list[Found]:
    """Without runs that repeat another one, seeds included: they say nothing about the spread over seeds."""
    found: dict[str, Found] = {}
    for run in done:
        told: list[Any] = []
        at: Found | None = run
        while at is not None and len(told) < 5:
            told.append([book.key(at), at.record.get("seeds"), at.config.get("seed")])
            at = book.source(at)
        found.setdefault(json.dumps(told, default=str), run)
    return list(found.values())


def _grouped(done: Sequence[Found], book: Book) -> dict[str, list[Found]]:
    """Runs that made a model, those that differ in seeds alone together."""
    found: dict[str, list[Found]] = {}
    for run in done:
        if run.verb in ("train", "distill", "finetune"):
            found.setdefault(book.label(run), []).append(run)
    return found


def _attacked(done: Sequence[Found], book: Book) -> list[Attacked]:
    """Attacks on a model as it is, those that differ in seeds alone together, by budget."""
    found: dict[tuple[str, str, str, float | None], list[Found]] = {}
    attacks = [run for run in done if run.verb == "attack"]
    several = len({_place(run, book) for run in attacks}) > 1
    for run in attacks:
        if not run.poisoned and run.config.get("frontier") is None:
            eps = run.config.get("eps")
            budget = float(eps) if isinstance(eps, (int, float)) else None
            settings = without_seeds(run.config, (*LOCAL, "ckpt", "eps", "slices"))
            if isinstance(settings.get("attack"), Mapping):
                settings["attack"] = {key: each for key, each in settings["attack"].items() if key != "eps"}
            exact = json.dumps(settings, sort_keys=True, default=str)
            kind = f"{_kind(run)}, {_place(run, book)}" if several else _kind(run)
            found.setdefault((book.victim(run), exact, kind, budget), []).append(run)
    kinds: dict[str, list[str]] = {}
    for _, exact, words, _ in found:
        same = kinds.setdefault(words, [])
        if exact not in same:
            same.append(exact)
    return [
        Attacked(victim, words if len(kinds[words]) == 1 else f"{words} ({kinds[words].index(exact) + 1})", eps, runs)
        for (victim, exact, words, eps), runs in sorted(
            found.items(), key=lambda pair: (pair[0][2], pair[0][3] or 0, pair[0][0])
        )
    ]


def _kind(run: Found) -> str:
    """An attack in a few words."""
    attack = run.config.get("attack")
    attack = attack if isinstance(attack, Mapping) else {}
    words = [str(attack.get("name", "?"))]
    words += [str(attack[key]) for key in ("surface", "norm") if attack.get(key)]
    if run.named("goal") not in ("untargeted", "none"):
        words.append(run.named("goal"))
    part = str(run.config.get("part", "test"))
    return " ".join(words) + ("" if part == "test" else f" on {part}")


def _chosen(names: Iterable[str], main: str) -> list[str]:
    """Metrics for the columns, the main one first, then those at the same depth."""
    known = list(dict.fromkeys(names))
    k = main.partition("@")[2]
    near = [each for each in known if each != main and (each.partition("@")[2] in (k, "") or not k)]
    return ([main] if main in known else []) + near[: COLUMNS - (main in known)]


def marked(spreads: Sequence[Spread], metric: str) -> list[Cell]:
    """A column of means; the best one is marked, and those that are as good as it within seed noise."""
    known = [each for each in spreads if each.n and each.mean == each.mean]
    if len(known) < 2:
        return [Cell(each) for each in spreads]
    better = min if metric.partition("@")[0] in SMALLER else max
    best = better(known, key=lambda each: each.mean)
    marks = {None: "", True: "≈ best", False: ""}
    return [Cell(each, "best" if each.mean == best.mean else marks[within_noise(each, best)]) for each in spreads]


NOISE = (
    "Mean ± standard deviation over seeds where there are several. “≈ best” marks what is as good as the best within "
    "seed noise: the means are nearer than √(sd² + sd²). With one seed the noise is not known and nothing is marked so."
)


def _place(run: Found, book: Book) -> str:
    """The data and the protocol: numbers of two places cannot be compared."""
    root = run
    while (source := book.source(root)) is not None and source is not run and root.named("dataset") == "none":
        root = source
    protocol = str(run.config.get("protocol", "full"))
    return root.named("dataset") if protocol == "full" else f"{root.named('dataset')}, {protocol}"


def _places(trained: Mapping[str, Sequence[Found]], book: Book) -> dict[str, dict[str, Sequence[Found]]]:
    found: dict[str, dict[str, Sequence[Found]]] = {}
    for label, runs in trained.items():
        found.setdefault(_place(runs[0], book), {})[label] = runs
    return found


def _clean(trained: Mapping[str, Sequence[Found]], book: Book, main: str) -> Section | None:
    part, blocks = "test", []
    for number, (place, here) in enumerate(_places(trained, book).items()):
        every = list(dict.fromkeys(name for runs in here.values() for run in runs for name in run.metrics or ()))
        names = [name.partition("/")[2] for name in every if name.startswith(f"{part}/")]
        suffix = f"_{number + 1}" if number else ""
        for title, chosen, folded in (("Quality on test", _chosen(names, main), False), ("All metrics", names, True)):
            if not names:
                continue
            columns = [
                marked(
                    [over_seeds([(e.metrics or {}).get(f"{part}/{name}", NAN) for e in r]) for r in here.values()], name
                )
                for name in chosen
            ]
            rows = [
                [Cell(label), Cell(len(runs)), *(column[index] for column in columns)]
                for index, (label, runs) in enumerate(here.items())
            ]
            name = f"clean_all{suffix}" if folded else f"clean{suffix}"
            note = "" if folded else NOISE
            blocks.append(Table(name, f"{title}: {place}", ["model", "runs", *chosen], rows, note, folded))
    return Section("clean", "Clean quality", "", blocks) if blocks else None


def _robust(attacks: Sequence[Attacked], main: str) -> Section | None:
    if not attacks:
        return None
    groups = dict.fromkeys((each.kind, each.eps) for each in attacks)
    rows: list[list[Cell]] = []
    for kind, eps in groups:
        here = [each for each in attacks if (each.kind, each.eps) == (kind, eps)]
        cells = marked([each.spread(f"attacked/{main}") for each in here], main)
        for each, cell in zip(here, cells, strict=True):
            drop = Cell(each.spread(f"drop/{main}"), share=True)
            clean = Cell(each.spread(f"clean/{main}"))
            rows.append([Cell(each.victim), Cell(kind), _budget(eps), Cell(len(each.runs)), clean, cell, drop])
    columns = ["model", "attack", "eps", "runs", f"clean {main}", f"attacked {main}", "drop"]
    blocks = [Table("robust", "Before and after the attack", columns, rows, NOISE)]
    every = list(dict.fromkeys(name for each in attacks for run in each.runs for name in run.metrics or ()))
    full = [
        [Cell(e.victim), Cell(e.kind), _budget(e.eps), Cell(name), Cell(e.spread(name))]
        for e in attacks
        for name in every
        if e.spread(name).n
    ]
    blocks.append(Table("robust_all", "All metrics", ["model", "attack", "eps", "metric", "value"], full, folded=True))
    flags = [name for name in every if name.startswith("flag/")]
    if flags:
        weak = [[Cell(e.victim), *(Cell(e.spread(name)) for name in flags)] for e in attacks if e.spread(flags[0]).n]
        columns = ["model", *(name.partition("/")[2].replace("_", " ") for name in flags)]
        told = "All 0 means that nothing suggests masked gradients."
        blocks.append(Table("flags", "Signs of a weak attack", columns, weak, told))
    return Section("robust", "Quality under attack", "", blocks)


def _budget(eps: float | None) -> Cell:
    return Cell(None if eps is None else f"{eps:g}")


def _curves(attacks: Sequence[Attacked], main: str) -> Section | None:
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
            draw = partial(plots.bands, lines, "eps", f"attacked {main}")
            blocks.append(Figure(f"security_curve_{number + 1}", kind, draw))
    traded = _traded(attacks, main)
    blocks += [] if traded is None else [traded]
    told = "Quality over the budget of the attack; eps 0 is the clean quality. Bands and bars: sd over seeds."
    return Section("curves", "Security curves and trade-off", told, blocks) if blocks else None


def _typical(attacks: Sequence[Attacked], main: str) -> Sequence[Attacked]:
    """At the attack that most models have been through, and at the middle one of its budgets."""
    groups: dict[tuple[str, float | None], list[Attacked]] = {}
    for each in attacks:
        if each.spread(f"attacked/{main}").n and each.spread(f"clean/{main}").n:
            groups.setdefault((each.kind, each.eps), []).append(each)
    most = max(map(len, groups.values()), default=0)
    largest = [each for each in groups.values() if len(each) == most]
    same = [each for each in largest if each[0].kind == largest[0][0].kind]
    return same[(len(same) - 1) // 2] if same else []


def _at(each: Attacked) -> str:
    return each.kind if each.eps is None else f"{each.kind} with eps {each.eps:g}"


def _traded(attacks: Sequence[Attacked], main: str) -> Figure | None:
    """Attacked over clean quality."""
    here = _typical(attacks, main)
    if len(here) < 2:
        return None
    sign = -1 if main.partition("@")[0] in SMALLER else 1
    named = {}
    for each in here:
        clean, attacked = each.spread(f"clean/{main}"), each.spread(f"attacked/{main}")
        named[each.victim] = (clean.mean, attacked.mean, clean.std, attacked.std)
    front = [
        name
        for name, (x, y, *_) in named.items()
        if not any(sign * a >= sign * x and sign * b >= sign * y and (a, b) != (x, y) for a, b, *_ in named.values())
    ]
    draw = partial(plots.points, named, front, f"clean {main}", f"attacked {main}")
    return Figure("tradeoff", _at(here[0]), draw, "Round: no other model is at least as good in both.")


def _finetuned(done: Sequence[Found], book: Book) -> Section | None:
    blocks: list[Table | Figure] = []
    for number, run in enumerate(each for each in done if each.verb == "finetune"):
        label = book.label(run)
        for path in sorted(run.path.glob("criticality.csv")) or sorted(run.path.glob("round-*/criticality.csv")):
            frame = _frame(path, ["module", "criticality", "tuned"], ["criticality"])
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
        frame = _frame(run.path / "alpha.csv", ["alpha", "score"], None)
        if frame is not None and len(frame):
            best = float(frame["alpha"].to_numpy()[frame["score"].to_numpy().argmax()])
            draw = partial(plots.lines, frame.drop(columns="score"), "alpha", "", marked=best)
            title = f"{label}: from the start (α = 0) to the tuned model (α = 1), on validation"
            blocks.append(Figure(f"alpha_{number + 1}", title, draw))
            blocks.append(_table(f"alpha_{number + 1}", title, frame))
    return Section("finetuned", "Fine-tuning", "", blocks) if blocks else None


def _frontiers(done: Sequence[Found], book: Book, main: str) -> Section | None:
    blocks: list[Table | Figure] = []
    rows = []
    for number, run in enumerate(each for each in done if each.config.get("frontier") is not None):
        frame = _frame(run.path / "frontier.csv", ["run", "state", "clean", "attacked"], ["clean", "attacked"])
        if frame is None:
            continue
        metrics = run.metrics or {}
        metric = next((name.partition("/")[2] for name in metrics if name.startswith("clean/")), main)
        title = f"{book.victim(run)}, {_kind(run)}, eps {run.config.get('eps')}"
        blocks.append(Figure(f"frontier_{number + 1}", title, partial(plots.tradeoff, frame, metric, title="")))
        blocks.append(_table(f"frontier_{number + 1}", title, frame))
        for name in ("gap", "area"):
            if f"frontier/{name}" in metrics:
                low, high, p = (metrics.get(f"frontier/{name}/{each}", NAN) for each in ("low", "high", "p"))
                verdict = "beats it" if low > 0 else "does not beat it"
                value = Cell(metrics[f"frontier/{name}"], "" if low > 0 or high < 0 else "within noise")
                rows.append([Cell(title), Cell(name), value, Cell(low), Cell(high), Cell(p), Cell(verdict)])
    if rows:
        columns = ["model", "measure", "beyond the frontier", "95 % from", "to", "p", "verdict"]
        blocks.insert(0, Table("frontier", "At equal clean quality", columns, rows))
    told = "A defence is worth something where it leaves more under attack than an undefended run that stops earlier."
    return Section("frontier", "Early-stopping frontier", told, blocks) if blocks else None


def _slices(done: Sequence[Found], book: Book) -> Section | None:
    blocks = []
    for number, run in enumerate(done):
        frame = _frame(run.path / "slices.csv", ["attribute", "slice", "metric"], [])
        if frame is None:
            continue
        label = book.victim(run) if "ckpt" in run.config and run.verb != "finetune" else book.label(run)
        title = f"{label}, {_kind(run)}, eps {run.config.get('eps')}" if run.verb == "attack" else label
        blocks.append(_table(f"slices_{number + 1}", title, frame, folded=len(frame) > 40))
    return Section("slices", "Slices", "Groups of users and items, each judged by itself.", blocks) if blocks else None


def _poisoned(done: Sequence[Found], book: Book, main: str) -> Section | None:
    here = [each for each in done if each.poisoned]
    if not here:
        return None
    rows = []
    for run in here:
        metrics = run.metrics or {}
        for name in _chosen((key.partition("/")[2] for key in metrics if key.startswith("clean/")), main) + [
            key.partition("/")[2] for key in metrics if key.startswith("clean/t_")
        ]:
            cells = [Cell(metrics.get(f"{side}/{name}", NAN)) for side in ("clean", "poisoned", "change")]
            row = [Cell(book.victim(run)), Cell(run.named("poison")), Cell(name), *cells]
            if row not in rows:
                rows.append(row)
    columns = ["model", "poison", "metric", "clean", "poisoned", "change"]
    told = "Trained again with fake users; t_… are about the items that these are to push, for users without them."
    return Section("poisoned", "Poisoned training data", told, [Table("poisoned", "Retrained", columns, rows)])


def _judged(done: Sequence[Found], book: Book, main: str) -> Section | None:
    """`rrec eval`: other parts, protocols, noise."""
    found: dict[tuple[str, str], list[Found]] = {}
    for run in done:
        if run.verb == "eval":
            level = run.config["noise"].get("level", "") if run.named("noise") != "none" else ""
            noise = "" if run.named("noise") == "none" else f"{run.named('noise')} {level}".strip()
            where = f"{run.config.get('part')}, {run.config.get('protocol')}"
            found.setdefault((book.victim(run), f"{where}, {noise}" if noise else where), []).append(run)
    if not found:
        return None
    names = [key.partition("/")[2] for runs in found.values() for run in runs for key in run.metrics or ()]
    chosen = _chosen(names, main)
    rows = []
    for (label, where), runs in found.items():
        told = [{key.partition("/")[2]: value for key, value in (run.metrics or {}).items()} for run in runs]
        spreads = [over_seeds([each.get(name, NAN) for each in told]) for name in chosen]
        rows.append([Cell(label), Cell(where), Cell(len(runs)), *map(Cell, spreads)])
    table = Table("judged", "Judged again", ["model", "on", "runs", *chosen], rows)
    return Section("judged", "Other parts, protocols and noise", "", [table])


def _lists(lists: Sequence[Before]) -> Section | None:
    blocks = []
    for number, each in enumerate(lists):
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


def _threats(done: Sequence[Found], book: Book) -> Section | None:
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


def _ran(asked: Sequence[Found], book: Book) -> Section:
    rows = []
    for run in asked:
        what = book.label(run) if run.verb in ("train", "distill", "finetune") else book.victim(run)
        how = f"{_kind(run)}, eps {run.config.get('eps')}" if run.verb == "attack" and not run.poisoned else ""
        how = f"poison {run.named('poison')}" if run.poisoned else how
        seed, state = run.config.get("seed"), "done" if run.metrics is not None else "failed"
        cells = [run.name, run.verb, what, how, seed, state, run.record.get("start")]
        rows.append([Cell(each if each is None or isinstance(each, int) else str(each)) for each in cells])
    columns = ["run", "verb", "model", "attack", "seed", "state", "started"]
    blocks = [Table("runs", "Runs", columns, rows, folded=len(rows) > 24)]
    words = [[Cell(run.name), Cell(" ".join(run.overrides))] for run in asked if run.overrides]
    if words:
        blocks.append(Table("overrides", "What they were told", ["run", "overrides"], words, folded=True))
    data: dict[tuple[str, ...], int] = {}
    for run in asked:
        name = run.named("dataset")
        source = book.source(run)
        name = source.named("dataset") if name == "none" and source is not None else name
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


def _cost(done: Sequence[Found], book: Book) -> Section | None:
    groups: dict[tuple[str, str], list[Found]] = {}
    for run in done:
        label = book.label(run) if run.verb in ("train", "distill", "finetune") else book.victim(run)
        verb = f"{run.verb} {run.named('poison' if run.poisoned else 'attack')}" if run.verb == "attack" else run.verb
        groups.setdefault((label, verb), []).append(run)
    rows = []
    for (label, verb), runs in groups.items():
        seconds, memory = (
            over_seeds([float(each.record.get(key) or NAN) if _number(each.record.get(key)) else NAN for each in runs])
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


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parameters(path: Path) -> int | None:
    """Numbers in a checkpoint, from the header of its file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / "model.safetensors", "np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError):
        return None
    return sum(map(prod, shapes))


def _failed(asked: Sequence[Found]) -> Section | None:
    here = [each for each in asked if each.metrics is None]
    if not here:
        return None
    rows = [[Cell(each.name), Cell(each.verb), Cell(each.error or "")] for each in here]
    return Section("failed", "Failed runs", "", [Table("failed", "No results", ["run", "verb", "why"], rows)])


def _subtitle(asked: Sequence[Found], book: Book) -> str:
    counts: dict[str, int] = {}
    for run in asked:
        counts[run.verb] = counts.get(run.verb, 0) + 1
    words = ", ".join(f"{n} {verb}" for verb, n in counts.items())
    names = dict.fromkeys(name for run in book.runs if (name := run.named("dataset")) != "none")
    return f"{len(asked)} runs ({words}) on {', '.join(names) or 'unknown data'}"


def _summary(
    asked: Sequence[Found],
    trained: Mapping[str, Sequence[Found]],
    attacks: Sequence[Attacked],
    done: Sequence[Found],
    book: Book,
    main: str,
) -> list[str]:
    told = []
    failed = sum(each.metrics is None for each in asked)
    smaller = main.partition("@")[0] in SMALLER
    better: Callable[..., Any] = min if smaller else max
    known = 0
    for place, models in _places(trained, book).items():
        spreads = {
            label: over_seeds([(each.metrics or {}).get(f"test/{main}", NAN) for each in runs])
            for label, runs in models.items()
        }
        clean = {label: spread for label, spread in spreads.items() if spread.n}
        known = max([known, *(each.n for each in clean.values())])
        if len(clean) > 1:
            best = better(clean, key=lambda each: clean[each].mean)
            near = [each for each in clean if each != best and within_noise(clean[each], clean[best])]
            words = f"On {place}, {best} has the best clean quality, {main} {Cell(clean[best]).text}"
            words += f"; {_and(near)} {'is' if len(near) == 1 else 'are'} as good within seed noise" if near else ""
            same = [e for e in clean if e != best and e not in near and clean[e].mean == clean[best].mean]
            told.append(f"{words}; so {'has' if len(same) == 1 else 'have'} {_and(same)}." if same else f"{words}.")
    if here := _typical(attacks, main):
        most = better(here, key=lambda each: each.spread(f"attacked/{main}").mean)
        left = most.spread(f"attacked/{main}")
        drop = Cell(most.spread(f"drop/{main}"), share=True).text
        words = f"Under {_at(most)}, {most.victim} keeps the most: {main} {Cell(left).text}, a drop of {drop}"
        near = [e.victim for e in here if e is not most and within_noise(e.spread(f"attacked/{main}"), left)]
        words += f"; {_and(near)} {'is' if len(near) == 1 else 'are'} as good within seed noise" if near else ""
        told.append(f"{words}.")
        worst = (max if smaller else min)(here, key=lambda each: each.spread(f"attacked/{main}").mean)
        if worst is not most:
            least, lost = Cell(worst.spread(f"attacked/{main}")), Cell(worst.spread(f"drop/{main}"), share=True)
            told.append(f"{worst.victim} is left with the least, {least.text}, a drop of {lost.text}.")
    for run in done:
        gap = (run.metrics or {}).get("frontier/gap")
        if gap is not None:
            low = (run.metrics or {}).get("frontier/gap/low", NAN)
            words = "beats" if low > 0 else "does not beat"
            told.append(
                f"At equal clean quality {book.victim(run)} {words} the undefended run stopped early ({gap:+.4f})."
            )
    if known == 1 and len(trained) > 1:
        told.append("Every model was trained with one seed: how large seed noise is, is not known.")
    if failed:
        told.append(f"{failed} of {len(asked)} runs have no results; they are listed at the end.")
    return told or ["No run has results yet."]


def _and(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _frame(path: Path, columns: Sequence[str], numbers: Sequence[str] | None) -> pd.DataFrame | None:
    """A CSV with at least these columns, some (None: all) of them numbers; None where there is none, or another."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        frame = pd.read_csv(path)
        if not set(columns) <= set(frame.columns):
            return None
        numbers = list(frame.columns) if numbers is None else numbers
        return frame.assign(**{each: frame[each].astype(float) for each in numbers})
    except (OSError, ValueError, TypeError):
        return None


def _table(name: str, title: str, frame: pd.DataFrame, *, folded: bool = True) -> Table:
    records = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    rows = [[Cell(each if each is None or _number(each) else str(each)) for each in row] for row in records]
    return Table(name, title, [str(each) for each in frame.columns], rows, folded=folded)
