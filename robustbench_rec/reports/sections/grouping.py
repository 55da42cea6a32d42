"""Runs that belong together: those of one model, of one attack, of one data set."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.apart import told_apart
from robustbench_rec.reports.reading import LOCAL, RECIPE, Book, Found, without_seeds
from robustbench_rec.significance import Spread, over_seeds

PREFERRED = ("ndcg@10", "auc", "rmse")
"""What is shown first, where it is among the metrics."""
COLUMNS = 4
"""Metrics of a table; the folded one has all."""
SIDES = ("test", "valid", "clean", "attacked", "poisoned")
NAN = float("nan")
OUTPUT = ("slices", "anonymity", "baseline", "metrics", "top_k")
"""What decides which numbers a run tells, and nothing about how it came to them."""
STRUCK = ("attack", "protocol", "seen", "n_negatives", "precision")
"""Of the settings of a training, what decides how it was attacked at its end."""
ENDS = ("attacked", "drop", "rise", "offset")
"""What an attack tells beside the clean quality."""


@dataclass(frozen=True)
class Attacked:
    """The attack runs of one kind on models that differ in seeds alone.

    victim: their label. kind: of the attack, all but its budget. eps: None where it has none. splits: the seeds of
    their splits; numbers of others are no better or worse.
    """

    victim: str
    kind: str
    eps: float | None
    runs: Sequence[Found]
    splits: str

    def spread(self, name: str) -> Spread:
        """Of a metric of the runs, "attacked/ndcg@10"."""
        return over_seeds([(each.metrics or {}).get(name, NAN) for each in self.runs])


def once(done: Sequence[Found], book: Book) -> list[Found]:
    """The last of runs that repeat one another, seeds included: they say nothing about the spread over seeds."""
    found: dict[str, Found] = {}
    for run in done:
        made = _made(run, book)
        if made not in found or _start(run) > _start(found[made]):
            found[made] = run
    return list(found.values())


def merged(runs: Sequence[Found], book: Book) -> list[Found]:
    """Runs of one group, those with the same seeds as one run with the metrics of all: they did the same."""
    found: dict[str, Found] = {}
    for run in runs:
        source = book.source(run)
        made = str(run.config.get("ckpt")) if source is None else _made(source, book)
        told = json.dumps([run.record.get("seeds"), run.config.get("seed"), made], default=str)
        first = found.get(told)
        found[told] = run if first is None else replace(first, metrics={**(run.metrics or {}), **(first.metrics or {})})
    return list(found.values())


def _start(run: Found) -> str:
    """When, in UTC, so that it sorts as text."""
    return str(run.record.get("start", ""))


def _made(run: Found, book: Book) -> str:
    """Equal for runs that repeat one another, seeds included."""
    told: list[Any] = []
    at: Found | None = run
    while at is not None and len(told) < 5:
        told.append([book.key(at), *(at.record.get(each) for each in ("seeds", "fingerprint")), at.config.get("seed")])
        at = book.source(at)
    return json.dumps(told, default=str)


def grouped(done: Sequence[Found], book: Book) -> dict[str, list[Found]]:
    """Runs that made a model, those that differ in seeds alone together."""
    found: dict[str, list[Found]] = {}
    for run in done:
        if run.verb in ("train", "distill", "finetune"):
            found.setdefault(book.label(run), []).append(run)
    return found


def attacked(done: Sequence[Found], book: Book) -> list[Attacked]:
    """Attacks on a model as it is, those that differ in seeds alone together, by budget."""
    found: dict[tuple[str, str, str, float | None], list[Found]] = {}
    attacks = [run for run in done if run.verb == "attack" or _struck(run)]
    names = place_names(place_of([run], book, splits=False) for run in attacks)
    for run in attacks:
        if not run.poisoned and run.config.get("frontier") is None:
            struck = _struck(run)
            settings = settings_of(run, "eps")
            if struck:
                settings = {key: settings.get(key) for key in STRUCK}
            if isinstance(settings.get("attack"), Mapping):
                settings["attack"] = {key: each for key, each in settings["attack"].items() if key != "eps"}
            exact = json.dumps(settings, sort_keys=True, default=str)
            kind = f"{kind_of(run)} at the end of training" if struck else kind_of(run)
            kind = f"{kind}, {names[place_of([run], book, splits=False)]}" if len(names) > 1 else kind
            victim = book.label(run) if struck else book.victim(run)
            found.setdefault((victim, exact, kind, run.eps), []).append(_beside_clean(run) if struck else run)
    kinds: dict[str, list[str]] = {}
    for _, exact, words, _ in found:
        same = kinds.setdefault(words, [])
        if exact not in same:
            same.append(exact)
    return [
        Attacked(
            victim,
            words if len(kinds[words]) == 1 else f"{words} ({kinds[words].index(exact) + 1})",
            eps,
            merged(runs, book),
            split_seeds(runs, book),
        )
        for (victim, exact, words, eps), runs in sorted(
            found.items(), key=lambda pair: (pair[0][2], pair[0][3] or 0, pair[0][0])
        )
    ]


def _struck(run: Found) -> bool:
    """Whether it is a training that was attacked at its end."""
    told = run.verb in ("train", "distill") and run.named("attack") != "none"
    return told and any(name.startswith("attacked/") for name in run.metrics or ())


def _beside_clean(run: Found) -> Found:
    """The same with what the attack told of it, and its quality on test as the clean one."""
    told = run.metrics or {}
    ends = {name: each for name, each in told.items() if name.partition("/")[0] in ENDS}
    names = [name.partition("/")[2] for name in ends if name.startswith("attacked/")]
    return replace(run, metrics={f"clean/{name}": told.get(f"test/{name}", NAN) for name in names} | ends)


def settings_of(run: Found, *but: str) -> dict[str, Any]:
    """How a checkpoint was judged, without seeds and which checkpoint it was."""
    return without_seeds(run.config, (*LOCAL, "ckpt", *but, *OUTPUT))


def kind_of(run: Found) -> str:
    """An attack in a few words."""
    attack = run.config.get("attack")
    attack = attack if isinstance(attack, Mapping) else {}
    words = [str(attack.get("name", "?"))]
    words += [str(attack[key]) for key in ("surface", "norm") if attack.get(key)]
    if run.named("goal") not in ("untargeted", "none"):
        words.append(run.named("goal"))
    part = str(run.config.get("part", "test"))
    return " ".join(words) + ("" if part == "test" else f" on {part}")


def root_of(run: Found, book: Book) -> Found:
    """The run that decided which data a run is about."""
    root = run
    for _ in range(5):
        source = book.source(root)
        if source is None or root.named("dataset") != "none":
            break
        root = source
    return root


def split_seeds(runs: Sequence[Found], book: Book) -> str:
    """Of the splits of some runs, each once; empty where they have none."""
    splits = [split for each in runs if isinstance(split := root_of(each, book).config.get("split"), Mapping)]
    return ", ".join(sorted({str(each["seed"]) for each in splits if each.get("seed") is not None}))


def place_of(runs: Sequence[Found], book: Book, *, splits: bool = True) -> str:
    """The data, how they are prepared and split, and the judging, as JSON: numbers of two places cannot be compared.

    runs: what is told as one number. splits: with the seeds of all their splits.
    """
    run, root = runs[0], root_of(runs[0], book)
    told: dict[str, Any] = without_seeds({key: root.config.get(key) for key in RECIPE}, ()) | book.data(root)
    if splits:
        told["split.seed"] = split_seeds(runs, book)
    told["protocol"] = str(run.config.get("protocol", "full"))
    if told["protocol"] == "full":
        told["seen"] = bool(run.config.get("seen"))
    else:
        told["n_negatives"] = run.config.get("n_negatives")
    return json.dumps([root.named("dataset"), told], sort_keys=True, default=str)


def place_names(places: Iterable[str]) -> dict[str, str]:
    """Places in words: the dataset, the protocol, and only so much more that all are told apart."""
    known = {key: json.loads(key) for key in dict.fromkeys(places)}
    plain = {
        key: name if told["protocol"] == "full" else f"{name}, {told['protocol']}"
        for key, (name, told) in known.items()
    }
    return in_words({key: (plain[key], told) for key, (_, told) in known.items()})


def in_words(named: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Keys in words: their name, and in brackets what differs between those of one name."""
    found = {}
    for name in dict.fromkeys(name for name, _ in named.values()):
        here = {key: settings for key, (other, settings) in named.items() if other == name}
        for key, told in zip(here, told_apart(list(here.values())), strict=True):
            found[key] = f"{name} ({told})" if told else name
    return found


