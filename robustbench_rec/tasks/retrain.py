"""rrec attack with a poison."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from robustbench_rec import checkpoint
from robustbench_rec.clean import Clean, cleaned
from robustbench_rec.config import Attack, Base, Distill, Train, typed_training
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result, by_user, evaluator
from robustbench_rec.evaluation.alike import alike
from robustbench_rec.hardware import setup
from robustbench_rec.reports.tables import by_metric, show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import distill, undefended
from robustbench_rec.tasks.train import cleaning, keep, learn, poisoned, settings, suspects, trainer_of
from robustbench_rec.trainer import Trainer

log = logging.getLogger(__name__)


def retrain(cfg: Attack, out: Path) -> dict[str, float]:
    """Train the model of a checkpoint again, as it was trained, on its data with fake users; judge it before and after.

    The same model, settings and seed, with the data as the only difference; the clean side is the checkpoint. What it
    started from, and its teachers, are trained again too, each in a folder there: the fake users are in all that was
    learnt. The run directory is a checkpoint of the poisoned model, with the fake users, and so the source of
    `poison=file`.
    """
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    training = _training(cfg, loaded, "ckpt", cfg.ckpt)
    clean_judge = evaluator(loaded.data, cfg)
    clean_judge.portions(cfg.part)
    if not isinstance(clean_judge, Full):
        log.warning("protocol=%s: how far the targets come is told with protocol=full alone", cfg.protocol)
    baseline = undefended.poisoned(cfg, loaded, clean_judge)
    data = poisoned(cfg.poison, loaded.uncleaned, out)
    if data.fakes is None:
        raise RrecError("this poison has no fake users")
    training = _with_sources(cfg, training, loaded, data, out)
    data, found = cleaned(data, _cleaning(training, f"ckpt={cfg.ckpt}"))
    assert data.fakes is not None
    trainer = _trainer(training, data, out)
    poisoned_judge, targets = evaluator(data, cfg), data.fakes.targets.to(device)
    seeds = {"seed": training.seed, "poison.seed": cfg.poison.get("seed")}
    notes = {"ckpt": cfg.ckpt, **checkpoint.fingerprints(data), "threat": data.fakes.about["threat"]}
    if found:
        notes["clean"] = training.clean
    with Run(out, "attack", seeds=seeds, device=device, **notes):
        learn(trainer, training, data, settings(training))
        sides: dict[str, dict[str, float]] = {}
        results: dict[str, Result] = {}
        for name, judging, model in (("clean", clean_judge, loaded.model), ("poisoned", poisoned_judge, trainer.model)):
            at = Shifted(model)
            result = results[name] = judging.evaluate(at, cfg.part)
            sides[name] = dict(result.metrics)
            if isinstance(judging, Full):
                sides[name] |= judging.exposure(at, cfg.part, targets).metrics
            if cfg.per_user:
                keep(result, judging.data, out / f"per_user-{name}.csv")
        by_user.write(out, clean_judge, results)
        told = suspects(found, data, out)
        trainer.finish()
    stable = alike(results["clean"], results["poisoned"], cfg.top_k)
    before, after = sides["clean"], sides["poisoned"]
    change = {name: after[name] - value for name, value in before.items()}
    title = f"{cfg.poison['name']}: {data.name}, {cfg.part}"
    show(title, ["threat", ""], [list(each) for each in data.fakes.about["threat"].items()])
    show("retrained", ["metric", "clean", "poisoned", "change"], [[n, before[n], after[n], change[n]] for n in before])
    spent = {"fake_users": float(data.fakes.n), "fake_events": float(len(data.fakes.events))}
    show("budget used", list(spent), [list(spent.values())])
    sides |= {"change": change, "budget": spent}
    if stable is not None:
        by_metric("lists before and after (1: the same)", {"alike": stable.metrics})
        sides["stability"] = stable.metrics
    if baseline is not None:
        told |= undefended.repaired(before, after, baseline, poisoned_judge, side="poisoned")
    return {f"{side}/{name}": value for side, values in sides.items() for name, value in values.items()} | told


def _trainer(training: Train, data: Data, out: Path) -> Trainer:
    if isinstance(training, Distill):
        return trainer_of(training, data, out, "retrain", distill.taught(training), distill.about(training))[0]
    return trainer_of(training, data, out, "retrain", lambda objective, model, data: objective, {})[0]


def _with_sources(cfg: Attack, training: Train, loaded: checkpoint.Loaded, data: Data, out: Path) -> Train:
    """The settings with start and teachers that were trained again; those that a run which goes on had made stay."""

    def again(key: str, path: str, name: str) -> str:
        if not (out / name / checkpoint.CARD).is_file():
            _source(cfg, key, path, loaded, data, out / name)
        return str(out / name)

    if training.start is not None:
        training = replace(training, start=again("start", training.start, "start"))
    if not isinstance(training, Distill):
        return training
    named = distill.members(training)
    if any(each.endswith(".npy") for each in named):
        raise RrecError(f"ckpt={cfg.ckpt} learnt from teacher={training.teacher}, which cannot learn of fake users")
    return replace(
        training,
        teacher=[
            path if path == "ema" else again("teacher", path, f"teacher-{number}") for number, path in enumerate(named)
        ],
    )


def _cleaning(training: Train, told: str) -> list[Clean]:
    """The steps of the cleaning, to be done again."""
    try:
        return cleaning(training.clean)
    except RrecError as error:
        raise RrecError(f"{told}: its cleaning cannot be done again, train it anew ({error})") from error


def _source(cfg: Attack, key: str, path: str, victim: checkpoint.Loaded, data: Data, out: Path) -> None:
    """Train what a model was made from again, on the model's poisoned data."""
    loaded = checkpoint.load(path, data_dir=cfg.data_dir, device=data.train.users.device, key=key)
    if loaded.uncleaned.fingerprint != victim.uncleaned.fingerprint:
        raise RrecError(
            f"{key}={path} learnt from other data than ckpt={cfg.ckpt} (noise on one of them): the same fake users "
            "cannot be put into both"
        )
    out.mkdir(exist_ok=True)
    training = _with_sources(cfg, _training(cfg, loaded, key, path), loaded, data, out)
    data, _ = cleaned(data, _cleaning(training, f"{key}={path}"))
    trainer = _trainer(training, data, out)
    seeds = {"seed": training.seed, "poison.seed": cfg.poison.get("seed")}
    with Run(out, "train", seeds=seeds, device=data.train.users.device, ckpt=path, **checkpoint.fingerprints(data)):
        learn(trainer, training, data, settings(training))
        trainer.finish()


def _training(cfg: Attack, loaded: checkpoint.Loaded, key: str, path: str) -> Train:
    """The settings of the training of a checkpoint, which a key named, here and now."""
    if loaded.data.fakes is not None:
        raise RrecError(f"{key}={path} was trained on poisoned data: name a clean run")
    if not isinstance(loaded.training, Mapping):
        raise RrecError(
            f"{key}={path} does not say how it was trained (only runs of rrec train and rrec distill do): "
            "train it again"
        )
    clean = cfg.clean if cleaning(cfg.clean) else loaded.training.get("clean", cfg.clean)
    here = {each.name: getattr(cfg, each.name) for each in fields(Base) if each.name not in loaded.training}
    recipe = asdict(loaded.recipe)
    changed = {"model": loaded.config, "poison": cfg.poison, "clean": clean, "resume": None}
    try:
        return typed_training({**here, **loaded.training, **recipe, **changed})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RrecError(f"{key}={path}: its training cannot be repeated ({error})") from error
