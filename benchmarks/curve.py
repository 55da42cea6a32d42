"""How far some minutes of training carry on Gowalla's published split: test metrics after every epoch.

python benchmarks/curve.py --gowalla data/gowalla model=lightgcn model.layers=3 batch_size=32768 lr=1e-2
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import torch
from ours import compose

from robustbench_rec import checkpoint
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.hardware import setup
from robustbench_rec.losses import loss
from robustbench_rec.objective import Plain
from robustbench_rec.prepare import load
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import Trainer

K = 20


class OverError(Exception):
    """The time is up."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of rrec train: model, batch_size, lr, …")
    parser.add_argument("--gowalla", type=Path, required=True, metavar="DIR", help="train.txt and test.txt of LightGCN")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="of CPU time, judging included")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--data-dir", metavar="DIR", help="where what was prepared is kept, as data_dir= of rrec")
    parser.add_argument("--out", type=Path, default=harness.HERE / "results", metavar="DIR")
    chosen = parser.parse_args(arguments)
    try:
        record = {"machine": harness.machine(chosen.threads), "overrides": chosen.overrides, **_train(chosen)}
    except RrecError as error:
        harness.console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    curve = record["curve"]
    every = max(1, len(curve) // 12)
    rows = [
        [str(each["epoch"]), f"{each['minutes']:.1f}", *(f"{each[name]:.4f}" for name in record["metrics"])]
        for each in curve
    ]
    shown = harness.show("Gowalla, test", ["epoch", "CPU minutes", *record["metrics"]], [*rows[::every], rows[-1]])
    harness.keep("curve", chosen.out, record, [shown])
    return 0


def _train(chosen: argparse.Namespace) -> dict[str, Any]:
    place = [f"data_dir='{chosen.data_dir}'"] if chosen.data_dir else []
    fixed = [
        "dataset=adjacency",
        f"dataset.path='{chosen.gowalla}'",
        "split.valid=0",
        "metrics=[ndcg,recall]",
        f"top_k=[{K}]",
    ]
    cfg = compose([*fixed, *place, *chosen.overrides, "device=cpu", f"threads={chosen.threads}"])
    cfg.epochs = cfg.patience = 10_000
    data = load(cfg, cfg.data_dir).to(setup(cfg))
    torch.manual_seed(cfg.seed)
    model = checkpoint.build(cfg.model, data)
    judging, name = evaluator(data, cfg), cfg.loss or model.loss
    curve: list[dict[str, float]] = []
    start = time.process_time()

    def validate() -> dict[str, float]:
        found = judging.evaluate(Shifted(model), "test").metrics  # no choice is made by it
        minutes = (time.process_time() - start) / 60
        curve.append({"epoch": len(curve) + 1, "minutes": minutes, **found})
        if minutes > chosen.minutes:
            raise OverError
        return found

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            objective=Plain(loss(name)),
            sampler=sampler(data, model, loss=name, batch_size=cfg.batch_size, negatives=cfg.negatives),
            validate=validate,
            fit=cfg,
            monitor=f"recall@{K}",
            smaller=False,
            seed=cfg.seed,
            precision=cfg.precision,
            out=Path(scratch),
            about={},
        )
        with contextlib.suppress(OverError):
            trainer.run()
    return {"metrics": judging.names(), "curve": curve}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
