"""The run directory's own record, `run.json`."""

import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from robustbench_rec.files import write_json

PACKAGES = ("robustbench_rec", "torch", "numpy", "pandas", "hydra-core")


class Run:
    """Context of a running task: `run.json` says running, then done or failed, with what it took.

    What an earlier run left in `metrics.json` goes first: the directory has no results until there are new ones.
    `note` adds to the record, for example the data's fingerprint.
    """

    def __init__(
        self, out: Path, task: str, *, seeds: Mapping[str, int | None], device: torch.device, **notes: Any
    ) -> None:
        self.out = out
        self.record: dict[str, Any] = {
            "task": task,
            "status": "running",
            "seeds": dict(seeds),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": versions(),
            **notes,
        }

    def __enter__(self) -> "Run":
        (self.out / "metrics.json").unlink(missing_ok=True)
        self.clock = time.perf_counter()
        self.record["start"] = _now()
        self.write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.record["status"] = "done" if error is None else "failed"
        if error is not None:
            self.record["error"] = f"{type(error).__name__}: {error}"
        self.record["end"] = _now()
        self.record["seconds"] = round(time.perf_counter() - self.clock, 3)
        self.record["peak_memory_mib"] = _peak_memory()
        self.write()

    def write(self) -> None:
        """Put the record on disk."""
        write_json(self.out / "run.json", self.record)


def versions() -> dict[str, str]:
    """Of the packages that the numbers depend on."""
    return {name: version(name) for name in PACKAGES}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory() -> float | None:
    """Largest resident set of this process so far, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
