"""rrec train."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from robustbench_rec import checkpoint, profiles
from robustbench_rec.adapters import PRETRAINED, digest, frozen, sizes
from robustbench_rec.clean import Clean, Finding, cleaned, judged
from robustbench_rec.cleans import cleans
from robustbench_rec.config import Distill, Fit, Judge, Train
from robustbench_rec.data import Data
from robustbench_rec.defenses import defended, defenses
from robustbench_rec.distillation import Distillation
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import PARTS, Evaluator, Full, Result, by_user, evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.histories import overtaken
from robustbench_rec.losses import trained
from robustbench_rec.metrics.cost import parameters
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.noises import noises
from robustbench_rec.objective import Objective, Plain, introduce, nested
from robustbench_rec.poison import Shilling
from robustbench_rec.poisons import poisons
from robustbench_rec.prepare import load
from robustbench_rec.reports.tables import Row, by_metric, show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import sampler
from robustbench_rec.savepoint import Savepoint
from robustbench_rec.shifted import Shifted
from robustbench_rec.splits import splits
from robustbench_rec.tasks.struck import Strike
from robustbench_rec.trainer import RESUME, Trainer, check

log = logging.getLogger(__name__)

Wrap = Callable[[Objective, RecModel, Data], Objective]
Finish = Callable[[Trainer, Evaluator[Any], dict[str, float]], dict[str, float]]
"""What is reported of a finished training beside its quality; it adds to what the training cost."""


def run(cfg: Train, out: Path) -> dict[str, float]:
    """Train a model, with a defence, and judge its best state on validation and test; attacked too, if so named."""
    return train(cfg, out, "train", lambda objective, model, data: objective, {})


def train(
    cfg: Train,
    out: Path,
    task: str,
    wrap: Wrap,
    about: Mapping[str, Any],
    finish: Finish = lambda trainer, judging, cost: {},
) -> dict[str, float]:
    """The same with another objective around the defended one."""
    device = setup(cfg)
    check(cfg)
    if cfg.adaptation.get("name") != "none":
        cfg = replace(cfg, model={**cfg.model, "adaptation": cfg.adaptation})
    data = poisoned(cfg.poison, load(cfg, cfg.data_dir).to(device), out)
    data, found = cleaned(data, cleaning(cfg.clean))
    trainer, judging = trainer_of(cfg, data, out, task, wrap, about)
    seeds = {"seed": cfg.seed, "split.seed": cfg.split.get("seed"), "noise.seed": cfg.noise.get("seed")}
    notes: dict[str, Any] = {"dataset": data.name, **checkpoint.fingerprints(data)}
    if data.fakes is not None:
        seeds["poison.seed"] = cfg.poison.get("seed")
        notes["threat"] = data.fakes.about["threat"]
    if found:
        notes["clean"] = cfg.clean
    if isinstance(trainer.objective, Distillation):
        notes["objective"] = trainer.objective.formula
    strike = None if cfg.attack is None else Strike(cfg, trainer.model, data)
    trained, total = sizes(trainer.model)
    notes["parameters"] = {"trained": trained, "all": total}
    with Run(out, task, seeds=seeds, device=device, **notes) as record:
        learn(trainer, cfg, data, settings(cfg))
        record.record["cost"] = spent = cost(trainer)
        metrics = judge(judging, Shifted(trainer.model), cfg, out) | suspects(found, data, out)
        metrics |= finish(trainer, judging, spent)
        numbers = {name: value for name, value in (trainer.history or [{}])[-1].items() if "/" in name}
        if numbers:
            show("at the end", ["", ""], [[each, f"{value:.4g}"] for each, value in numbers.items()])
        metrics |= numbers
        if strike is not None:
            metrics |= strike()
        trainer.finish()
    return metrics


def cleaning(config: Mapping[str, Any]) -> list[Clean]:
    """The steps of a cleaning: that of the config, then those of its `inner` config, if it has one."""
    own = {key: value for key, value in config.items() if key != "inner"}
    steps, inner = [] if own.get("name") == "none" else [cleans.build(own)], config.get("inner")
    if inner is not None and not isinstance(inner, Mapping):
        raise RrecError(f"clean.inner={inner}: the config of the next step; several are clean=[first,…]")
    return steps if inner is None else [*steps, *cleaning(inner)]


def suspects(found: Sequence[tuple[Clean, Finding]], data: Data, out: Path) -> dict[str, float]:
    """What cleaning found, shown, and against the truth where that is known; every user's suspicion in a CSV.

    A step that is taken again has a name of its own: degree_sad, degree_sad_2, …
    """
    import pandas as pd

    told: dict[str, float] = {}
    columns: dict[str, Any] = {}
    for number, (step, finding) in enumerate(found):
        before = sum(each.name == step.name for each, _ in found[:number])
        own = f"{step.name}_{before + 1}" if before else step.name
        worth = {name: float(value) for name, value in finding.totals.items()} | judged(finding, data)
        title = f"cleaning: {own}{', which was told the truth' if step.known else ''}"
        show(title, ["", ""], [[name, value] for name, value in worth.items()])
        told |= {f"cleaning/{own}/{name}": value for name, value in worth.items()}
        if finding.flagged is not None and finding.scores is not None:
            columns |= {own: finding.scores.numpy(), f"{own}_flagged": finding.flagged.numpy()}
    if columns:
        frame = pd.DataFrame({"user": data.user_ids, **columns})
        write_text(out / "suspicion.csv", frame.to_csv(index=False))
    return told


def poisoned(config: Mapping[str, Any], data: Data, out: Path) -> Data:
    """The data with the fake users of a poison; a run that goes on takes those that it had made, or was looking for."""
    poison = poisons.build(config)
    if isinstance(poison, Shilling):
        if (out / RESUME).is_dir() and (out / profiles.KEPT.card).is_file():
            made = profiles.load(str(out), "resume")
            if (made.about["config"], made.about["fingerprint"]) == (poison.settings, data.fingerprint):
                return profiles.inject(data, made)
        identity = json.dumps([poison.settings, data.fingerprint])
        poison.savepoint = Savepoint(out / RESUME / "poison.safetensors", identity)
    return poison(data)


def trainer_of(
    cfg: Train, data: Data, out: Path, task: str, wrap: Wrap, about: Mapping[str, Any]
) -> tuple[Trainer, Evaluator[Any]]:
    """The trainer of a new model, and what it is judged with."""
    _check_graph(str(cfg.model["name"]), data)
    checkpoint.tell_unread(cfg.noise, cfg.model, data)
    torch.manual_seed(cfg.seed)
    model = checkpoint.build(cfg.model, data)
    began = {}
    if cfg.start is not None:
        began = {"start": cfg.start, "started": begin(model, cfg, data)}
    else:
        pretrained = any(name.rpartition(".")[2] == PRETRAINED for name in model.body)
        if cfg.adaptation["name"] != "none" and not pretrained:
            told = "adaptation=%s without start=<run>: its body stays as it was drawn at random"
            log.warning(told, cfg.adaptation["name"])
        if frozen(model):
            show("a body that stays frozen", ["parameters", "trained", "share"], [_share(model)])
    if model.window and (share := overtaken(data)):
        log.warning(
            "split=%s: %.0f %% of the held-out events happened before the end of the history that model=%s reads; "
            "split=leave_one_out, split=temporal or split=ratio split.order=time keep to time",
            cfg.split["name"],
            100 * share,
            cfg.model["name"],
        )
    elif model.window and data.train.times is None and splits.build(cfg.split).at_random:
        log.warning(
            "split=%s: model=%s reads histories, and a random hold-out leaves events from after the held-out ones in "
            "them; split=leave_one_out keeps to the order of the events",
            cfg.split["name"],
            cfg.model["name"],
        )
    name = cfg.loss or model.loss
    count = model.negatives if cfg.negatives is None else cfg.negatives
    if model.trainable:
        check_rated(cfg.protocol, name, count)
    elif cfg.protocol == "ratings":
        raise RrecError(f"protocol=ratings judges ratings, and model={cfg.model['name']} learns none; use biased_mf")
    rated = cfg.noise["name"] == "rating_noise" and cfg.noise["level"]
    if rated and model.trainable and name != "mse" and bool((data.train.values != 0).all()):
        log.warning("noise=rating_noise changes ratings, which loss=%s reads as one like each: nothing differs", name)
    noise = noises.build(cfg.noise)
    noise.delta(model, torch.Generator())  # refuses a model that has nothing for it
    if noise.level and not (noise.finished or model.trainable):
        raise RrecError(f"noise={noise.name}: model={cfg.model['name']} has no epochs to draw it in, it is computed")
    if cfg.defense["name"] != "none" and not model.trainable:
        told = f"model={cfg.model['name']} is computed, and a defence is a way of training; leave it out"
        raise RrecError(f"defense={cfg.defense['name']}: {told}")
    inner = defended(cfg.defense, Plain(trained(name)), model)
    objective = wrap(inner, model, data).to(data.train.users.device)
    introduce(objective, model, data)
    tell_late(inner, cfg.epochs)
    if inner.alone and noise.level and not noise.finished:
        told = "shows an event in more places than one, which its privacy does not count"
        raise RrecError(f"defense={cfg.defense['name']}: noise={noise.name} {told}")
    if inner.alone and objective is not inner:
        raise RrecError(f"defense={cfg.defense['name']}: nothing may be added to its loss, as rrec {task} does")
    judging = evaluator(data, cfg)
    monitor = judging.monitored(cfg.monitor)
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
        about={
            "data": data.fingerprint,
            "noise": cfg.noise,
            "model": cfg.model,
            "defense": cfg.defense,
            "task": task,
            **began,
            **about,
        },
        noise=noise,
    )
    return trainer, judging


def check_rated(protocol: str, loss: str, negatives: int) -> None:
    """RrecError where ratings are judged that a training does not learn."""
    if protocol == "ratings" and (loss != "mse" or negatives):
        raise RrecError(
            f"protocol=ratings judges ratings, and loss={loss} with negatives={negatives} learns none; use loss=mse "
            "negatives=0, as model=biased_mf does"
        )
    if protocol == "clicks" and loss == "mse":
        log.warning("protocol=clicks reads scores as logits, and loss=mse learns ratings; loss=bce learns clicks")


def tell_late(defence: Objective, epochs: int) -> None:
    """Warn of what would begin after the last epoch only."""
    for each in nested(defence):
        if each.waits >= epochs:
            name = type(each).__module__.rpartition(".")[2]
            told = "defense=%s does nothing in its first epochs, %s of them, and epochs=%s: this trains without it"
            log.warning(told, name, each.waits, epochs)


def _check_graph(name: str, data: Data) -> None:
    """RrecError where cleaning made a graph that the model does not read."""
    if data.edges is None or data.cleaning is None or models[name].reads_graph:
        return
    step = data.cleaning.about["steps"][-1]["config"]["name"]
    readers = ", ".join(each for each in models if models[each].reads_graph)
    raise RrecError(f"clean={step} changes the graph alone, and model '{name}' reads none (models that do: {readers})")


def begin(model: RecModel, cfg: Train, data: Data) -> str:
    """Start from the parameters of a run, told with what is trained; sha256 of them."""
    assert cfg.start is not None
    name = cfg.defense["name"]
    if defenses[name].alone:
        raise RrecError(
            f"defense={name} with start={cfg.start}: that run may have learnt from the same events, which no epsilon "
            "would count; leave start out"
        )
    loaded = checkpoint.load(cfg.start, data_dir=cfg.data_dir, device=data.train.users.device, key="start")
    checkpoint.same_source(loaded, cfg, data, "start", cfg.start)
    tell_private(loaded, f"start={cfg.start}")
    copied, tensors = checkpoint.start(model, loaded, cfg.start)
    row: Row = [f"{copied} of {tensors}", *_share(model)]
    show(f"start={cfg.start}", ["tensors as there", "parameters", "trained", "share"], [row])
    return loaded.digest


def tell_private(loaded: checkpoint.Loaded, named: str) -> None:
    """Warn where what goes on with a run voids the privacy that its training was for."""
    name = (loaded.training or {}).get("defense", {}).get("name", "none")
    if defenses[name].alone:
        log.warning(
            "%s was trained with defense=%s: its epsilon says nothing of what is learnt from here on", named, name
        )


def _share(model: RecModel) -> Row:
    """How many numbers a model has, how many of them are trained, and their share."""
    trained, total = sizes(model)
    return [total, trained, trained / max(1, total)]


def body_digest(model: RecModel) -> str | None:
    """Of a body that is frozen; None where the model has none, or it learns."""
    return digest(model) if frozen(model) else None


def learn(trainer: Trainer, cfg: Train, data: Data, training: Mapping[str, Any] | None) -> None:
    """Train to the end and write the checkpoint; the fake users first, they may have taken longer than the training."""
    if data.fakes is not None:
        profiles.save(trainer.out, data.fakes)
        profiles.export(trainer.out, data.fakes, data)
    trainer.model.fit(data)
    frozen = body_digest(trainer.model)
    trainer.run()
    if body_digest(trainer.model) != frozen:
        raise RuntimeError("the frozen body of the model was changed")
    checkpoint.save(trainer.out, trainer.model, cfg.model, cfg, data, training=training)


def cost(trainer: Trainer) -> dict[str, float]:
    """What the training took, shown; the peak of the memory stands in `run.json` beside it."""
    steps = trainer.counted
    seconds = [row["train_seconds"] for row in trainer.history]
    found = {
        "parameters": parameters(trainer.model),
        "epochs": len(trainer.history),
        "seconds_per_epoch": median(seconds) if seconds else float("nan"),
        "forward_equivalents_per_step": trainer.passes.equivalents / steps if steps else float("nan"),
    }
    show("cost", [name.replace("_", " ") for name in found], [list(found.values())])
    return found


def settings(cfg: Train) -> dict[str, Any]:
    """What a model is trained with beside its config and its data, for a checkpoint to keep."""
    kept = {each.name for group in (Fit, Judge) for each in fields(group)}
    kept |= {"seed", "precision", "defense", "clean", "start"}
    if isinstance(cfg, Distill):
        kept |= {each.name for each in fields(Distill)} - {each.name for each in fields(Train)}
    return {name: value for name, value in asdict(cfg).items() if name in kept}


def judge(judging: Evaluator[Any], at: Shifted, cfg: Judge, out: Path) -> dict[str, float]:
    """Validation and test metrics as `valid/…` and `test/…`, shown as a table; values of users are kept."""
    results = {part: judging.evaluate(at, part) for part in PARTS}
    for part, each in results.items():
        each.metrics.update(exposure(judging, at, part))
    by_metric(title(judging.data, cfg), {part: each.metrics for part, each in results.items()})
    by_user.write(out, judging, results)
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
    drawn = "" if cfg.n_negatives is None else f", {cfg.n_negatives} negatives"
    return f"{data.name}, {cfg.protocol}{' ranking' if cfg.protocol in ('full', 'sampled') else ''}{drawn}"


def keep(result: Result, data: Data, path: Path) -> None:
    """Per-user metrics as CSV, with original user ids."""
    import pandas as pd

    frame = pd.DataFrame({name: each.cpu().numpy() for name, each in result.per_user.items()})
    frame.insert(0, "user", [data.user_ids[each] for each in result.users.tolist()])
    write_text(path, frame.to_csv(index=False))
