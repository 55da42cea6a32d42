"""How fast the toolkit is beside RecBole 1.2.1 and beside bare loops, in one run on one machine.

python benchmarks/run.py --gowalla data/gowalla
python benchmarks/run.py mf_epoch steps --repeats 3 --profile
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

import harness
from rich.progress import track

from robustbench_rec.errors import RrecError, unknown

BATCH, LR, SEED = 2048, 1e-3, 0
DEFENSES = ("none", "apr", "awp", "rawp")
MODELS = {"mf": {"steps": 20, "turns": 10}, "kgat": {"steps": 2, "turns": 5}}
PASSES = {"warm_up": 3, "epochs": 10}  # in each process; the first epochs warm caches and the allocator
SWEEPS = {"warm_up": 1, "passes": 2}
LISTS = (
    *("ndcg", "recall", "precision", "hr", "mrr", "map"),
    *("coverage", "gini", "entropy", "arp", "aplt"),
)
COLUMNS = ("benchmark", "side", "median", "min – max", "ratio", "min – max", "to", "peak MiB")

Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the person at the keyboard chose. peer: the interpreter that has RecBole; scratch: a folder for exports."""

    gowalla: Path | None
    data_dir: str | None
    threads: int
    repeats: int
    peer: str
    scratch: Path

    def overrides(self, *more: str) -> list[str]:
        """Of the configuration of `rrec train`."""
        fixed = [f"batch_size={BATCH}", f"lr={LR}", f"seed={SEED}", f"split.seed={SEED}"]
        return [*more, *fixed, *([f"data_dir='{self.data_dir}'"] if self.data_dir else [])]

    def ours(self, task: str, **job: Any) -> Result:
        return harness.ours({"task": task, **job}, threads=self.threads)

    def recbole(self, task: str, **job: Any) -> Result:
        return harness.peer({"task": task, **job}, threads=self.threads, python=self.peer)

    def folder(self, name: str) -> Path:
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def mf_epoch(settings: Settings) -> Result:
    """Training epoch of BPR-MF on ML-100K over the same interactions; RecBole's has no penalty, our default has one."""
    penalised = _model(settings, "mf")
    overrides = [*penalised, "model.l2=0"]
    sides = {
        "rrec, default l2": lambda: settings.ours("epoch", side="rrec, default l2", overrides=penalised, **PASSES),
        "bare": lambda: settings.ours("mf_epoch_bare", overrides=overrides, **PASSES),
    }
    to = {"rrec": "bare", "rrec, default l2": "rrec"}
    return _epoch(settings, "ml_100k", overrides, "BPR", sides, to)


def lightgcn_epoch(settings: Settings) -> Result:
    """Training epoch of LightGCN on ML-100K, two layers."""
    return _epoch(settings, "ml_100k", _model(settings, "lightgcn", "model.layers=2"), "LightGCN")


def neumf_epoch(settings: Settings) -> Result:
    """Training epoch of NeuMF on ML-100K."""
    return _epoch(settings, "ml_100k", _model(settings, "neumf"), "NeuMF")


def neumf_eval(settings: Settings) -> Result:
    """Full ranking of ML-100K's test part by an untrained NeuMF."""
    overrides = [*_model(settings, "neumf"), "metrics=[ndcg,recall]", "top_k=[10]"]
    folder = settings.folder("ml_100k")
    exported = settings.ours("export", overrides=overrides, folder=str(folder))
    asked = {**SWEEPS, **_recbole(folder, exported, [10]), "metrics": ["NDCG", "Recall"], "model": "NeuMF"}
    sides = {
        "rrec": lambda: settings.ours("evaluate", overrides=overrides, **SWEEPS),
        "recbole": lambda: settings.recbole("evaluate", **asked, untrained=True),
    }
    return {"data": exported, "to": {"recbole": "rrec"}, "rounds": _rounds(settings, sides)}


