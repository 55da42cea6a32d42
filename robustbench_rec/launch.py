"""The one place that knows both the command line and Hydra."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
from robustbench_rec.reports.reading import last_error
from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import tracked

if TYPE_CHECKING:
    from robustbench_rec.reports.summary import Job as SweptJob

log = logging.getLogger("rrec")

NESTED = ("defense", "clean", "distill")
"""Groups of which several can be chosen, one inside the other."""
RESUMABLE_WITH = ("device", "threads", "data_dir", "tracker")
"""What may change when a run is continued: where it runs, not what it computes."""
SWEEP, JOB = "sweep.json", "job.json"
"""What a sweep was asked, and each of its jobs; Hydra's own files may be cut short by a kill."""
LOCK = "lock"
"""What a process has that is at a job of a sweep."""


def conf_dir() -> Path:
    """`conf/` as packed into the wheel, else at the top of the repository."""
    here = Path(__file__).resolve().parent
    packed = here / "conf"
    return packed if packed.is_dir() else here.parent / "conf"


def launch(verb: str, overrides: Sequence[str], *, multirun: bool = False, cfg: str | None = None) -> int:
    """Run `robustbench_rec.tasks.<verb>.run` as a script under `@hydra.main` would; the exit status.

    A verb that answers a question does so without Hydra's run directory.
    0: done. 1: a job failed. 2: the overrides make no configuration. 130: interrupted. Every mistake of the person at
    the keyboard is one line on stderr; anything else keeps its traceback.
    """
    overrides = _limits(overrides)
    if not cfg and _answers(verb, overrides):
        return _answer(verb, overrides, multirun)
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
        status, stopped = 130, f"interrupted{_continuation(job)}"
    except (RrecError, HydraException, OmegaConfBaseException) as error:
        status, stopped = 2, explain(error, verb, overrides)
    except Exception as error:
        if str(error).startswith("Config group override must be"):  # Hydra's ValueError for model=3
            _say(f"{error}: write group=name")
            return 2
        if Sweep.directory is None or not any(each.error for each in _jobs(verb, Sweep.directory)):
            raise
        status, stopped = 1, f"the sweep stopped: {error}"  # the sweeper, after jobs had failed
    failed = job.failed
    if Sweep.directory is not None:
        unfinished = _report(verb, Sweep.directory)
        failed = failed or bool(unfinished)
        if unfinished or (status == 130 and Sweep.directory.is_dir()):
            stopped = "; ".join([*([stopped] if stopped else []), _again(Sweep.directory)])
    if stopped:
        _say(stopped)
    elif job.out is not None and Sweep.directory is None and not failed:
        Console().print(f"run directory: {os.path.relpath(job.out)}", markup=False, highlight=False, soft_wrap=True)
    return status or int(failed)


def data(action: str, overrides: Sequence[str]) -> int:
    """`rrec data <action>`: the composed dataset configuration goes to `tasks.data.<action>`; the exit status."""

    def task(typed: Any) -> None:
        found = import_module("robustbench_rec.tasks.data")
        found.ls(typed.data_dir) if action == "ls" else getattr(found, action)(typed)

    return _directly("data", overrides, task, f"data {action}")


def _limits(overrides: Sequence[str]) -> list[str]:
    """`max_drop.ndcg@10=5%` as a mapping with all of the key, since Hydra reads an @ in a key as a package."""
    key = re.compile(rf"({'|'.join(config.LIMITS)})\.([^=]+)=([^,]+)")
    found = {each: key.fullmatch(each) for each in overrides}
    said: dict[str, list[str]] = {}
    for match in filter(None, found.values()):
        said.setdefault(match[1], []).append(f"{match[2]}: {match[3]}")
    return [*(each for each in overrides if not found[each]), *(f"{k}={{{', '.join(v)}}}" for k, v in said.items())]


def _answers(verb: str, overrides: Sequence[str]) -> bool:
    """Whether a verb answers on standard output, without a run directory."""
    words = dict(each.partition("=")[::2] for each in overrides)
    return verb == "recommend" or (verb == "explain" and words.get("sample", "null") in ("", "null"))


