"""How well the toolkit ranks beside RecBole 1.2.1 on the same splits, and whether the two evaluators agree.

python benchmarks/quality.py
python benchmarks/quality.py --models mf --seeds 0
python benchmarks/quality.py --models gru4rec sasrec --latest 20
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import harness
import pandas as pd
from rich.progress import Progress

from robustbench_rec.errors import RrecError
from robustbench_rec.files import read_json

BATCH, LR, EPOCHS, PATIENCE, TOP_K = 2048, 1e-3, 200, 10, (10, 20)


@dataclass(frozen=True)
class Track:
    """A protocol that both sides are given. overrides: of ours. metrics: that are shown, the first is monitored."""

    what: str
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]


TRACKS = {
    "ranking": Track("random 8:1:1 per user, full ranking", ("split=ratio",), ("ndcg@10", "recall@10", "mrr@10")),
    "next item": Track(  # RecBole ranks what a user had before as well
        "last event of each user, full ranking", ("split=leave_one_out", "seen=true"), ("ndcg@10", "hr@10", "mrr@10")
    ),
    "clicks": Track(
        "random 8:1:1 per user, clicks are ratings of at least 4",
        ("split=ratio", "prepare.label=4", "protocol=clicks", "negatives=0"),
        ("auc", "logloss"),
    ),
}


@dataclass(frozen=True)
class Case:
    """One of our models, on a track, beside one of RecBole's (None: alone)."""

    track: str
    overrides: tuple[str, ...]
    peer: str | None


CASES = {
    "mf": Case("ranking", ("model=mf",), "BPR"),
    "mf-plain": Case("ranking", ("model=mf", "model.l2=0", f"lr={LR}"), "BPR"),  # as RecBole has it
    "kgat": Case("ranking", ("model=kgat",), None),  # RecBole's needs dgl, which does not import beside this torch
    "neumf": Case("ranking", ("model=neumf",), "NeuMF"),
    "lightgcn": Case("ranking", ("model=lightgcn",), "LightGCN"),
    "ease": Case("ranking", ("model=ease",), "EASE"),
    "itemknn": Case("ranking", ("model=itemknn",), "ItemKNN"),
    "gru4rec": Case("next item", ("model=gru4rec",), "GRU4Rec"),
    "sasrec": Case("next item", ("model=sasrec", "model.heads=2", "model.dropout=0.5"), "SASRec"),  # as RecBole has it
    "deepfm": Case("clicks", ("model=deepfm",), "DeepFM"),
}
JUDGED = "mf"

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="of ours; all without any")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of split and training")
    parser.add_argument("--latest", type=int, metavar="N", help="next item: the last N events of each user alone")
    parser.add_argument("--data-dir", metavar="DIR", help="where datasets are fetched to, as data_dir= of rrec")
    parser.add_argument("--peer-python", metavar="PATH", help="an interpreter that has RecBole; else one is set up")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--out", type=Path, default=harness.HERE / "results", metavar="DIR")
    chosen = parser.parse_args(arguments)
    try:
        _run(chosen, harness.peer_python(chosen.peer_python))
    except RrecError as error:
        harness.console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    return 0


def _run(chosen: argparse.Namespace, peer: str) -> None:
    record: Result = {"machine": harness.machine(chosen.threads), "settings": _settings(), "seeds": {}}
    cases = {name: CASES[name] for name in chosen.models}
    tracks = list(dict.fromkeys(case.track for case in cases.values()))
    with tempfile.TemporaryDirectory() as scratch, Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen.seeds) * (len(cases) + len(_peers(cases))))

        def say(what: str) -> None:
            progress.update(task, description=what, advance=1)

        for seed in chosen.seeds:
            found: Result = {}
            for track in tracks:
                folder = Path(scratch) / f"{track} {seed}"
                folder.mkdir()
                inside = {name: case for name, case in cases.items() if case.track == track}
                overrides = _overrides(TRACKS[track], seed, chosen.data_dir)
                if chosen.latest and track == "next item":
                    job = {"task": "latest", "overrides": overrides, "folder": str(folder), "count": chosen.latest}
                    overrides = _of_table(overrides, harness.ours(job, threads=chosen.threads)["path"])
                export = {"task": "export", "overrides": overrides, "folder": str(folder)}
                asked = _recbole(track, seed, folder, harness.ours(export, threads=chosen.threads))
                window = []
                if chosen.latest and track == "next item":  # no one has more; RecBole would pad to 50
                    asked["settings"] = {"MAX_ITEM_LIST_LENGTH": chosen.latest}
                    window = [f"model.window={chosen.latest}"]
                for name, case in inside.items():
                    say(f"{name}, seed {seed}")
                    found[name] = _train(case, [*overrides, *window], folder / name, chosen.threads)
                for model in _peers(inside):
                    say(f"RecBole {model}, seed {seed}")
                    training = {"task": "train", **asked, "model": model}
                    found[f"RecBole {model}"] = harness.peer(training, threads=chosen.threads, python=peer)
                if JUDGED in inside:
                    vectors = {"task": "take", "ckpt": str(folder / JUDGED), "folder": str(folder)}
                    harness.ours(vectors, threads=chosen.threads)
                    judge = {"task": "evaluate", **asked, "model": "BPR", "warm_up": 0, "passes": 1}
                    judged = harness.peer(judge, threads=chosen.threads, python=peer)
                    found[f"{JUDGED} judged by RecBole"] = judged["metrics"]
            record["seeds"][seed] = found
    sections = [_quality(record["seeds"], track, cases) for track in tracks]
    sections += _reaching(record["seeds"], cases)
    if JUDGED in cases:
        sections.append(_agreement(record["seeds"]))
    harness.keep("quality", chosen.out, record, sections)


