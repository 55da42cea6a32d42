"""rrec train."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from robustbench_rec import checkpoint
from robustbench_rec.config import Judge, Train
from robustbench_rec.data import Data
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import unknown
from robustbench_rec.evaluator import PARTS, Evaluator, Result
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.prepare import load
from robustbench_rec.reports.tables import by_metric
from robustbench_rec.runs import Run
from robustbench_rec.sampling import Sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import Trainer

Wrap = Callable[[Objective, RecModel, Data], Objective]


def run(cfg: Train, out: Path) -> dict[str, float]:
    """Train a model, with a defence, and judge its best state on validation and test."""
    return train(cfg, out, "train", lambda objective, model, data: objective, {})


def train(cfg: Train, out: Path, task: str, wrap: Wrap, about: Mapping[str, Any]) -> dict[str, float]:
    """The same with another objective around the defended one."""
    device = setup(cfg)
    data = load(cfg, cfg.data_dir).to(device)
    torch.manual_seed(cfg.seed)
    model = checkpoint.build(cfg.model, data)
    plain = Plain(loss(cfg.loss or model.loss))
    objective = wrap(defenses.build(cfg.defense, plain, model), model, data).to(device)
    evaluator = Evaluator(data, cfg)
    if cfg.monitor not in evaluator.names():
        raise unknown("monitor", cfg.monitor, evaluator.names())
    for part in PARTS:
        evaluator.chunks(part)
    trainer = Trainer(
        model=model,
        objective=objective,
        sampler=Sampler(data, batch_size=cfg.batch_size, negatives=cfg.negatives),
        validate=lambda: evaluator.evaluate(Shifted(model), "valid", metrics=[cfg.monitor]).metrics,
        fit=cfg,
        monitor=cfg.monitor,
        seed=cfg.seed,
        precision=cfg.precision,
        out=out,
        about={"data": data.fingerprint, "model": cfg.model, "defense": cfg.defense, "task": task, **about},
    )
    seeds = {"seed": cfg.seed, "split.seed": cfg.split.get("seed")}
    with Run(out, task, seeds=seeds, device=device, dataset=data.name, fingerprint=data.fingerprint):
        model.fit(data)
        trainer.run()
        checkpoint.save(out, model, cfg.model, cfg, data)
        metrics = judge(evaluator, Shifted(model), cfg, out)
        trainer.finish()
    return metrics


def judge(evaluator: Evaluator, at: Shifted, cfg: Judge, out: Path) -> dict[str, float]:
    """Validation and test metrics as `valid/…` and `test/…`, shown as a table; per-user values kept if asked for."""
    results = {part: evaluator.evaluate(at, part) for part in PARTS}
    by_metric(f"{evaluator.data.name}, {cfg.protocol} ranking", {part: each.metrics for part, each in results.items()})
    if cfg.per_user:
        for part, result in results.items():
            keep(result, evaluator.data, out / f"per_user-{part}.csv")
    return {f"{part}/{name}": value for part, each in results.items() for name, value in each.metrics.items()}


def keep(result: Result, data: Data, path: Path) -> None:
    """Per-user metrics as CSV, with original user ids."""
    import pandas as pd

    frame = pd.DataFrame({name: each.cpu().numpy() for name, each in result.per_user.items()})
    frame.insert(0, "user", [data.user_ids[each] for each in result.users.tolist()])
    write_text(path, frame.to_csv(index=False))