def _answer(verb: str, overrides: Sequence[str], multirun: bool) -> int:
    """`tasks.<verb>.answer` with the composed configuration; the exit status."""
    if multirun:
        _say(f"-m: rrec {verb} answers one question and writes no run directory; drop -m")
        return 2
    return _directly(verb, overrides, lambda typed: import_module(f"robustbench_rec.tasks.{verb}").answer(typed), verb)


def _directly(verb: str, overrides: Sequence[str], task: Callable[[Any], None], said: str) -> int:
    """Compose and do, in this process and without a run directory."""
    try:
        with _hydra():
            typed = _typed(hydra.compose(verb, list(overrides)), verb, said)
        task(typed)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except RrecError as error:
        _say(str(error))
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        _say(explain(error, verb, overrides))
        return 2
    return 0


def resume_sweep(directory: str, overrides: Sequence[str]) -> int:
    """`rrec sweep resume`: ask the same again in the same place; jobs that are done are not done again.

    What failed is tried again, what was killed goes on from its own resumable state. overrides: of the launcher.
    """
    try:
        verb, words = _asked(Path(directory).expanduser())
        for each in overrides:
            if not each.startswith(("hydra/launcher=", "hydra.launcher.")):
                raise RrecError(f"a sweep goes on as it was: drop '{each}' (only hydra/launcher… may change)")
        if any(each.startswith("hydra/launcher=") for each in overrides):
            words = [each for each in words if not each.startswith(("hydra/launcher=", "hydra.launcher."))]
        jobs = _jobs(verb, Path(directory).expanduser())
    except RrecError as error:
        _say(str(error))
        return 2
    _say(f"jobs that are done: {sum(job.error is None for job in jobs)}; what is missing of `rrec {verb} -m` follows")
    for job in jobs:
        if job.error is not None:
            _say(f"job {job.name}, again: {job.error}")
    return launch(verb, [*words, *overrides], multirun=True)


def show_sweep(directory: str) -> int:
    """`rrec sweep show`: the table of what is finished so far, and its files anew."""
    folder = Path(directory).expanduser()
    try:
        verb, _ = _asked(folder)
        if not _jobs(verb, folder):
            raise RrecError(f"{folder} has no jobs yet")
        missing = _report(verb, folder)
    except RrecError as error:
        _say(str(error))
        return 2
    if missing:
        _say(_again(folder))
    return 0


def _asked(directory: Path) -> tuple[str, list[str]]:
    """The verb of a sweep, and its overrides with the place that it has."""
    if not (directory / SWEEP).is_file():
        raise RrecError(f"{directory} is not the directory of a sweep (it has no {SWEEP})")
    asked = files.read_json(directory / SWEEP, "sweep")
    verb, words = asked.get("verb"), asked.get("overrides")
    if verb not in config.ROOTS or not isinstance(words, list):
        raise RrecError(f"{directory / SWEEP} is not what rrec wrote; start the sweep anew")
    place = "'" + str(directory.resolve()).replace("'", r"\'") + "'"
    return str(verb), [
        *(each for each in map(str, words) if not each.startswith("hydra.sweep.dir=")),
        f"hydra.sweep.dir={place}",
    ]


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
            if not sweeping:
                return self._run(composed, self.out)
            with files.held(self.out / LOCK):  # a worker may outlive the sweep that started it
                if not _finished(self.out, composed, settings.overrides.task):
                    return self._run(composed, self.out)
                metrics = files.read_json(self.out / "metrics.json", "sweep")
                return _worth(_typed(composed, self.verb), metrics)
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
        return _worth(typed, metrics)


def _worth(typed: Any, metrics: Mapping[str, float]) -> float | None:
    """What a sweeper maximises."""
    if not (isinstance(typed, config.Fit) and isinstance(typed, config.Judge)):
        return None
    from robustbench_rec.evaluation import worth

    return worth(typed, typed.monitor, metrics)


def _finished(out: Path, composed: DictConfig, overrides: Sequence[str]) -> bool:
    """Whether a job of a sweep has its results already; RrecError where its directory is that of another job."""
    told = {"overrides": list(overrides), "config": sha256(OmegaConf.to_yaml(composed).encode()).hexdigest()}
    told |= {key: composed.get(key) for key in ("protocol", "monitor")}
    if not (out / JOB).exists():
        files.write_json(out / JOB, told)
        return False
    if files.read_json(out / JOB, "sweep") != told:
        raise RrecError(f"{out} holds a job with other settings; name another hydra.sweep.dir")
    return (out / "metrics.json").exists()