def gowalla_epoch(settings: Settings) -> Result:
    """Training epoch of BPR-MF on Gowalla with an optimiser that touches what a batch touches; implicit's is in C++."""
    if problem := _no_gowalla(settings):
        return {"skipped": problem}
    overrides = _gowalla(settings, "mf", "model.l2=0", "optimizer=lazy_adam")
    folder = settings.folder("gowalla_epoch")
    exported = settings.ours("export", overrides=overrides, folder=str(folder))
    asked = _recbole(folder, exported, [20])
    sides = {
        "rrec": lambda: settings.ours("epoch", side="rrec", overrides=overrides, warm_up=1, epochs=2),
        "recbole": lambda: settings.recbole("epoch", **asked, model="BPR", warm_up=0, epochs=1),
        "implicit": lambda: settings.recbole("implicit_epoch", **asked, warm_up=1, epochs=3),
    }
    return {"data": exported, "to": {"rrec": "implicit", "recbole": "rrec"}, "rounds": _rounds(settings, sides)}


def gowalla_eval(settings: Settings) -> Result:
    """Full ranking of Gowalla's published split with the vectors of a truncated SVD."""
    if problem := _no_gowalla(settings):
        return {"skipped": problem}
    overrides = _gowalla(settings, "mf")
    folder = settings.folder("gowalla")
    exported = settings.ours("export", overrides=overrides, folder=str(folder))
    settings.ours("factorise", overrides=overrides, folder=str(folder))
    common = {"overrides": overrides, "folder": str(folder), **SWEEPS}
    asked = {**SWEEPS, **_recbole(folder, exported, [20]), "metrics": ["NDCG", "Recall"], "model": "BPR"}
    sides = {
        "rrec": lambda: settings.ours("evaluate", **common),
        "bare": lambda: settings.ours("evaluate_bare", **common),
        "recbole": lambda: settings.recbole("evaluate", **asked),
    }
    return {"data": exported, "to": {"rrec": "bare", "recbole": "rrec"}, "rounds": _rounds(settings, sides)}


def all_metrics(settings: Settings) -> Result:
    """Full ranking of ML-100K's test part with vectors of an SVD: every metric, those of the lists alone, and none."""
    overrides, folder = [*_model(settings, "mf"), "top_k=[10,20]"], str(settings.folder("all_metrics"))
    settings.ours("factorise", overrides=overrides, folder=folder)
    common = {"folder": folder, **SWEEPS}
    chosen = {"rrec, all metrics": [*LISTS, "log_arp", "auc", "pru"], "rrec, of lists": [*LISTS, "log_arp"]}
    sides = {
        side: lambda side=side, names=names: settings.ours(
            "evaluate", side=side, overrides=[*overrides, f"metrics=[{','.join(names)}]"], **common
        )
        for side, names in chosen.items()
    }
    sides["bare"] = lambda: settings.ours("evaluate_bare", overrides=overrides, **common)
    return {"to": dict.fromkeys(chosen, "bare"), "rounds": _rounds(settings, sides)}


def evaluators(settings: Settings) -> Result:
    """Full ranking of ML-100K's test part with vectors of an SVD, six metrics of accuracy: three evaluators."""
    names = ["ndcg", "recall", "precision", "hr", "mrr", "map"]
    overrides = [*_model(settings, "mf"), "top_k=[10,20]", f"metrics=[{','.join(names)}]"]
    folder = settings.folder("evaluators")
    exported = settings.ours("export", overrides=overrides, folder=str(folder))
    settings.ours("factorise", overrides=overrides, folder=str(folder))
    common = {"overrides": overrides, "folder": str(folder), **SWEEPS}
    sides = {
        "rrec": lambda: settings.ours("evaluate", **common),
        "ranx": lambda: settings.ours("evaluate_ranx", **common),
        "bare": lambda: settings.ours("evaluate_bare", **common),
        "recbole": lambda: settings.recbole("evaluate", **SWEEPS, **_recbole(folder, exported, [10, 20]), model="BPR"),
    }
    to = {"rrec": "bare", "ranx": "rrec", "recbole": "rrec"}
    return {"data": exported, "to": to, "rounds": _rounds(settings, sides)}


