"""rrec attack with a poison."""

from dataclasses import asdict, fields
from pathlib import Path

from robustbench_rec import checkpoint
from robustbench_rec.clean import cleaned
from robustbench_rec.config import Attack, Base, Train, typed_training
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result, by_user, evaluator
from robustbench_rec.evaluation.alike import alike
from robustbench_rec.hardware import setup
from robustbench_rec.reports.tables import by_metric, show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.train import cleaning, keep, learn, poisoned, settings, suspects, trainer_of


def retrain(cfg: Attack, out: Path) -> dict[str, float]:
    """Train the model of a checkpoint again, as it was trained, on its data with fake users; judge it before and after.

    The same model, settings and seed, with the data as the only difference; the clean side is the checkpoint. The run
    directory is a checkpoint of the poisoned model, with the fake users, and so the source of `poison=file`.
    """
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    training = _training(cfg, loaded)
    clean_judge = evaluator(loaded.data, cfg)
    clean_judge.portions(cfg.part)
    data = poisoned(cfg.poison, loaded.uncleaned, out)
    if data.fakes is None:
        raise RrecError("this poison has no fake users")
    data, found = cleaned(data, cleaning(training.clean))
    assert data.fakes is not None
    trainer, _ = trainer_of(training, data, out, "retrain", lambda objective, model, data: objective, {})
    poisoned_judge, targets = evaluator(data, cfg), data.fakes.targets.to(device)
    seeds = {"seed": training.seed, "poison.seed": cfg.poison.get("seed")}
    notes = {"ckpt": cfg.ckpt, "fingerprint": data.fingerprint, "threat": data.fakes.about["threat"]}
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
    return {f"{side}/{name}": value for side, values in sides.items() for name, value in values.items()} | told


def _training(cfg: Attack, loaded: checkpoint.Loaded) -> Train:
    """The settings of the checkpoint's training, here and now."""
    if loaded.data.fakes is not None:
        raise RrecError(f"ckpt={cfg.ckpt} was trained on poisoned data: name a clean run")
    if loaded.training is None:
        raise RrecError(
            f"ckpt={cfg.ckpt} does not say how it was trained (only runs of rrec train do, since poisons came): "
            "train it again"
        )
    clean = cfg.clean if cfg.clean["name"] != "none" else loaded.training.get("clean", cfg.clean)
    here = {each.name: getattr(cfg, each.name) for each in fields(Base) if each.name not in loaded.training}
    recipe = asdict(loaded.recipe)
    changed = {"model": loaded.config, "poison": cfg.poison, "clean": clean, "resume": None}
    try:
        return typed_training({**here, **loaded.training, **recipe, **changed})
    except ValueError as error:
        raise RrecError(f"ckpt={cfg.ckpt}: its training cannot be repeated ({error})") from error