def _peers(cases: dict[str, Case]) -> list[str]:
    return list(dict.fromkeys(case.peer for case in cases.values() if case.peer is not None))


def _train(case: Case, overrides: list[str], out: Path, threads: int) -> Result:
    """`rrec train`, as a person would call it."""
    command = [sys.executable, "-m", "robustbench_rec", "train", *case.overrides, *overrides]
    command += ["device=cpu", f"threads={threads}", f"hydra.run.dir='{out}'"]
    variables = harness.environment(threads)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RrecError(f"rrec train {' '.join(case.overrides)}: {done.stderr.strip().splitlines()[-1]}")
    metrics = read_json(out / "metrics.json", case.overrides[0])
    learnt = (out / "history.csv").is_file()
    history = pd.read_csv(out / "history.csv") if learnt else pd.DataFrame()
    watched = TRACKS[case.track].metrics[0]
    curve = zip(history["seconds"].cumsum(), history[watched], strict=True) if learnt else ()
    return {
        "metrics": {name.removeprefix("test/"): each for name, each in metrics.items() if name.startswith("test/")},
        "seconds": read_json(out / "run.json", case.overrides[0])["seconds"],
        "epochs": len(history),
        "curve": [list(each) for each in curve],
    }


def _quality(seeds: dict[int, Result], track: str, cases: dict[str, Case]) -> str:
    """Ours and RecBole's below each other, mean and standard deviation over the seeds."""
    rows, shown = [], TRACKS[track].metrics
    for name, case in cases.items():
        if case.track == track:
            rows += [_row(each, seeds, shown) for each in (name, f"RecBole {case.peer}") if each in seeds[min(seeds)]]
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    title = f"ML-100K, {TRACKS[track].what}, {counted}: mean ± sd"
    return harness.show(title, ["", *(f"test {each}" for each in shown), "epochs", "seconds"], rows)


def _row(name: str, seeds: dict[int, Result], shown: Sequence[str]) -> list[str]:
    metrics = [_spread([found[name]["metrics"][each] for found in seeds.values()], 4) for each in shown]
    costs = [_spread([float(found[name][each]) for found in seeds.values()], 0) for each in ("epochs", "seconds")]
    return [name, *metrics, *costs]


def _reaching(seeds: dict[int, Result], cases: dict[str, Case]) -> list[str]:
    """How long RecBole takes to its best state on validation, and we to one that is as good; of what has epochs."""
    rows = []
    for name, case in cases.items():
        for seed, found in seeds.items():
            peer = found.get(f"RecBole {case.peer}", {}).get("curve")
            if peer and found[name]["curve"] and TRACKS[case.track].metrics[0] != "auc":
                took, best = max(peer, key=lambda each: each[1])
                own = next((seconds for seconds, score in found[name]["curve"] if score >= best), None)
                ratio = "never" if own is None else f"{took / own:.1f}"
                rows.append(
                    [name, str(seed), f"{best:.4f}", f"{took:.0f}", "–" if own is None else f"{own:.0f}", ratio]
                )
    columns = ("", "seed", "RecBole's best on validation", "its seconds", "ours to as good a state", "ratio")
    return [harness.show("Seconds to RecBole's best state", columns, rows)] if rows else []


def _agreement(seeds: dict[int, Result]) -> str:
    """The same trained mf, judged by both: an independent check of our evaluator."""
    rows = []
    for name in sorted(next(iter(seeds.values()))[f"{JUDGED} judged by RecBole"]):
        pairs = [
            (found[JUDGED]["metrics"][name], found[f"{JUDGED} judged by RecBole"][name]) for found in seeds.values()
        ]
        own, theirs = pairs[0]
        rows.append([name, f"{own:.6f}", f"{theirs:.6f}", f"{max(abs(a - b) for a, b in pairs):.1e}"])
    columns = ("metric", "our evaluator", "RecBole's", "largest difference over the seeds")
    return harness.show(f"The same mf, seed {next(iter(seeds))}, judged twice", columns, rows)


def _overrides(track: Track, seed: int, data_dir: str | None) -> list[str]:
    ranked = [f"top_k=[{','.join(map(str, TOP_K))}]"] if "@" in track.metrics[0] else []
    fit = [f"epochs={EPOCHS}", f"patience={PATIENCE}", f"monitor={track.metrics[0]}"]
    place = [f"data_dir='{data_dir}'"] if data_dir else []
    seeds = [f"seed={seed}", *([f"split.seed={seed}"] if "split=ratio" in track.overrides else [])]
    return ["dataset=ml_100k", *track.overrides, *seeds, *fit, *ranked, *place]


def _of_table(overrides: list[str], path: str) -> list[str]:
    columns = ["separator=comma", "user=user", "item=item", "rating=null", "time=time"]
    return ["dataset=table", f"dataset.path='{path}'", *(f"dataset.{each}" for each in columns), *overrides[1:]]


def _recbole(track: str, seed: int, folder: Path, exported: Result) -> Result:
    keys = ("parts", "scores_at_once", "features")
    return {**_settings(), "track": track, "folder": str(folder), "seed": seed, **{key: exported[key] for key in keys}}


def _settings() -> Result:
    return {"batch_size": BATCH, "lr": LR, "epochs": EPOCHS, "patience": PATIENCE, "top_k": list(TOP_K)}


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