def gowalla_lightgcn_eval(settings: Settings) -> Result:
    """Full ranking of Gowalla's published split by an untrained LightGCN, its propagation included."""
    if problem := _no_gowalla(settings):
        return {"skipped": problem}
    common = {"overrides": _gowalla(settings, "lightgcn"), **SWEEPS}
    sides = {
        "rrec": lambda: settings.ours("evaluate", **common),
        "bare": lambda: settings.ours("evaluate_bare", **common),
    }
    return {"to": {"rrec": "bare"}, "rounds": _rounds(settings, sides)}


def steps(settings: Settings) -> Result:
    """A training step under each defence beside a plain one."""
    sides = {
        model: lambda model=model, size=size: settings.ours(
            "steps", overrides=_model(settings, model), defenses=list(DEFENSES), warm_up=1, **size
        )
        for model, size in MODELS.items()
    }
    rounds = [
        {
            f"{model}, {each}": {**found, "seconds": {f"{model}, {each}": found["seconds"][each]}}
            for model, found in one.items()
            for each in DEFENSES
        }
        for one in _rounds(settings, sides)
    ]
    to = {f"{model}, {each}": f"{model}, none" for model in MODELS for each in DEFENSES if each != "none"}
    return {"to": to, "rounds": rounds}


def profile_epoch(settings: Settings) -> dict[str, Result]:
    """By part on the clock, and by operator."""
    return {
        f"{model} epoch": settings.ours("profile_epoch", overrides=_model(settings, model), warm_up=0, epochs=epochs)
        for model, epochs in (("mf", 20), ("kgat", 1))
    }


def profile_of(model: str, epochs: int) -> Callable[[Settings], dict[str, Result]]:
    """The same of another model."""

    def measure(settings: Settings) -> dict[str, Result]:
        job = {"overrides": _model(settings, model), "warm_up": 0, "epochs": epochs}
        return {f"{model} epoch": settings.ours("profile_epoch", **job)}

    return measure


def profile_gowalla(settings: Settings) -> dict[str, Result]:
    overrides = _gowalla(settings, "mf", "model.l2=0", "optimizer=lazy_adam")
    return {"gowalla epoch": settings.ours("profile_epoch", overrides=overrides, warm_up=0, epochs=2)}


def no_profile(settings: Settings) -> dict[str, Result]:
    return {}


def profile_eval(settings: Settings) -> dict[str, Result]:
    folder = str(settings.scratch / "gowalla")
    return {"gowalla_eval": settings.ours("profile_evaluate", overrides=_gowalla(settings, "mf"), folder=folder)}


def profile_steps(settings: Settings) -> dict[str, Result]:
    return {
        f"{model} step, {each}": settings.ours(
            "profile_step", overrides=_model(settings, model), defense=each, steps=size["steps"]
        )
        for model, size in MODELS.items()
        for each in DEFENSES
    }


@dataclass(frozen=True)
class Benchmark:
    """run: the measurement, `skipped` in its result says why there is none. profile: where our time goes in it."""

    run: Callable[[Settings], Result]
    profile: Callable[[Settings], dict[str, Result]]
    beside_recbole: bool


