"""The one place that knows both the command line and Hydra."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from robustbench_rec import config, files
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.reports import sweep
from robustbench_rec.reports.reading import last_error
from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import tracked

log = logging.getLogger("rrec")

RESUMABLE_WITH = ("device", "threads", "data_dir", "tracker")
"""What may change when a run is continued: where it runs, not what it computes."""


def conf_dir() -> Path:
    """`conf/` as packed into the wheel, else at the top of the repository."""
    here = Path(__file__).resolve().parent
    packed = here / "conf"
    return packed if packed.is_dir() else here.parent / "conf"


def launch(verb: str, overrides: Sequence[str], *, multirun: bool = False, cfg: str | None = None) -> int:
    """Run `robustbench_rec.tasks.<verb>.run` as a script under `@hydra.main` would; the exit status.

    0: done. 1: a job failed. 2: the overrides make no configuration. 130: interrupted. Every mistake of the person at
    the keyboard is one line on stderr; anything else keeps its traceback.
    """
    if multirun and cfg:
        _say("-m and --cfg: a sweep has no one configuration; leave one of them out")
        return 2
    job, Sweep.directory = Job(verb), None
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra must not print and exit: the errors are told here
    status, stopped = 0, None
    try:
        words = overrides = _nested(_with_resume(verb, overrides, multirun))
        _register_schemas()
        main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(job)
        with _as_a_script(["rrec", *["--multirun"] * multirun, *(["--cfg", cfg] if cfg else []), *words]):
            main()
    except KeyboardInterrupt:
        status, stopped = 130, f"interrupted{_continuation(job, multirun)}"
    except (RrecError, HydraException, OmegaConfBaseException) as error:
        status, stopped = 2, explain(error, verb, overrides)
    except Exception as error:
        if str(error).startswith("Config group override must be"):  # Hydra's ValueError for model=3
            _say(f"{error}: write group=name")
            return 2
        if not any(each.error for each in _jobs(verb)):
            raise
        status, stopped = 1, f"the sweep stopped: {error}"  # the sweeper, after jobs had failed
    failed = _report(verb) or job.failed
    if stopped:
        _say(stopped)
    elif job.out is not None and not multirun and not failed:
        Console().print(f"run directory: {os.path.relpath(job.out)}", markup=False, highlight=False, soft_wrap=True)
    return status or int(failed)


def data(action: str, overrides: Sequence[str]) -> int:
    """`rrec data <action>`: the composed dataset configuration goes to `tasks.data.<action>`; the exit status."""
    try:
        with _hydra():
            typed = _typed(hydra.compose("data", list(overrides)), "data", f"data {action}")
        task = import_module("robustbench_rec.tasks.data")
        task.ls(typed.data_dir) if action == "ls" else getattr(task, action)(typed)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except RrecError as error:
        _say(str(error))
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        _say(explain(error, "data", overrides))
        return 2
    return 0


@dataclass
class Job:
    """The function that Hydra runs: once, or once for each job of a sweep and then perhaps in another process.

    A failure is logged and its value is None, instead of an exception, so that the other jobs of a sweep go on and a
    sweeper that optimises counts the trial as failed.
    """

    verb: str
    out: Path | None = None
    failed: bool = False

    def __call__(self, composed: DictConfig) -> float | None:
        settings = HydraConfig.get()
        self.out = Path(settings.runtime.output_dir)
        sweeping = settings.mode == RunMode.MULTIRUN
        where = f"job {settings.job.num} ({' '.join(settings.overrides.task)}): " if sweeping else ""
        try:
            return self._run(composed, self.out)
        except (RrecError, OmegaConfBaseException) as error:
            log.error("%s%s", where, explain(error, self.verb, settings.overrides.task))
        except Exception as error:
            log.exception("%s%s: %s", where, type(error).__name__, error)
        self.failed = True
        return None

    def _run(self, composed: DictConfig, out: Path) -> float | None:
        typed = _typed(composed, self.verb)
        task = import_module(f"robustbench_rec.tasks.{self.verb}")
        with tracked(trackers.build(typed.tracker), out, self.verb, config.flat(typed)) as results:
            metrics: dict[str, float] = task.run(typed, out)
            files.write_json(out / "metrics.json", metrics)
            results(metrics)
        if not (isinstance(typed, config.Fit) and isinstance(typed, config.Judge)):
            return None
        from robustbench_rec.evaluation import worth

        return worth(typed, typed.monitor, metrics)


class Sweep(Callback):
    """Remembers where the sweep of this process writes, so that `launch` can report it however it ends."""

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.directory = Path(config.hydra.sweep.dir)


def complete(verb: str, words: Sequence[str], incomplete: str) -> list[str]:
    """`group=choice` and `key=value` candidates for the word under the cursor, from the composed configuration."""
    *done, word = re.sub(r" ?= ?", "=", " ".join([*words, incomplete])).split(" ")
    if done and "=" not in done[-1]:  # bash splits "model=" at the sign and Typer drops it
        word = f"{done.pop()}={word}"
    try:
        with _hydra():
            found = sorted(each for each in _candidates(verb, _nested(done)) if each.startswith(word))
    except (RrecError, HydraException, OmegaConfBaseException):
        return []
    return found if word == incomplete else [each.partition("=")[2] for each in found]


def explain(error: Exception, verb: str, overrides: Sequence[str]) -> str:
    """An error of Hydra, OmegaConf or our own as one line that names the key, the choices or the next step."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, RrecError):
        return " ".join(lines)
    if isinstance(error, OverrideParseException):
        reason = lines[0] if "=" in error.override else "write key=value"
        return f"cannot read '{error.override}': {reason}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        plugins = "; more come with the extras launchers and sweeps" if group.startswith("hydra/") else ""
        return f"{unknown(group or 'configuration', name, error.options or ())}{plugins}"
    if sweeping := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'", text):
        return f"'{sweeping[1]}' is a sweep: add -m (a list is written key=[a,b])"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if refused := re.search(r"Could not override '([^']+)|^Key '([^']+)'", f"{text}\n{cause}", re.MULTILINE):
        key = refused[1] or getattr(cause, "full_key", None) or refused[2]
        return _unknown_key(key, verb, overrides)
    if isinstance(cause, OmegaConfBaseException):
        reason = str(cause).partition("\n")[0]
        if "is not a ListConfig" in reason:
            reason = f"a list is written {cause.full_key}=[a,b]"
        return f"{cause.full_key}: {reason}" if cause.full_key else reason
    return "; ".join(lines)


