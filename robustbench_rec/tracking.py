"""What a run tells while it goes on, to whoever keeps track of it; nothing here is called inside a training step."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from robustbench_rec.errors import RrecError

log = logging.getLogger("rrec")


class Tracker(ABC):
    """Keeps the settings, the epochs and the results of runs somewhere else than in the run directory."""

    @abstractmethod
    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        """A run begins; RrecError where it cannot be kept track of. settings: by dotted key."""

    @abstractmethod
    def note(self, values: Mapping[str, float], step: int) -> None:
        """An epoch is over. values: finite ones."""

    @abstractmethod
    def finish(self, metrics: Mapping[str, float] | None) -> None:
        """The run is over. metrics: finite ones, None where it failed."""


class _Current:
    """The tracker of the running task; once it fails it is left alone, the run goes on."""

    def __init__(self, tracker: Tracker, out: Path) -> None:
        self.tracker, self.out, self.broken = tracker, out, False

    def call(self, function: Callable[..., None], *args: Any) -> None:
        if self.broken:
            return
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 (a server that is away must not cost a run of hours)
            self.broken = True
            log.warning("the tracker failed and is not told any more: %s: %s", type(error).__name__, error)


_current: ContextVar[_Current | None] = ContextVar("tracker", default=None)


@contextmanager
def tracked(
    tracker: Tracker, out: Path, verb: str, settings: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Tell a tracker about what runs inside; what this yields takes the results."""
    tracker.start(out, verb, settings)
    current = _Current(tracker, out)
    token, results = _current.set(current), []

    def keep(metrics: Mapping[str, float]) -> None:
        results.append(_finite(metrics))

    try:
        yield keep
    finally:
        _current.reset(token)
        current.call(tracker.finish, results[-1] if results else None)


def epoch(out: Path, row: Mapping[str, float]) -> None:
    """Tell the tracker, if there is one, of an epoch. out: of the trainer, a folder each where there are several."""
    current = _current.get()
    if current is not None:
        prefix = "" if out == current.out else f"{out.name}/"
        values = {f"{prefix}{name}": value for name, value in _finite(row).items() if name != "epoch"}
        current.call(current.tracker.note, values, int(row["epoch"]))


def package(name: str, tracker: str) -> Any:
    """A package that a tracker needs; RrecError says how to get it."""
    try:
        return import_module(name)
    except ImportError:
        raise RrecError(
            f"tracker={tracker} needs the package {name.partition('.')[0]}: pip install 'robustbench_rec[trackers]'"
        ) from None


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(each) for name, each in values.items() if each - each == 0}
