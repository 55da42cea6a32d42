"""rrec train."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch

from robustbench_rec import checkpoint, profiles
from robustbench_rec.config import Fit, Judge, Train
from robustbench_rec.data import Data
from robustbench_rec.defenses import defenses
from robustbench_rec.evaluation import PARTS, Evaluator, Full, Result, evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.losses import trained
from robustbench_rec.metrics.cost import Passes, parameters
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.poison import Shilling
from robustbench_rec.poisons import poisons
from robustbench_rec.prepare import load
from robustbench_rec.reports.tables import by_metric, show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import RESUME, Trainer

Wrap = Callable[[Objective, RecModel, Data], Objective]


def run(cfg: Train, out: Path) -> dict[str, float]:
    """Train a model, with a defence, and judge its best state on validation and test."""
    return train(cfg, out, "train", lambda objective, model, data: objective, {})


def train(cfg: Train, out: Path, task: str, wrap: Wrap, about: Mapping[str, Any]) -> dict[str, float]:
    """The same with another objective around the defended one."""
    device = setup(cfg)
    data = poisoned(cfg.poison, load(cfg, cfg.data_dir).to(device), out)
    trainer, judging = trainer_of(cfg, data, out, task, wrap, about)
    seeds = {"seed": cfg.seed, "split.seed": cfg.split.get("seed"), "noise.seed": cfg.noise.get("seed")}
    notes = {"dataset": data.name, "fingerprint": data.fingerprint}
    if data.fakes is not None:
        seeds["poison.seed"] = cfg.poison.get("seed")
        notes["threat"] = data.fakes.about["threat"]
    with Run(out, task, seeds=seeds, device=device, **notes) as record, Passes(trainer.model) as passes:
        learn(trainer, cfg, data, settings(cfg) if task == "train" else None)
        record.record["cost"] = cost(trainer, passes)
        metrics = judge(judging, Shifted(trainer.model), cfg, out)
        trainer.finish()
    return metrics


def poisoned(config: Mapping[str, Any], data: Data, out: Path) -> Data:
    """The data with the fake users of a poison; a run that goes on takes those that it had made."""
    poison = poisons.build(config)
    if isinstance(poison, Shilling) and (out / RESUME).is_dir() and (out / profiles.CARD).is_file():
        made = profiles.load(str(out), "resume")
        if (made.about["config"], made.about["fingerprint"]) == (poison.settings, data.fingerprint):
            return profiles.inject(data, made)
    return poison(data)


def trainer_of(
    cfg: Train, data: Data, out: Path, task: str, wrap: Wrap, about: Mapping[str, Any]
) -> tuple[Trainer, Evaluator[Any]]:
    """The trainer of a new model, and what it is judged with."""
    torch.manual_seed(cfg.seed)
    model = checkpoint.build(cfg.model, data)
    name = cfg.loss or model.loss
    objective = wrap(defenses.build(cfg.defense, Plain(trained(name)), model), model, data).to(data.train.users.device)
    judging = evaluator(data, cfg)
    monitor = judging.watched(cfg.monitor)
    for part in PARTS:
        judging.portions(part)
    trainer = Trainer(
        model=model,
        objective=objective,
        sampler=sampler(data, model, loss=name, batch_size=cfg.batch_size, negatives=cfg.negatives),
        validate=lambda: judging.evaluate(Shifted(model), "valid", metrics=[monitor]).metrics,
        fit=cfg,
        monitor=monitor,
        smaller=monitor in judging.smaller,
        seed=cfg.seed,
        precision=cfg.precision,
        out=out,
        about={"data": data.fingerprint, "model": cfg.model, "defense": cfg.defense, "task": task, **about},
    )
    return trainer, judging


def learn(trainer: Trainer, cfg: Train, data: Data, training: Mapping[str, Any] | None) -> None:
    """Train to the end and write the checkpoint; the fake users first, they may have taken longer than the training."""
    if data.fakes is not None:
        profiles.save(trainer.out, data.fakes)
    trainer.model.fit(data)
    trainer.run()
    checkpoint.save(trainer.out, trainer.model, cfg.model, cfg, data, training=training)


def cost(trainer: Trainer, passes: Passes) -> dict[str, float]:
    """What the training took, shown; the peak of the memory stands in `run.json` beside it."""
    steps = trainer.done * len(trainer.sampler)
    seconds = [row["train_seconds"] for row in trainer.history]
    found = {
        "parameters": parameters(trainer.model),
        "epochs": len(trainer.history),
        "seconds_per_epoch": median(seconds) if seconds else float("nan"),
        "forward_equivalents_per_step": passes.equivalents / steps if steps else float("nan"),
    }
    show("cost", [name.replace("_", " ") for name in found], [list(found.values())])
    return found


def settings(cfg: Train) -> dict[str, Any]:
    """What a model is trained with beside its config and its data, for a checkpoint to keep."""
    kept = {each.name for group in (Fit, Judge) for each in fields(group)} | {"seed", "precision", "defense"}
    return {name: value for name, value in asdict(cfg).items() if name in kept}


def judge(judging: Evaluator[Any], at: Shifted, cfg: Judge, out: Path) -> dict[str, float]:
    """Validation and test metrics as `valid/…` and `test/…`, shown as a table; per-user values kept if asked for."""
    results = {part: judging.evaluate(at, part) for part in PARTS}
    for part, each in results.items():
        each.metrics.update(exposure(judging, at, part))
    by_metric(title(judging.data, cfg), {part: each.metrics for part, each in results.items()})
    if cfg.per_user:
        for part, result in results.items():
            keep(result, judging.data, out / f"per_user-{part}.csv")
    return {f"{part}/{name}": value for part, each in results.items() for name, value in each.metrics.items()}


def exposure(judging: Evaluator[Any], at: Shifted, part: str) -> dict[str, float]:
    """Where the targets of the fake users stand, if there are fake users and the whole catalogue is ranked."""
    fakes = judging.data.fakes
    if fakes is None or not isinstance(judging, Full):
        return {}
    return judging.exposure(at, part, fakes.targets.to(judging.data.train.users.device)).metrics


def title(data: Data, cfg: Judge) -> str:
    """What a table of metrics is about."""
    return f"{data.name}, {cfg.protocol}{' ranking' if cfg.protocol in ('full', 'sampled') else ''}"


def keep(result: Result, data: Data, path: Path) -> None:
    """Per-user metrics as CSV, with original user ids."""
    import pandas as pd

    frame = pd.DataFrame({name: each.cpu().numpy() for name, each in result.per_user.items()})
    frame.insert(0, "user", [data.user_ids[each] for each in result.users.tolist()])
    write_text(path, frame.to_csv(index=False))
