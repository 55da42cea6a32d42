from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import Tracker


@trackers.register
class Nowhere(Tracker):
    """The run directory alone."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        pass

    def note(self, values: Mapping[str, float], step: int) -> None:
        pass

    def finish(self, metrics: Mapping[str, float] | None) -> None:
        pass
