"""What a sweep was asked and what its jobs left behind."""

import math
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from robustbench_rec import config, files
from robustbench_rec.console import Output, line
from robustbench_rec.errors import RrecError
from robustbench_rec.files import LOCK
from robustbench_rec.reports.reading import last_error

if TYPE_CHECKING:
    from robustbench_rec.reports.summary import Job as SweptJob

SWEPT = (
    *("hydra.mode", "hydra.verbose", "hydra.job.chdir", "hydra.sweep."),
    *("hydra/launcher", "hydra.launcher.n_jobs", "hydra/sweeper", "hydra.sweeper.direction", "hydra.sweeper.n_"),
    *("hydra.sweeper.max_failure_rate", "hydra.sweeper.params", "hydra.sweeper.sampler."),
)
"""How keys of Hydra begin that a sweep goes on with; others are taken from the command line alone."""
SWEEP, JOB = "sweep.json", "job.json"
"""What a sweep was asked, and each of its jobs; Hydra's own files may be cut short by a kill."""
RUNS = ("ckpt", "baseline", "teacher", "poison.path")
"""Keys whose values are directories of runs."""


def asked(directory: Path) -> tuple[str, list[str]]:
    """The verb of a sweep, and its overrides with the place that it has."""
    if not (directory / SWEEP).is_file():
        raise RrecError(f"{directory} is not the directory of a sweep (it has no {SWEEP})")
    told = files.read_json(directory / SWEEP, "sweep")
    verb, words = told.get("verb"), told.get("overrides")
    if not (isinstance(verb, str) and verb in config.ROOTS and isinstance(words, list)):
        raise RrecError(f"{directory / SWEEP} is not what rrec wrote; start the sweep anew")
    place = "'" + str(directory.resolve()).replace("'", r"\'") + "'"
    return str(verb), [
        *(each for each in map(str, words) if not each.startswith("hydra.sweep.dir=")),
        f"hydra.sweep.dir={place}",
    ]


def started_in(directory: Path) -> Path:
    """The working directory of a sweep, which its relative paths are about."""
    return Path(str(files.read_json(directory / SWEEP, "sweep").get("cwd", ".")))


def refuse_sweep(directory: Path) -> None:
    """RrecError where a run is to be in the place of a sweep."""
    if (directory / SWEEP).is_file():
        raise RrecError(f"{directory} holds a sweep: name another hydra.run.dir, or remove it")


def refuse_other(directory: Path, verb: str, overrides: Sequence[str]) -> None:
    """RrecError where a place holds a run, or another sweep; how its jobs are launched is no difference."""
    if not (directory / SWEEP).is_file():
        runs = [directory, *(each for each in directory.glob("*") if each.name.isdecimal())]
        for each in runs:
            if (each / ".hydra").is_dir() or (each / "run.json").is_file():
                raise RrecError(f"{each} holds a run: name another hydra.sweep.dir, or remove it")
        return
    theirs, words = asked(directory)
    before, now = (
        [each for each in some if not each.lstrip("+~").startswith(("hydra.", "hydra/"))] for some in (words, overrides)
    )
    if (theirs, before) != (verb, now):
        told = " ".join([f"rrec {theirs} -m", *before])
        raise RrecError(f"{directory} holds another sweep (`{told}`): name another hydra.sweep.dir, or remove it")


