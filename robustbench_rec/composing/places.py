"""Where a run writes, and what is there already."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_rec import config
from robustbench_rec.composing import session
from robustbench_rec.composing.mistakes import explain
from robustbench_rec.errors import RrecError
from robustbench_rec.files import LOCK, held
from robustbench_rec.reports import reading
from robustbench_rec.resuming import refuse_foreign

KEPT = ("metrics.json", "model.safetensors", "resume", "trajectory", "round-1")
"""What a run that failed may have left that is worth keeping."""


def with_resume(verb: str, overrides: Sequence[str], multirun: bool) -> list[str]:
    """`resume=<run directory>` stands for the overrides of that run, written to the same place."""
    pairs = [each.partition("=") for each in overrides]
    asked = [value.strip("'\"") for key, _, value in pairs if key == "resume" and value not in ("", "null")]
    if not asked or "resume" not in {each.name for each in fields(config.ROOTS[verb])}:
        return list(overrides)
    run = Path(asked[-1]).expanduser()
    beside = [each for each, (key, _, _) in zip(overrides, pairs, strict=True) if key != "resume"]
    for each in beside:
        if each.partition("=")[0] not in config.RESUMABLE_WITH:
            allowed = ", ".join(config.RESUMABLE_WITH)
            raise RrecError(f"resume= continues a run as it was: drop '{each}' (only {allowed} may change)")
    if multirun:
        raise RrecError("resume= continues one run: drop -m")
    if not run.is_dir():
        raise RrecError(f"resume: the run directory {run} does not exist")
    try:
        stored = _overrides(run / ".hydra" / "overrides.yaml")
        ran = OmegaConf.select(OmegaConf.load(run / ".hydra" / "hydra.yaml"), "hydra.job.config_name")
    except FileNotFoundError as error:
        raise RrecError(f"resume: {run} is not a run directory (it has no {Path(str(error.filename)).name})") from error
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise RrecError(f"resume: {run} was stopped before it began ({error}); start it anew") from error
    if ran != verb:
        raise RrecError(f"resume: {run} is a run of `rrec {ran}`, not of `rrec {verb}`")
    if (run / "metrics.json").exists():
        raise RrecError(f"resume: {run} is finished; its results are in metrics.json")
    refuse_foreign(stored, f"resume: {run}", ())
    _refuse_busy(run)
    quoted = "'" + str(run.resolve()).replace("'", r"\'") + "'"
    before = [each for each in stored if not each.startswith("resume=")]
    # the configuration is that of the run, so without resume=; .hydra stays as it was first written, because rewriting
    # it could be cut short by the next kill
    return [*before, *beside, f"hydra.run.dir={quoted}", "hydra.output_subdir=null"]


def refuse_used(verb: str, overrides: Sequence[str]) -> None:
    """RrecError where `hydra.run.dir` names a place that holds a run with other settings."""
    if not any(each.lstrip("+").startswith("hydra.run.dir=") for each in overrides):
        return
    with suppress(HydraException, OmegaConfBaseException):  # they are told when it is run
        if (composed := _with_place(verb, overrides)).hydra.mode != RunMode.MULTIRUN:
            _refuse_other(verb, composed, config.RESUMABLE_WITH)


def place(overrides: Sequence[str], key: str) -> Path | None:
    """The directory that one of `words.PLACES` names, None where it does not."""
    named = [each for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    with suppress(HydraException):  # it is told when it is run
        return Path(str(OverridesParser.create().parse_override(named[-1]).value())) if named else None
    return None


def kept(verb: str, overrides: Sequence[str], *, but: Sequence[str]) -> bool:
    """Whether the place that `hydra.run.dir` names has the results of this run.

    but: settings that may be others there. RrecError where they are those of another run, or make no configuration.
    """
    try:
        composed = _with_place(verb, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise RrecError(explain(error, verb, overrides)) from error
    _refuse_other(verb, composed, but)
    return (Path(composed.hydra.run.dir) / "metrics.json").is_file()


def _with_place(verb: str, overrides: Sequence[str]) -> DictConfig:
    with session():
        composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
        composed.hydra.run.dir = str(composed.hydra.run.dir)  # resolved while Hydra's resolvers are there
    return composed


def _refuse_other(verb: str, composed: DictConfig, but: Sequence[str]) -> None:
    """The same run may go on in its place or be done again; one that left nothing may be done with other settings."""
    place = Path(composed.hydra.run.dir)
    if place.is_dir() and not (place / "metrics.json").exists():
        _refuse_busy(place)
    found = reading.read(place)
    if found.record.get("status") not in ("running", "done") and not any((place / each).exists() for each in KEPT):
        return
    instead = "name another hydra.run.dir, or remove it"
    if found.verb != verb:
        raise RrecError(f"{place} holds a run of `rrec {found.verb}`: {instead}")
    if not found.config:
        raise RrecError(f"{place} holds a run whose settings cannot be read: {instead}")
    plain = OmegaConf.to_container(composed)
    assert isinstance(plain, dict)
    ours = reading.filled({str(key): each for key, each in plain.items() if key != "hydra"})
    if changed := config.difference(ours, found.config, but=(*but, "resume")):
        name, one, other = changed
        raise RrecError(f"{place} holds a run with other settings ({name} is {other} there, not {one}): {instead}")


def _refuse_busy(place: Path) -> None:
    """RrecError where another process is at a run, before Hydra writes into its directory."""
    with held(place / LOCK):
        pass


def _overrides(path: Path) -> list[str]:
    """What Hydra stored; ValueError when a kill cut the file short."""
    stored = OmegaConf.load(path)
    if not isinstance(stored, ListConfig):
        raise ValueError(f"{path} holds no list")
    return [str(each) for each in stored]