class Sweep(Callback):
    """Keeps what a sweep was asked where it writes, and where that is, so that it is reported however it ends."""

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.directory = Path(config.hydra.sweep.dir)
        Sweep.directory.mkdir(parents=True, exist_ok=True)
        asked = config.hydra.overrides
        told = {"verb": config.hydra.job.config_name, "overrides": [*asked.hydra, *asked.task]}
        files.write_json(Sweep.directory / SWEEP, told)


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
        group = key.strip()
        if group not in NESTED or (listed is None and "[" not in value):
            words.append(each)
            continue
        names = [name.strip() for name in listed[1].split(",")] if listed else []
        if not all(names) or not names:
            raise RrecError(
                f"cannot read '{each}': several are {group}=[first,…], each inside the one before; "
                f"a sweep over such lists is written -m {group}=a,b +{group}@{group}.inner=c"
            )
        places = [group, *(f"+{group}@{group}{'.inner' * depth}" for depth in range(1, len(names)))]
        words += [f"{place}={name}" for place, name in zip(places, names, strict=True)]
    return words


def _continuation(job: Job) -> str:
    if Sweep.directory is not None or job.out is None or not (job.out / "resume").is_dir():
        return ""
    return f"; `rrec {job.verb} resume={os.path.relpath(job.out)}` continues it"


def _again(directory: Path) -> str:
    return f"`rrec sweep resume {os.path.relpath(directory)}` does what is missing"


def _report(verb: str, directory: Path) -> int:
    """Show a sweep; the number of jobs that are not done. One that has not begun a job leaves nothing behind."""
    jobs = _jobs(verb, directory)
    if not jobs:
        _forget(directory)
        return 0
    from robustbench_rec.reports import sweep
    from robustbench_rec.reports.summary import Summary

    sweep.report(Summary(jobs, verb, *_watched(jobs, directory)), directory, Console())
    return sum(each.metrics is None for each in jobs)


def _forget(directory: Path) -> None:
    """Remove what Hydra wrote about a sweep before it found that no job can be composed."""
    for name in (SWEEP, "multirun.yaml"):
        (directory / name).unlink(missing_ok=True)
    made = [directory] if directory.is_absolute() else [directory, *directory.parents[:-1]]
    with suppress(OSError):  # not empty: something else is there
        for each in made:
            each.rmdir()


def _watched(jobs: Sequence["SweptJob"], directory: Path) -> tuple[str | None, frozenset[str]]:
    """The metric that the first finished job monitored or would have, and the metrics of which less is better."""
    from robustbench_rec.evaluation import PROTOCOLS

    for job in jobs:
        if job.metrics is not None:
            told = files.read_json(directory / job.name / JOB, "sweep")
            protocol = PROTOCOLS[told["protocol"]]
            return told["monitor"] or protocol.monitor, protocol.smaller
    return None, frozenset()


def _jobs(verb: str, directory: Path) -> list["SweptJob"]:
    """What the jobs of a sweep left behind, in the order of their numbers."""
    from robustbench_rec.reports.summary import Job as SweptJob

    found = []
    for stored in directory.glob(f"*/{JOB}"):
        run = stored.parent
        words = files.read_json(stored, "sweep")["overrides"]
        overrides = {key: value for key, _, value in (each.lstrip("+~").partition("=") for each in words)}
        metrics = files.read_json(run / "metrics.json", "sweep") if (run / "metrics.json").exists() else None
        error = None if metrics is not None else _why(run, verb)
        found.append(SweptJob(run.name, overrides, metrics, error))
    return sorted(found, key=lambda job: (int(job.name) if job.name.isdecimal() else math.inf, job.name))


def _overrides(path: Path) -> list[str]:
    """What Hydra stored; ValueError when a kill cut the file short."""
    stored = OmegaConf.load(path)
    if not isinstance(stored, ListConfig):
        raise ValueError(f"{path} holds no list")
    return [str(each) for each in stored]


def _why(run: Path, verb: str) -> str:
    """Why a job has no results."""
    try:
        with files.held(run / LOCK):
            return last_error(run / f"{verb}.log")
    except RrecError:
        return "it is running"


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