def finished(out: Path, composed: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether a job of a sweep has its results already; RrecError where its directory is that of another job."""
    digest = sha256(OmegaConf.to_yaml(composed).encode()).hexdigest()
    told: dict[str, Any] = {"overrides": list(overrides), "config": digest}
    told |= {key: composed.get(key) for key in ("protocol", "monitor")}
    if OmegaConf.select(composed, "poison.direction") == "nuke":
        told["nuke"] = True
    if not (out / JOB).exists():
        files.write_json(out / JOB, told)
        return False
    if files.read_json(out / JOB, "sweep") != told:
        raise RrecError(f"{out} holds a job with other settings; name another hydra.sweep.dir")
    return _results(out) is not None


def _results(run: Path) -> dict[str, Any] | None:
    """What a job has found; None where it failed, as a gate that is shut has, which writes what it found as well."""
    if not (run / "metrics.json").exists():
        return None
    metrics = files.read_json(run / "metrics.json", "sweep")
    return None if metrics.get("gate/failed") else metrics


def jobs_of(verb: str, directory: Path) -> list["SweptJob"]:
    """What the jobs of a sweep left behind, in the order of their numbers."""
    from robustbench_rec.checkpoint import uncleaned
    from robustbench_rec.evaluation import PROTOCOLS
    from robustbench_rec.reports.summary import Job as SweptJob

    found = []
    for stored in directory.glob(f"*/{JOB}"):
        run = stored.parent
        told = files.read_json(stored, "sweep")
        words = told.get("overrides")
        if not isinstance(words, list) or told.get("protocol") not in (None, *PROTOCOLS):
            raise RrecError(f"{stored} is not what rrec wrote; remove {run} to do the job again")
        pairs = (str(each).lstrip("+~").partition("=") for each in words)
        overrides = {key: re.sub(r'"(\w+)"', r"\1", value) for key, _, value in pairs}
        metrics = _results(run)
        error = None if metrics is not None else _why(run, verb)
        record = files.read_json(run / "run.json", "sweep") if (run / "run.json").exists() else {}
        found.append(SweptJob(run.name, overrides, metrics, error, bool(told.get("nuke")), uncleaned(record)))
    return sorted(found, key=lambda job: (int(job.name) if job.name.isdecimal() else math.inf, job.name))


def _why(run: Path, verb: str) -> str:
    """Why a job has no results."""
    try:
        with files.held(run / LOCK):
            return last_error(run / f"{verb}.log")
    except RrecError:
        return "it is running"


def report(verb: str, directory: Path) -> int:
    """Show a sweep; the number of jobs that are not done. One that has not begun a job leaves nothing behind."""
    jobs = jobs_of(verb, directory)
    if not jobs:
        _forget(directory)
        return 0
    from robustbench_rec.reports import sweep
    from robustbench_rec.reports.summary import Summary

    sweep.report(Summary(jobs, verb, _watched(jobs, directory), _called(jobs, directory)), directory, Output())
    asked = _count(directory)
    left = 0 if asked is None else max(0, asked - len(jobs))
    if left:
        line(f"{len(jobs)} of {asked} jobs have begun")
    return left + sum(each.metrics is None for each in jobs)


def complete(directory: Path, jobs: Sequence["SweptJob"]) -> bool:
    """Whether a sweep is known to have done all of its jobs; sweepers that find them as they go tell no number."""
    return _count(directory) == sum(each.metrics is not None for each in jobs)


def _count(directory: Path) -> int | None:
    asked = files.read_json(directory / SWEEP, "sweep").get("jobs")
    return asked if isinstance(asked, int) else None


def _watched(jobs: Sequence["SweptJob"], directory: Path) -> str | None:
    """The metric that the first finished job monitored or would have; None where nothing is judged by a protocol."""
    from robustbench_rec.evaluation import PROTOCOLS
    from robustbench_rec.reports.summary import SIDES

    for job in jobs:
        if job.metrics is not None:
            told = files.read_json(directory / job.name / JOB, "sweep")
            if told.get("protocol") is None:
                break
            kinds = (name.partition("/") for name in job.metrics)
            names = [name for side, _, name in kinds if side in SIDES and "/" not in name]
            protocol = PROTOCOLS[told["protocol"]]
            return str(told.get("monitor") or (protocol.main(names) if names else protocol.monitor))
    return None


def _called(jobs: Sequence["SweptJob"], directory: Path) -> dict[str, str]:
    """Of the runs that jobs name, by path: the model, and of the path what not all have."""
    found: dict[str, str] = {}
    started = started_in(directory).absolute()
    for key in RUNS:
        paths = {job.overrides[key]: started / job.overrides[key] for job in jobs if key in job.overrides}
        if len(paths) > 1:
            shared = os.path.commonpath([each.parent for each in paths.values()])
            found |= {said: _named(path, shared) for said, path in paths.items() if path.is_dir()}
    return found


def _named(run: Path, shared: str) -> str:
    from robustbench_rec.checkpoint import CARD

    rest = os.path.relpath(run, shared)
    try:
        model = files.read_json(run / CARD, "ckpt").get("model")
    except RrecError:  # fake users, or a model whose jobs have failed and say why
        return rest
    name = model.get("name") if isinstance(model, dict) else None
    return f"{name} ({rest})" if isinstance(name, str) and name != run.name else rest


def _forget(directory: Path) -> None:
    """Remove what Hydra wrote about a sweep before it found that no job can be composed."""
    for name in (SWEEP, "multirun.yaml"):
        (directory / name).unlink(missing_ok=True)
    files.remove_empty(directory)