def judging_of(run: Found) -> str:
    """How a finished model was judged, in words."""
    words = [str(run.config.get("part", "test")), str(run.config.get("protocol"))]
    for key in ("noise", "certify", "attack"):
        if run.named(key) != "none":
            told = run.config[key]
            words.append(f"{run.named(key)} {told.get('level', told.get('eps', ''))}".strip())
    return ", ".join(words)


def judged_again(done: Sequence[Found], book: Book) -> dict[tuple[str, str], list[Found]]:
    """Runs of `rrec eval`, by the label of the model and how it was judged, in words; seeds alone may differ."""
    judging: dict[str, tuple[str, Mapping[str, Any]]] = {}
    found: dict[tuple[str, str], list[Found]] = {}
    for run in done:
        if run.verb == "eval":
            settings = settings_of(run)
            exact = json.dumps(settings, sort_keys=True, default=str)
            judging[exact] = (judging_of(run), settings)
            found.setdefault((book.victim(run), exact), []).append(run)
    names = in_words(judging)
    return {(victim, names[exact]): merged(runs, book) for (victim, exact), runs in found.items()}


def held_against(done: Sequence[Found], book: Book) -> dict[tuple[str, str], list[Found]]:
    """Runs beside an undefended one that stopped earlier, by the label of the model and the attack, in words."""
    attacks: dict[str, tuple[str, Mapping[str, Any]]] = {}
    found: dict[tuple[str, str], list[Found]] = {}
    for run in done:
        if run.config.get("frontier") is not None:
            settings = settings_of(run, "frontier")
            exact = json.dumps(settings, sort_keys=True, default=str)
            attacks[exact] = (f"{kind_of(run)}, eps {run.config.get('eps')}", settings)
            found.setdefault((book.victim(run), exact), []).append(run)
    names = in_words(attacks)
    return {(victim, names[exact]): runs for (victim, exact), runs in found.items()}