def _unknown_key(key: str, verb: str, overrides: Sequence[str]) -> str:
    """An unknown key beside the keys that the overrides of groups alone compose."""
    keys: set[str] = set()
    with suppress(HydraException, OmegaConfBaseException), _hydra():
        groups = set(_groups(verb, []))
        named = {each: re.split("[@=]", each.lstrip("+"))[0] for each in overrides}
        chosen = [each for each, group in named.items() if group in groups and "," not in each]
        keys = {each.partition("=")[0] for each in _candidates(verb, chosen)}
    return _told(key, verb, keys)


def _told(key: str, verb: str, keys: set[str]) -> str:
    nested = sorted(each for each in keys if each.endswith(f".{key}"))
    near = nested or get_close_matches(key, keys, n=1) or get_close_matches(key, {k.split(".")[0] for k in keys}, n=1)
    which = "hydra" if key.startswith("hydra") else "job"
    where = f" (`rrec {verb} --cfg {which}` shows the keys)" if verb != "data" else ""
    return f"unknown key '{key}'{f'; did you mean {near[0]!r}?' if near else ''}{where}"


def _typed(composed: DictConfig, verb: str, said: str | None = None) -> Any:
    """The composed configuration as the verb's dataclass; what it lacks and what `+key=` added to it are refused."""
    names = {each.name for each in fields(config.ROOTS[verb])}
    if added := sorted(set(map(str, composed)) - names):
        raise RrecError(_told(added[0], verb, names))
    if missing := sorted(OmegaConf.missing_keys(composed) | (names - set(composed))):
        kinds = {"ckpt": "<run directory>", "teacher": "<run directory>"}
        wanted = " ".join(f"{key}={kinds.get(key, '<value>')}" for key in missing)
        raise RrecError(f"{said or verb} needs {wanted}")
    return OmegaConf.to_object(composed)


def _with_resume(verb: str, overrides: Sequence[str], multirun: bool) -> list[str]:
    """`resume=<run directory>` stands for the overrides of that run, written to the same place."""
    pairs = [each.partition("=") for each in overrides]
    asked = [value.strip("'\"") for key, _, value in pairs if key == "resume" and value not in ("", "null")]
    if not asked or "resume" not in {each.name for each in fields(config.ROOTS[verb])}:
        return list(overrides)
    run = Path(asked[-1]).expanduser()
    beside = [each for each, (key, _, _) in zip(overrides, pairs, strict=True) if key != "resume"]
    for each in beside:
        if each.partition("=")[0] not in RESUMABLE_WITH:
            allowed = ", ".join(RESUMABLE_WITH)
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
    quoted = "'" + str(run.resolve()).replace("'", r"\'") + "'"
    before = [each for each in stored if not each.startswith("resume=")]
    # the configuration is that of the run, so without resume=; .hydra stays as it was first written, because rewriting
    # it could be cut short by the next kill
    return [*before, *beside, f"hydra.run.dir={quoted}", "hydra.output_subdir=null"]


