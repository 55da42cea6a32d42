"""The undefended side of an attack: whether it is one, and what a defence gives back beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_rec import checkpoint, profiles
from robustbench_rec.config import RESUMABLE_WITH, Attack, difference, flat, typed_attack
from robustbench_rec.data import Profiles
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator
from robustbench_rec.files import read_json
from robustbench_rec.metrics.robustness import drop, exposure_improvement, improvement
from robustbench_rec.reports.reading import read
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.tasks.beside import asked_alike
from robustbench_rec.tasks.struck import is_quality

APART = (
    *(*RESUMABLE_WITH, "resume", "deterministic", "ckpt", "baseline"),
    *("slices", "anonymity", "metrics", "top_k", "per_user"),
)
"""What may differ from the baseline, beside seeds: whom and where it attacked, and what is told of it."""
UNCOUNTED = ("goal", "attack", "eps", "loss", "labels", "clean")
"""What a poison does not look at, and the cleaning, which is a defence against it."""
DEFENDS = ("defense", "clean")
"""Settings of a training that an undefended one has none of."""
SOURCES = ("start", "teacher")
"""Runs that a training learnt from."""
SHARED = ("adaptation", "noise", "distill", *SOURCES)
"""Settings that an undefended training has none of, or those of the model that is compared with it."""
LITTLE = 0.05
"""Share of the clean quality below which what an attack took is little to divide by."""
OTHER = "it is not the same attack on the same data"
EXPOSURE = ("t_hr@", "t_ndcg@")
"""Metrics of target items that an attacker raises, or lowers, from near nothing."""


def victim(loaded: checkpoint.Loaded) -> dict[str, Any]:
    """The model of a checkpoint and all of its training that may defend it, as `run.json` of an attack keeps it."""
    beside = {"adaptation": loaded.config.get("adaptation"), "noise": loaded.recipe.noise}
    trained = {**(loaded.training or {}), **beside}
    kept = {name: trained.get(name) for name in (*DEFENDS, *SHARED)}
    return {"model": dict(loaded.config), "trained": loaded.training is not None, "settings": kept}


def check_undefended(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str, path: str, ckpt: str, *, but: Sequence[str] = ()
) -> None:
    """RrecError unless the victim of a run, theirs, is an undefended one of the same model as that of the checkpoint.

    It has no defence, no cleaning and no fine-tuning; noise, adaptation, distillation, start and teachers it has none
    of, or the same. but: those of them that may differ.
    """
    no = f"{key}={path} is no undefended run of the model of ckpt={ckpt}"
    if not theirs["trained"]:
        raise RrecError(f"{no}: it was fine-tuned, or does not say how it was trained; name a run of rrec train")
    for name in (*DEFENDS, *SHARED):
        value = theirs["settings"].get(name)
        if name not in but and not _nothing(value) and (name in DEFENDS or value != ours["settings"].get(name)):
            raise RrecError(f"{no}: its {name} is {value.get('name') if isinstance(value, Mapping) else value}")
    if changed := difference(theirs["model"], ours["model"], but=("adaptation",)):
        name, there, here = changed
        raise RrecError(f"{no}: its model.{name} is {there}, not {here}")


def evaded(
    cfg: Attack, loaded: checkpoint.Loaded, judging: Evaluator[Any], threat: Mapping[str, str]
) -> Mapping[str, float] | None:
    """Metrics of the baseline, a run of the same attack on the undefended model of the same data; None without one.

    What cleaning left out of the data may differ, and what both learnt from. RrecError names what is otherwise.
    """
    if cfg.baseline is None:
        return None
    folder, key = Path(cfg.baseline), f"baseline={cfg.baseline}"
    record = read_json(folder / "run.json", key)
    told = checkpoint.fingerprints(loaded.data)
    if told["fingerprint"] != record.get("fingerprint") and not checkpoint.alike(told, record):
        raise RrecError(f"{key}: {OTHER}, its fingerprint is {str(record.get('fingerprint'))[:12]}")
    theirs = record.get("threat")
    record |= theirs if isinstance(theirs, Mapping) else {}
    for name, value in {"task": "attack", "labels": cfg.labels, **threat}.items():
        if record.get(name) != value:
            raise RrecError(f"{key}: {OTHER}, its {name} is {record.get(name)}, not {value}")
    metrics = _metrics(cfg, folder, key, APART)
    attacked = record.get("victim")
    kinds = {"model": Mapping, "settings": Mapping, "trained": bool}
    if not (isinstance(attacked, Mapping) and all(isinstance(attacked.get(k), kind) for k, kind in kinds.items())):
        raise RrecError(f"{key} does not say what it attacked: attack the undefended model again")
    check_undefended(victim(loaded), attacked, "baseline", cfg.baseline, cfg.ckpt, but=SHARED)
    asked_alike(cfg, judging, loaded.uncleaned, "baseline")
    return metrics


def poisoned(cfg: Attack, loaded: checkpoint.Loaded, judging: Evaluator[Any]) -> Mapping[str, float] | None:
    """Metrics of the baseline, a run of the same poison on the same data and the undefended model; None without one.

    The poison is the same where its settings are, seeds aside, or where it replays the fake users of the baseline.
    RrecError names what is otherwise.
    """
    if cfg.baseline is None:
        return None
    folder, key = Path(cfg.baseline), f"baseline={cfg.baseline}"
    task = read_json(folder / "run.json", key).get("task")
    if task != "attack" or not (folder / profiles.KEPT.card).is_file():
        raise RrecError(f"{key} is no run of rrec attack with a poison: name that of the undefended model")
    fakes = profiles.load(cfg.baseline, "baseline")
    if fakes.about.get("fingerprint") != loaded.uncleaned.fingerprint:
        raise RrecError(f"{key}: {OTHER}, its fingerprint is {str(fakes.about.get('fingerprint'))[:12]}")
    metrics = _metrics(cfg, folder, key, (*APART, *UNCOUNTED, *(["poison"] if _replays(cfg, fakes) else [])))
    other = checkpoint.load(cfg.baseline, data_dir=cfg.data_dir, device=loaded.data.train.users.device, key="baseline")
    retrained = SOURCES  # they were trained again, in folders of the baseline
    check_undefended(victim(loaded), victim(other), "baseline", cfg.baseline, cfg.ckpt, but=retrained)
    asked_alike(cfg, judging, loaded.uncleaned, "baseline")
    return metrics


def repaired(
    clean: Mapping[str, float],
    after: Mapping[str, float],
    undefended: Mapping[str, float],
    judging: Evaluator[Any],
    *,
    side: str,
) -> dict[str, float]:
    """Robustness improvement over the undefended model, shown, and where it is not defined.

    Of every quality, and of the rise of the target items' exposure. undefended: metrics of its run, `clean/…` and, of
    the attacked side, `side/…`.
    """
    rows: list[Row] = []
    told: dict[str, float] = {}
    for name, value in after.items():
        if f"clean/{name}" not in undefended or f"{side}/{name}" not in undefended:
            continue
        before, left = undefended[f"clean/{name}"], undefended[f"{side}/{name}"]
        if name.startswith(EXPOSURE):
            found, note = exposure_improvement(*_numbers(value - clean[name], left - before)), ""
        elif is_quality(name, judging):
            found = improvement(*_numbers(value, left, before), smaller=name.partition("@")[0] in judging.smaller)
            taken = drop(*_numbers(before, left)).abs().item()
            note = f"of only {taken:.1%}" if taken < LITTLE else ""
        else:
            continue
        repair, undefined = (each.item() for each in found)
        rows.append([name, before, left, value, repair, "no effect to repair" if undefined else note])
        told |= {f"improvement/{name}": repair, f"flag/improvement_undefined/{name}": undefined}
    columns = ["metric", "clean", side, "this model", "improvement", ""]
    show(f"robustness improvement, 1: full repair (clean and {side}: undefended)", columns, rows)
    return told


def _metrics(cfg: Attack, folder: Path, key: str, but: Sequence[str]) -> Mapping[str, float]:
    """Of a finished run of an attack with the same settings, seeds aside."""
    found = read(folder.resolve())
    if found.metrics is None:
        raise RrecError(f"{key} is no finished run: {found.error}")
    try:
        theirs = _seedless(typed_attack(found.config))
    except ValueError as error:
        raise RrecError(f"{key}: how it was attacked cannot be read from its .hydra/config.yaml ({error})") from error
    if changed := difference(_seedless(cfg), theirs, but=but):
        name, one, other = changed
        raise RrecError(f"{key}: {OTHER}, its {name} is {other}, not {one}")
    return found.metrics


def _seedless(cfg: Attack) -> dict[str, str]:
    """By dotted keys, without seeds."""
    return {name: each for name, each in flat(cfg).items() if name.rpartition(".")[2] != "seed"}


def _replays(cfg: Attack, fakes: Profiles) -> bool:
    """Whether the poison is these fake users."""
    path = cfg.poison.get("path") if cfg.poison["name"] == "file" else None
    return path is not None and profiles.digest(profiles.load(path, "poison.path")) == profiles.digest(fakes)


def _nothing(value: Any) -> bool:
    """Whether a setting changes nothing, as a noise of level 0 does."""
    return value is None or (isinstance(value, Mapping) and (value.get("name") == "none" or value.get("level") == 0))


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.double)