def beyond(runs: Sequence[Found], measure: str) -> tuple[Spread, float, float]:
    """The gap or the area beyond the frontier over seeds, and the means of the ends of its intervals."""
    spreads = [
        over_seeds([(run.metrics or {}).get(f"frontier/{measure}{end}", NAN) for run in runs])
        for end in ("", "/low", "/high")
    ]
    return spreads[0], spreads[1].mean, spreads[2].mean


def places(trained: Mapping[str, Sequence[Found]], book: Book) -> dict[str, dict[str, Sequence[Found]]]:
    """Labels and their runs, by where they were judged, in words."""
    where = {label: place_of(runs, book) for label, runs in trained.items()}
    names = place_names(where.values())
    found: dict[str, dict[str, Sequence[Found]]] = {}
    for label, runs in trained.items():
        found.setdefault(names[where[label]], {})[label] = runs
    return found


def main_metric(names: Iterable[str]) -> str:
    """The metric that stands for all."""
    known = list(dict.fromkeys(each.rpartition("/")[2] for each in names if each.partition("/")[0] in SIDES))
    return next((each for each in (*PREFERRED, *filter(sign, known), *known) if each in known), "ndcg@10")


def chosen_metrics(names: Iterable[str], main: str) -> list[str]:
    """Metrics for the columns, the main one first, then those at the same depth."""
    known = list(dict.fromkeys(names))
    k = main.partition("@")[2]
    near = [each for each in known if each != main and (each.partition("@")[2] in (k, "") or not k)]
    return ([main] if main in known else []) + near[: COLUMNS - (main in known)]


def typical(attacks: Sequence[Attacked], main: str) -> Sequence[Attacked]:
    """At the attack that most models have been through, and at the middle one of its budgets."""
    groups: dict[tuple[str, float | None, str], list[Attacked]] = {}
    for each in attacks:
        if each.spread(f"attacked/{main}").n and each.spread(f"clean/{main}").n:
            groups.setdefault((each.kind, each.eps, each.splits), []).append(each)
    most = max(map(len, groups.values()), default=0)
    largest = [each for each in groups.values() if len(each) == most]
    same = [each for each in largest if each[0].kind == largest[0][0].kind]
    return same[(len(same) - 1) // 2] if same else []


def worded(each: Attacked) -> str:
    """An attack with its budget."""
    return each.kind if each.eps is None else f"{each.kind} with eps {each.eps:g}"