def _nested(overrides: Sequence[str]) -> list[str]:
    """`defense=[a,b]` in words of Hydra that compose to a around b, with the keys of b in `defense.inner`."""
    words = []
    for each in overrides:
        key, _, value = each.partition("=")
        listed = re.fullmatch(r"\[([\w\s,]*)\]", value.strip())
        if key.strip() != "defense" or (listed is None and "[" not in value):
            words.append(each)
            continue
        names = [name.strip() for name in listed[1].split(",")] if listed else []
        if not all(names) or not names:
            raise RrecError(
                f"cannot read '{each}': several defences are defense=[outermost,…,innermost]; "
                "a sweep over such lists is written -m defense=a,b +defense@defense.inner=c"
            )
        places = ["defense", *(f"+defense@defense{'.inner' * depth}" for depth in range(1, len(names)))]
        words += [f"{place}={name}" for place, name in zip(places, names, strict=True)]
    return words


def _continuation(job: Job, multirun: bool) -> str:
    if multirun or job.out is None or not (job.out / "resume").is_dir():
        return ""
    return f"; `rrec {job.verb} resume={os.path.relpath(job.out)}` continues it"


def _report(verb: str) -> bool:
    """Show the sweep of this process, if there was one; whether a job of it failed."""
    directory, jobs = Sweep.directory, _jobs(verb)
    if directory is None or not jobs:
        return False
    sweep.report(jobs, directory, verb, Console())
    return any(each.metrics is None for each in jobs)


def _jobs(verb: str) -> list[sweep.Job]:
    """What the jobs of a sweep left behind, in the order of their numbers."""
    if Sweep.directory is None:
        return []
    found = []
    for stored in Sweep.directory.glob("*/.hydra/overrides.yaml"):
        run = stored.parent.parent
        overrides = {key: value for key, _, value in (each.lstrip("+~").partition("=") for each in _overrides(stored))}
        metrics = files.read_json(run / "metrics.json", "sweep") if (run / "metrics.json").exists() else None
        error = None if metrics is not None else last_error(run / f"{verb}.log")
        found.append(sweep.Job(run.name, overrides, metrics, error))
    return sorted(found, key=lambda job: (int(job.name) if job.name.isdecimal() else math.inf, job.name))


def _overrides(path: Path) -> list[str]:
    """What Hydra stored; ValueError when a kill cut the file short."""
    stored = OmegaConf.load(path)
    if not isinstance(stored, ListConfig):
        raise ValueError(f"{path} holds no list")
    return [str(each) for each in stored]


def _candidates(verb: str, overrides: Sequence[str]) -> Iterator[str]:
    composed = hydra.compose(verb, list(overrides))
    yield from _leaves(composed)
    loader = GlobalHydra.instance().config_loader()
    for group in _groups(verb, overrides):
        yield from (f"{group}={choice}" for choice in loader.get_group_options(group.partition("@")[0]))


def _groups(verb: str, overrides: Sequence[str]) -> list[str]:
    composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
    return list(map(str, composed.hydra.runtime.choices))


def _leaves(composed: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in ((str(key), value) for key, value in composed.items_ex(resolve=False)):
        if prefix and key == "name":
            continue  # the choice of the group
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}="
        else:
            plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
            yield f"{prefix}{key}={json.dumps(plain, separators=(',', ':')).replace(chr(34), '')}"


def _register_schemas() -> None:
    for name, schema in config.ROOTS.items():
        ConfigStore.instance().store(name, schema, group="schema", package="_global_")


@contextmanager
def _hydra() -> Iterator[None]:
    _register_schemas()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


@contextmanager
def _as_a_script(words: list[str]) -> Iterator[None]:
    """What Hydra takes from and leaves in the process: `sys.argv` and the handlers of the root logger."""
    argv, root = sys.argv, logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.argv = words
    try:
        yield
    finally:
        sys.argv = argv
        for handler in [each for each in root.handlers if each not in handlers]:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def _say(line: str) -> None:
    Console(stderr=True).print(f"rrec: {line}", markup=False, highlight=False, soft_wrap=True)