BENCHMARKS = {
    "mf_epoch": Benchmark(mf_epoch, profile_epoch, beside_recbole=True),
    "lightgcn_epoch": Benchmark(lightgcn_epoch, profile_of("lightgcn", 5), beside_recbole=True),
    "neumf_epoch": Benchmark(neumf_epoch, profile_of("neumf", 3), beside_recbole=True),
    "neumf_eval": Benchmark(neumf_eval, no_profile, beside_recbole=True),
    "gowalla_epoch": Benchmark(gowalla_epoch, profile_gowalla, beside_recbole=True),
    "gowalla_eval": Benchmark(gowalla_eval, profile_eval, beside_recbole=True),
    "evaluators": Benchmark(evaluators, no_profile, beside_recbole=True),
    "all_metrics": Benchmark(all_metrics, no_profile, beside_recbole=False),
    "gowalla_lightgcn_eval": Benchmark(gowalla_lightgcn_eval, no_profile, beside_recbole=False),
    "steps": Benchmark(steps, profile_steps, beside_recbole=False),
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without any")
    parser.add_argument("--gowalla", type=Path, metavar="DIR", help="folder with Gowalla's train.txt and test.txt")
    parser.add_argument("--data-dir", metavar="DIR", help="where datasets are fetched to, as data_dir= of rrec")
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter that has RecBole; else one is set up")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="processes of each side, in alternation")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    parser.add_argument("--out", type=Path, default=harness.HERE / "results", metavar="DIR")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except RrecError as error:
        harness.console.print(str(error), style="red", markup=False, highlight=False)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    names = chosen.names or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    if chosen.threads < 1 or chosen.repeats < 1:
        raise RrecError(f"--threads {chosen.threads}, --repeats {chosen.repeats}: both must be at least 1")
    beside = any(BENCHMARKS[name].beside_recbole for name in names)
    peer = harness.peer_python(chosen.peer_python) if beside else ""
    record: Result = {"machine": harness.machine(chosen.threads), "repeats": chosen.repeats, "benchmarks": {}}
    rows: list[list[str]] = []
    profiles: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as scratch:
        gowalla = chosen.gowalla and chosen.gowalla.expanduser().resolve()
        settings = Settings(gowalla, chosen.data_dir, chosen.threads, chosen.repeats, peer, Path(scratch))
        for name in names:
            found: Result = {}
            try:
                found = BENCHMARKS[name].run(settings)
                if chosen.profile and "skipped" not in found:
                    profiles |= BENCHMARKS[name].profile(settings)
            except RrecError as error:
                found = found | {"failed": str(error)}
            record["benchmarks"][name] = found
            for why in found.keys() & {"failed", "skipped"}:
                harness.console.print(f"{name} {why}: {found[why]}", style="yellow", markup=False)
            if "rounds" in found:
                rows += _rows(name, found)
    failed = any("failed" in each for each in record["benchmarks"].values())
    if not rows:
        return int(failed)
    if profiles:
        record["profiles"] = profiles
    sections = [harness.show("Times, lower is better", COLUMNS, rows), *_notes(record)]
    sections += [section for name, found in profiles.items() for section in _profile(name, found)]
    harness.keep("run", chosen.out, record, sections)
    return int(failed)


def _rounds(settings: Settings, sides: Mapping[str, Callable[[], Result]]) -> list[dict[str, Result]]:
    """Every side once a round, one after the other, in turned order every other round."""
    order = list(sides)
    rounds: list[dict[str, Result]] = [{} for _ in range(settings.repeats)]
    turns = [
        (number, each) for number in range(settings.repeats) for each in (order if number % 2 == 0 else order[::-1])
    ]
    for number, each in track(turns, ", ".join(order), console=harness.console, transient=True):
        rounds[number][each] = sides[each]()
    return rounds


def _rows(name: str, found: Result) -> list[list[str]]:
    rounds, rows = found["rounds"], []
    times = {side: [one[side]["seconds"][side] for one in rounds] for side in rounds[0]}
    middle = {side: median(median(each) for each in values) for side, values in times.items()}
    for side, values in times.items():
        flat = [each for one in values for each in one]
        row = [name, side, _time(middle[side]), _range(min(flat), max(flat))]
        to = found["to"].get(side)
        if to is None:
            row += ["", "", ""]
        else:
            ratios = [median(a) / median(b) for a, b in zip(values, times[to], strict=True)]
            row += [f"{middle[side] / middle[to]:.2f}", f"{min(ratios):.2f} – {max(ratios):.2f}", to]
        rows.append([*row, f"{max(one[side]['peak_mib'] for one in rounds):.0f}"])
    return rows


def _notes(record: Result) -> list[str]:
    """What else was seen: metrics of both sides, what is built once, versions."""
    lines = []
    for name in ("evaluators", "gowalla_eval"):
        for side, one in record["benchmarks"].get(name, {}).get("rounds", [{}])[0].items():
            if "metrics" in one:
                values = ", ".join(f"{metric} {value:.6f}" for metric, value in sorted(one["metrics"].items()))
                lines.append(f"- {name}, {side}: {values}")
            if "once" in one:
                lines[-1] += f"; built once before, {one['once']:.2f} s; {one['peak_mib_before']:.0f} MiB before it"
    versions = {
        side: one["versions"]
        for found in record["benchmarks"].values()
        for side, one in found.get("rounds", [{}])[0].items()
    }
    lines += [
        f"- versions, {side}: " + ", ".join(f"{name} {each}" for name, each in versions[side].items())
        for side in ("rrec", "recbole")
        if side in versions
    ]
    for line in lines:
        harness.console.print(line, markup=False, highlight=False)
    return ["\n".join(lines) + "\n"] if lines else []


def _profile(name: str, found: Result) -> list[str]:
    sections = []
    if "seconds" in found:
        total = sum(each[0] for each in found["seconds"].values())
        rows = [[part, _time(each[0]), f"{each[0] / total:.0%}"] for part, each in found["seconds"].items()]
        sections.append(harness.show(f"{name}: where the time goes, by part", ("part", "time", "share"), rows))
    rows = [[each["op"], f"{each['ms']:.2f}", f"{each['calls']:.0f}", f"{each['share']:.0%}"] for each in found["ops"]]
    return [*sections, harness.show(f"{name}: by operator, own time", ("operator", "ms", "calls", "share"), rows)]


def _epoch(
    settings: Settings,
    name: str,
    overrides: list[str],
    model: str,
    more: Mapping[str, Callable[[], Result]] = MappingProxyType({}),
    to: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Training epochs of ours and of RecBole's over the same interactions."""
    folder = settings.folder(name)
    exported = settings.ours("export", overrides=overrides, folder=str(folder))
    asked = {**_recbole(folder, exported, [10]), "model": model}
    sides = {
        "rrec": lambda: settings.ours("epoch", side="rrec", overrides=overrides, **PASSES),
        **more,
        "recbole": lambda: settings.recbole("epoch", **PASSES, **asked),
    }
    return {"data": exported, "to": {**to, "recbole": "rrec"}, "rounds": _rounds(settings, sides)}


def _model(settings: Settings, model: str, *more: str) -> list[str]:
    return settings.overrides("dataset=ml_100k", f"model={model}", *more)


def _no_gowalla(settings: Settings) -> str | None:
    if settings.gowalla is None:
        return "name the folder with train.txt and test.txt (LightGCN's gowalla): --gowalla DIR"
    if not (settings.gowalla / "train.txt").is_file():
        return f"--gowalla {settings.gowalla}: there is no train.txt"
    return None


def _gowalla(settings: Settings, model: str, *more: str) -> list[str]:
    source = ["dataset=adjacency", f"dataset.path='{settings.gowalla}'", "split.valid=0"]
    judged = ["metrics=[ndcg,recall]", "top_k=[20]"]
    return settings.overrides(*source, *judged, f"model={model}", *more)


def _recbole(folder: Path, exported: Result, top_k: list[int]) -> Result:
    """The same settings for RecBole; it scores as many cells at once as we do."""
    return {
        "folder": str(folder),
        "parts": exported["parts"],
        "scores_at_once": exported["scores_at_once"],
        "batch_size": BATCH,
        "lr": LR,
        "seed": SEED,
        "top_k": top_k,
    }


def _range(low: float, high: float) -> str:
    return f"{low:.2f} – {high:.2f} s" if high >= 1 else f"{low * 1000:.1f} – {high * 1000:.1f} ms"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
