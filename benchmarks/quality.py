"""How well the toolkit ranks beside RecBole 1.2.1 on the same splits, and whether the two evaluators agree.

python benchmarks/quality.py
python benchmarks/quality.py --models mf --seeds 0
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import harness
import pandas as pd
from rich.progress import Progress

from robustbench_rec.errors import RrecError
from robustbench_rec.files import read_json

DIM, BATCH, LR, EPOCHS, PATIENCE, TOP_K = 64, 2048, 1e-3, 200, 10, (10, 20)
CASES = {
    "mf": ["model=mf"],
    "mf-plain": ["model=mf", "model.l2=0", f"lr={LR}"],  # as RecBole has it
    "kgat": ["model=kgat"],
}
JUDGED = "mf"
METRICS = ("ndcg", "recall", "mrr", "map", "hr", "precision")
TABLE = ("ndcg@10", "recall@10", "mrr@10")
PEER = "RecBole BPR"

Result = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="of ours; all without any")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="of split and training")
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
    with tempfile.TemporaryDirectory() as scratch, Progress(console=harness.console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen.seeds) * (len(chosen.models) + 1))
        for seed in chosen.seeds:
            folder = Path(scratch) / str(seed)
            folder.mkdir()
            overrides = _overrides(seed, chosen.data_dir)
            exported = harness.ours(
                {"task": "export", "overrides": overrides, "folder": str(folder)}, threads=chosen.threads
            )
            asked = _recbole(seed, folder, exported)
            found: Result = {}
            for model in chosen.models:
                progress.update(task, description=f"{model}, seed {seed}", advance=1)
                found[model] = _train(model, overrides, folder / model, chosen.threads)
            progress.update(task, description=f"{PEER}, seed {seed}", advance=1)
            found[PEER] = harness.peer({"task": "train", **asked}, threads=chosen.threads, python=peer)
            if JUDGED in chosen.models:
                vectors = {"task": "take", "ckpt": str(folder / JUDGED), "folder": str(folder)}
                harness.ours(vectors, threads=chosen.threads)
                judge = {"task": "evaluate", **asked, "warm_up": 0, "passes": 1}
                judged = harness.peer(judge, threads=chosen.threads, python=peer)
                found[f"{JUDGED} judged by RecBole"] = judged["metrics"]
            record["seeds"][seed] = found
    names = [*chosen.models, PEER]
    sections = [_quality(record["seeds"], names), _by_seed(record["seeds"], names)]
    if JUDGED in chosen.models:
        sections.append(_agreement(record["seeds"]))
    harness.keep("quality", chosen.out, record, sections)


def _train(model: str, overrides: list[str], out: Path, threads: int) -> Result:
    """`rrec train`, as a person would call it."""
    command = [sys.executable, "-m", "robustbench_rec", "train", *CASES[model], f"model.dim={DIM}", *overrides]
    command += ["device=cpu", f"threads={threads}", f"hydra.run.dir='{out}'"]
    variables = harness.environment(threads)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RrecError(f"rrec train {' '.join(CASES[model])}: {done.stderr.strip().splitlines()[-1]}")
    history = pd.read_csv(out / "history.csv")
    metrics = read_json(out / "metrics.json", model)
    return {
        "metrics": {name.removeprefix("test/"): each for name, each in metrics.items() if name.startswith("test/")},
        "seconds": float(history["seconds"].sum()),
        "epochs": len(history),
    }


def _quality(seeds: dict[int, Result], names: list[str]) -> str:
    """Mean and standard deviation over the seeds."""
    metrics = {name: [found[name]["metrics"] for found in seeds.values()] for name in names}
    rows = [[f"test {what}", *(_spread([one[what] for one in metrics[name]], 4) for name in names)] for what in TABLE]
    rows += [
        [what, *(_spread([float(found[name][what]) for found in seeds.values()], digits) for name in names)]
        for what, digits in (("seconds", 1), ("epochs", 0))
    ]
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
    return harness.show(f"ML-100K, random 8:1:1 per user, full ranking, {counted}: mean ± sd", ["", *names], rows)


def _by_seed(seeds: dict[int, Result], names: list[str]) -> str:
    """Pairs: within a row the split is the same."""
    rows = [
        [str(seed), *(f"{found[name]['metrics']['ndcg@10']:.4f}" for name in names)] for seed, found in seeds.items()
    ]
    return harness.show("test ndcg@10, seed by seed", ["seed", *names], rows)


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


def _overrides(seed: int, data_dir: str | None) -> list[str]:
    metrics = [f"metrics=[{','.join(METRICS)}]", f"top_k=[{','.join(map(str, TOP_K))}]", f"monitor=ndcg@{TOP_K[0]}"]
    fit = [f"batch_size={BATCH}", f"epochs={EPOCHS}", f"patience={PATIENCE}"]
    place = [f"data_dir='{data_dir}'"] if data_dir else []
    return ["dataset=ml_100k", "split=ratio", f"split.seed={seed}", f"seed={seed}", *fit, *metrics, *place]


def _recbole(seed: int, folder: Path, exported: Result) -> Result:
    return {
        **_settings(),
        "folder": str(folder),
        "parts": exported["parts"],
        "scores_at_once": exported["scores_at_once"],
        "seed": seed,
    }


def _settings() -> Result:
    return {"dim": DIM, "batch_size": BATCH, "lr": LR, "epochs": EPOCHS, "patience": PATIENCE, "top_k": list(TOP_K)}


def _spread(values: list[float], digits: int) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
