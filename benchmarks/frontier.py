"""RAWP and RAWP-FT beside an undefended model that may stop early: the same attack on every state that was kept.

python benchmarks/frontier.py --out outputs/deepcf -- model=deepcf_mlp split=leave_one_out protocol=sampled epochs=15
python benchmarks/frontier.py --out outputs/mf --defences rawp=defense.gamma=0.02 rawp=defense.gamma=0.05 -- model=mf
"""

import argparse
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor

from robustbench_rec import checkpoint, composing
from robustbench_rec.attacks import attacks
from robustbench_rec.evaluation import Result, evaluator
from robustbench_rec.evaluation.frontier import BEST, Trace, advantage
from robustbench_rec.files import write_json, write_text
from robustbench_rec.goals import goals
from robustbench_rec.hardware import setup
from robustbench_rec.savepoint import load_state, save_state
from robustbench_rec.tasks import finetune, train
from robustbench_rec.tasks.frontier import Side, States

PLAIN, TUNED = "none", "rawp_ft"
METRICS = ("ndcg@10", "hr@10")
JUDGED = ["metrics=[ndcg,hr]", "top_k=[10]"]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of rrec train, for all runs")
    parser.add_argument("--defences", nargs="+", default=["rawp"], metavar="NAME[=OVERRIDE]", help="of rrec train")
    parser.add_argument("--tune", nargs="*", default=[], metavar="OVERRIDE", help="of rrec finetune, on each defence")
    parser.add_argument("--attack", nargs="+", default=["attack=fgm", "attack.surface=weight"], help="of rrec attack")
    parser.add_argument("--eps", nargs="+", type=float, default=[0.002, 0.004, 0.008, 0.015, 0.03])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--protocols", nargs="+", default=["sampled", "full"], help="every state is attacked under each"
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is there already is not done again")
    asked = parser.parse_args(arguments)
    frame = pd.DataFrame(_rows(asked))
    write_text(asked.out / "frontier.csv", frame.to_csv(index=False))
    _show(frame)
    return 0


def _rows(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in asked.seeds:
        runs = {PLAIN: _trained(asked, seed, PLAIN, ["defense=none"])}
        for each in asked.defences:
            name, _, override = each.partition("=")
            words = [f"defense={name}", *([override] if override else [])]
            runs[each] = _trained(asked, seed, each, words)
            runs[f"{each} + {TUNED}"] = _tuned(asked, seed, each, runs[each])
        for protocol, eps in itertools.product(asked.protocols, asked.eps):
            found = {name: _traced(asked, run, protocol, eps) for name, run in runs.items()}
            for metric in METRICS:
                traces = {name: each[metric] for name, each in found.items()}
                for name, trace in traces.items():
                    gap = advantage(trace.only(0), traces[PLAIN])
                    area = advantage(trace, traces[PLAIN])
                    clean, attacked = (each[0].nanmean().item() for each in (trace.clean, trace.attacked))
                    about = {"protocol": protocol, "metric": metric, "eps": eps, "run": name, "seed": seed}
                    beyond = {"gap": gap.value, "gap_p": gap.p, "area": area.value, "area_p": area.p}
                    yield {**about, "clean": clean, "attacked": attacked, **beyond}


def _trained(asked: argparse.Namespace, seed: int, name: str, words: list[str]) -> Path:
    out = asked.out / f"{_file(name)}-{seed}"
    if not (out / "metrics.json").is_file():
        fixed = [*JUDGED, "monitor=ndcg@10", "trajectory=1", f"seed={seed}"]
        _run("train", train.run, [*fixed, *asked.overrides, *words], out)
    return out


def _tuned(asked: argparse.Namespace, seed: int, name: str, run: Path) -> Path:
    out = asked.out / f"{_file(name)}-{TUNED}-{seed}"
    if not (out / "metrics.json").is_file():
        shared = ("protocol", "data_dir", "device", "threads", "batch_size")
        own = [each for each in asked.overrides if each.partition("=")[0] in shared]
        fixed = [*JUDGED, "monitor=ndcg@10", f"seed={seed}", f"ckpt='{run}'"]
        _run("finetune", finetune.run, [*fixed, *own, *asked.tune], out)
    return out


def _traced(asked: argparse.Namespace, run: Path, protocol: str, eps: float) -> dict[str, Trace]:
    """Every state of a run under one attack, by metric."""
    kept = run / f"trace-{protocol}-{_file(' '.join(asked.attack))}-{eps:g}.safetensors"
    if not kept.is_file():
        own = [each for each in asked.overrides if each.partition("=")[0] in ("data_dir", "device", "threads")]
        words = [*asked.attack, f"eps={eps}", *JUDGED, f"protocol={protocol}", *own, f"ckpt='{run}'"]
        cfg = _config("attack", words)
        loaded = checkpoint.load(str(run), data_dir=cfg.data_dir, device=setup(cfg))
        suite, goal = attacks.build(cfg.attack), goals.build(cfg.goal, loaded.data)
        judging = evaluator(loaded.data, cfg, alone=suite.alone)
        states = Several(cfg, run, judging, suite, goal, [loaded.digest], {"protocol": protocol})
        side = Side("ckpt", str(run), loaded, judging, checkpoint.epochs(str(run)))
        (trace,) = states.run([side])
        save_state(kept, {"clean": trace.clean, "attacked": trace.attacked}, {})
        states.finish()
    tensors, _ = load_state(kept, torch.device("cpu"))
    names = [BEST, *map(str, checkpoint.epochs(str(run)))]
    sides = [dict(zip(METRICS, tensors[name].chunk(len(METRICS), 1), strict=True)) for name in ("clean", "attacked")]
    return {metric: Trace(names, *(each[metric] for each in sides)) for metric in METRICS}


class Several(States):
    """States whose values are those of `METRICS`, one after the other."""

    def _values(self, result: Result) -> Tensor:
        return torch.cat([result.per_user[each].double().cpu() for each in METRICS])


def _run(verb: str, task: Any, words: list[str], out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)  # of a run that was stopped
    out.mkdir(parents=True)
    write_json(out / "metrics.json", task(_config(verb, words), out))


def _config(verb: str, words: list[str]) -> Any:
    with composing.session():
        return OmegaConf.to_object(hydra.compose(verb, words))


def _show(frame: pd.DataFrame) -> None:
    keys = ["protocol", "metric", "eps", "run"]
    groups = frame.groupby(keys, sort=False)
    table = groups[["clean", "attacked", "gap", "area"]].agg(["mean", "std"]).round(4)
    for name in ("gap", "area"):
        better = frame[name].gt(0) & frame[f"{name}_p"].lt(0.05)
        table[(name, "seeds above")] = better.groupby([frame[key] for key in keys], sort=False).sum()
    print(table.to_string())


def _file(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
