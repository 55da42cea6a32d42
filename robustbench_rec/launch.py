"""The one place that knows both the command line and Hydra."""

import errno
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from robustbench_rec import composing, config, files, sweeping
from robustbench_rec.composing import mistakes, places
from robustbench_rec.composing.words import chosen, count, limits, texts
from robustbench_rec.console import line
from robustbench_rec.errors import RrecError, UsageError
from robustbench_rec.resuming import refuse_foreign
from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import tracked

log = logging.getLogger("rrec")
REFUSALS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG),
)
"""What the system says where a run cannot write."""


def launch(
    verb: str, overrides: Sequence[str], *, multirun: bool = False, cfg: str | None = None, place: Path = Path()
) -> int:
    """Run `robustbench_rec.tasks.<verb>.run` as a script under `@hydra.main` would; the exit status.

    A verb that answers a question does so without Hydra's run directory. place: what relative paths start from.
    0: done. 1: a job failed, or as its error says. 2: the overrides make no configuration. 130: interrupted. Every
    mistake of the person at the keyboard is one line on stderr; anything else keeps its traceback.
    """
    try:
        overrides = texts(verb, limits(overrides))
    except RrecError as error:
        _say(str(error))
        return 2
    if not cfg and _answers(verb, overrides):
        return _answer(verb, overrides, multirun)
    if multirun and cfg:
        _say("-m and --cfg: a sweep has no one configuration; leave one of them out")
        return 2
    job, Sweep.directory = Job(verb), None
    resumed = any(each.startswith("resume=") for each in overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra must not print and exit: the errors are told here
    status, stopped = 0, None
    try:
        if not (multirun or cfg):
            if named := places.place(overrides, "hydra.run.dir"):
                sweeping.refuse_sweep(named)
            places.refuse_used(verb, chosen(verb, overrides))
        with chdir(place):
            words = overrides = chosen(verb, places.with_resume(verb, overrides, multirun))
            if not cfg and (kept := places.place(words, "hydra.sweep.dir")):
                sweeping.refuse_other(kept, verb, words)
            composing.register_schemas()
            main = hydra.main(version_base="1.3", config_path=str(composing.conf_dir()), config_name=verb)(job)
            with _as_a_script(["rrec", *["--multirun"] * multirun, *(["--cfg", cfg] if cfg else []), *words]):
                main()
    except KeyboardInterrupt:
        status, stopped = 130, f"interrupted{_continuation(job)}"
    except (RrecError, HydraException, OmegaConfBaseException, AssertionError) as error:
        if isinstance(error, AssertionError) and job.out is not None:
            raise
        status, stopped = 2, mistakes.explain(error, verb, overrides)
    except Exception as error:
        if job.out is None and (refused := _refused(error)) is not None:
            where = refused.filename or "the directory of the run"
            status, stopped = 2, f"cannot write {where}: {refused.strerror}; name another place for the outputs"
        elif Sweep.directory is None or not any(each.error for each in sweeping.jobs_of(verb, Sweep.directory)):
            raise
        else:
            status, stopped = 1, f"the sweep stopped: {error}"  # the sweeper, after jobs had failed
    failed = job.failed
    if job.refused and job.out is not None and Sweep.directory is None and not resumed and _discard(job.out, verb):
        job.status = 2
    if Sweep.directory is not None:
        unfinished = sweeping.report(verb, Sweep.directory)
        failed = failed or bool(unfinished)
        if unfinished or (status == 130 and Sweep.directory.is_dir()):
            stopped = "; ".join([*([stopped] if stopped else []), _again(Sweep.directory)])
    if stopped:
        _say(stopped)
    elif job.out is not None and Sweep.directory is None and not failed:
        line(f"run directory: {os.path.relpath(job.out)}")
    return status or (job.status if failed else 0)


def data(action: str, overrides: Sequence[str]) -> int:
    """`rrec data <action>`: the composed dataset configuration goes to `tasks.data.<action>`; the exit status."""

    def task(typed: Any) -> None:
        found = import_module("robustbench_rec.tasks.data")
        found.ls(typed.data_dir) if action == "ls" else getattr(found, action)(typed)

    return _directly("data", overrides, task, f"data {action}")


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
        words = chosen(verb, overrides)
        with composing.session():
            typed = composing.typed(hydra.compose(verb, words), verb, said)
    except (RrecError, HydraException, OmegaConfBaseException, AssertionError) as error:
        _say(mistakes.explain(error, verb, overrides))
        return 2
    try:
        task(typed)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except RrecError as error:
        _say(str(error))
        return error.status
    except Exception as error:
        if (asked := _memory(error)) is None:
            raise
        _say(f"there is no memory{asked}; a smaller model or data set needs less")
        return 1
    return 0


def resume_sweep(directory: str, overrides: Sequence[str]) -> int:
    """`rrec sweep resume`: ask the same again in the same place; jobs that are done are not done again.

    What failed is tried again, what was killed goes on from its own resumable state, relative paths are those of where
    the sweep was started. overrides: of the launcher.
    """
    try:
        folder = Path(directory).expanduser()
        verb, words = sweeping.asked(folder)
        for each in overrides:
            if not each.startswith(("hydra/launcher=", "hydra.launcher.")):
                raise RrecError(f"a sweep goes on as it was: drop '{each}' (only hydra/launcher… may change)")
        if any(each.startswith("hydra/launcher=") for each in overrides):
            words = [each for each in words if not each.startswith(("hydra/launcher=", "hydra.launcher."))]
        refuse_foreign(words, f"{folder / sweeping.SWEEP}", sweeping.SWEPT)
        jobs, place = sweeping.jobs_of(verb, folder), sweeping.started_in(folder)
    except RrecError as error:
        _say(str(error))
        return 2
    done = sum(job.error is None for job in jobs)
    _say(
        f"nothing is missing, all {done} jobs are done; whether they are those of this version is looked at again"
        if sweeping.complete(folder, jobs)
        else f"jobs that are done: {done}; what is missing of `rrec {verb} -m` follows"
    )
    for job in jobs:
        if job.error is not None:
            _say(f"job {job.name}, again: {job.error}")
    if not place.is_dir():
        _say(f"it was started in {place}, which is gone: relative paths of the sweep are taken to be of this directory")
        place = Path()
    return launch(verb, [*words, *overrides], multirun=True, place=place)


def show_sweep(directory: str) -> int:
    """`rrec sweep show`: the table of what is finished so far, and its files anew."""
    folder = Path(directory).expanduser()
    try:
        verb, _ = sweeping.asked(folder)
        if not sweeping.jobs_of(verb, folder):
            raise RrecError(f"{folder} has no jobs yet")
        missing = sweeping.report(verb, folder)
    except RrecError as error:
        _say(str(error))
        return 2
    if missing:
        _say(_again(folder))
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
    refused: bool = False
    status: int = 1

    def __call__(self, composed: DictConfig) -> float | None:
        settings = HydraConfig.get()
        self.out = Path(settings.runtime.output_dir)
        swept = settings.mode == RunMode.MULTIRUN
        begun = False
        where = f"job {settings.job.num} ({' '.join(settings.overrides.task)}): " if swept else ""
        try:
            with files.held(self.out / files.LOCK):  # a worker may outlive the sweep that started it
                begun = True
                if not swept or not sweeping.finished(self.out, composed, settings.overrides.task):
                    return self._run(composed, self.out)
                metrics = files.read_json(self.out / "metrics.json", "sweep")
                return _worth(composing.typed(composed, self.verb), metrics)
        except (RrecError, OmegaConfBaseException) as error:
            log.error("%s%s", where, mistakes.explain(error, self.verb, settings.overrides.task))
            self.refused = begun  # else another process is at it
            if not swept:
                self.status = error.status if isinstance(error, RrecError) else UsageError.status
        except Exception as error:
            if (asked := _memory(error)) is None:
                log.exception("%s%s: %s", where, type(error).__name__, error)
            else:
                log.error("%sthere is no memory%s; a smaller model, batch or data set needs less", where, asked)
        self.failed = True
        return None

    def _run(self, composed: DictConfig, out: Path) -> float | None:
        typed = composing.typed(composed, self.verb)
        task = import_module(f"robustbench_rec.tasks.{self.verb}")
        with tracked(trackers.build(typed.tracker), out, self.verb, config.flat(typed)) as results:
            metrics: dict[str, float] = task.run(typed, out)
            files.write_json(out / "metrics.json", metrics)
            results(metrics)
        return _worth(typed, metrics)


def _refused(error: Exception) -> OSError | None:
    """That the system refused to write, perhaps as the handlers of the log told it; None for another error."""
    found = error.__cause__ if isinstance(error, ValueError) else error
    return found if isinstance(found, OSError) and found.errno in REFUSALS else None


def _memory(error: Exception) -> str | None:
    """How much memory was asked for in vain, as words if it is told; None for another error."""
    text = str(error)
    if not (isinstance(error, MemoryError) or re.search(r"can't allocate memory|out of memory", text)):
        return None
    told = re.search(r"allocate ([\d.]+) (bytes|.iB)", text)
    if told is None:
        return ""
    return (
        f" for {float(told[1]) / 2**30:,.1f} GiB at once" if told[2] == "bytes" else f" for {told[1]} {told[2]} at once"
    )


def _worth(typed: Any, metrics: Mapping[str, float]) -> float | None:
    """What a sweeper maximises."""
    if not (isinstance(typed, config.Fit) and isinstance(typed, config.Judge)):
        return None
    from robustbench_rec.evaluation import worth

    return worth(typed, typed.monitor, metrics)


class Sweep(Callback):
    """Keeps what a sweep was asked where it writes, and where that is, so that it is reported however it ends."""

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:  # the first job tells it
            return
        Sweep.directory = directory
        asked = config.hydra.overrides
        told = {"verb": config.hydra.job.config_name, "overrides": [*asked.hydra, *asked.task], "cwd": os.getcwd()}
        if config.hydra.sweeper._target_.endswith(".BasicSweeper"):  # others find their jobs as they go
            params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
            told["jobs"] = count([*params, *asked.task])
        files.write_json(Sweep.directory / sweeping.SWEEP, told)


def _discard(out: Path, verb: str) -> bool:
    """Remove the run directory of a run that was refused before it began; whether that was so."""
    if not {each.name for each in out.iterdir()} <= {".hydra", f"{verb}.log", files.LOCK}:
        return False
    shutil.rmtree(out / ".hydra", ignore_errors=True)
    for each in out.iterdir():
        each.unlink()
    files.remove_empty(out)
    return True


def _continuation(job: Job) -> str:
    if Sweep.directory is not None or job.out is None or not (job.out / "resume").is_dir():
        return ""
    return f"; `rrec {job.verb} resume={os.path.relpath(job.out)}` continues it"


def _again(directory: Path) -> str:
    return f"`rrec sweep resume {os.path.relpath(directory)}` does what is missing"


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


def _say(text: str) -> None:
    line(f"rrec: {text}", stderr=True)
