"""rrec train."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from robustbench_rec import checkpoint, profiles
from robustbench_rec.adapters import digest, frozen, sizes
from robustbench_rec.config import Fit, Judge, Train
from robustbench_rec.data import Data
from robustbench_rec.defenses import defenses
from robustbench_rec.distillation import Distillation
from robustbench_rec.evaluation import PARTS, Evaluator, Full, Result, evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.losses import trained
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.poison import Shilling
from robustbench_rec.poisons import poisons
from robustbench_rec.prepare import load
from robustbench_rec.reports.tables import Row, by_metric, show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import RESUME, Trainer

Wrap = Callable[[Objective, RecModel, Data], Objective]
Finish = Callable[[Trainer, Evaluator[Any]], dict[str, float]]
"""What is reported of a finished training beside its quality."""


def run(cfg: Train, out: Path) -> dict[str, float]:
    """Train a model, with a defence, and judge its best state on validation and test."""
    return train(cfg, out, "train", lambda objective, model, data: objective, {})


def train(
    cfg: Train,
    out: Path,
    task: str,
    wrap: Wrap,
    about: Mapping[str, Any],
    finish: Finish = lambda trainer, judging: {},
) -> dict[str, float]:
    """The same with another objective around the defended one."""
    device = setup(cfg)
    if cfg.adaptation.get("name") != "none":
        cfg = replace(cfg, model={**cfg.model, "adaptation": cfg.adaptation})
    data = poisoned(cfg.poison, load(cfg, cfg.data_dir).to(device), out)
    trainer, judging = trainer_of(cfg, data, out, task, wrap, about)
    seeds = {"seed": cfg.seed, "split.seed": cfg.split.get("seed"), "noise.seed": cfg.noise.get("seed")}
    notes = {"dataset": data.name, "fingerprint": data.fingerprint}
    if data.fakes is not None:
        seeds["poison.seed"] = cfg.poison.get("seed")
        notes["threat"] = data.fakes.about["threat"]
    if isinstance(trainer.objective, Distillation):
        notes["objective"] = trainer.objective.formula
    trained, total = sizes(trainer.model)
    with Run(out, task, parameters={"trained": trained, "all": total}, seeds=seeds, device=device, **notes):
        learn(trainer, cfg, data, settings(cfg) if task == "train" else None)
        metrics = judge(judging, Shifted(trainer.model), cfg, out)
        metrics |= finish(trainer, judging)
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
    if cfg.start is not None:
        begin(model, cfg, data)
    began = {} if cfg.start is None else {"start": cfg.start}
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
        about={"data": data.fingerprint, "model": cfg.model, "defense": cfg.defense, "task": task, **began, **about},
    )
    return trainer, judging


def begin(model: RecModel, cfg: Train, data: Data) -> None:
    """Start from the parameters of a run, told with what is trained."""
    assert cfg.start is not None
    loaded = checkpoint.load(cfg.start, data_dir=cfg.data_dir, device=data.train.users.device, key="start")
    checkpoint.same_source(loaded, cfg, data, "start", cfg.start)
    copied, tensors = checkpoint.start(model, loaded, cfg.start)
    trained, total = sizes(model)
    row: Row = [f"{copied} of {tensors}", total, trained, trained / max(1, total)]
    show(f"start={cfg.start}", ["tensors as there", "parameters", "trained", "share"], [row])


def body_digest(model: RecModel) -> str | None:
    """Of a body that is frozen; None where the model has none, or it learns."""
    return digest(model) if frozen(model) else None


def learn(trainer: Trainer, cfg: Train, data: Data, training: Mapping[str, Any] | None) -> None:
    """Train to the end and write the checkpoint; the fake users first, they may have taken longer than the training."""
    if data.fakes is not None:
        profiles.save(trainer.out, data.fakes)
    trainer.model.fit(data)
    frozen = body_digest(trainer.model)
    trainer.run()
    if body_digest(trainer.model) != frozen:
        raise RuntimeError("the frozen body of the model was changed")
    checkpoint.save(trainer.out, trainer.model, cfg.model, cfg, data, training=training)


def settings(cfg: Train) -> dict[str, Any]:
    """What a model is trained with beside its config and its data, for a checkpoint to keep."""
    kept = {each.name for group in (Fit, Judge) for each in fields(group)} | {"seed", "precision", "defense", "start"}
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
