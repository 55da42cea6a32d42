"""Plain sequences: ids only, in the order of time."""

from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._lines import read_lines
from robustbench_rec.datasets._sheet import locate
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.raw import Raw, Source


@datasets.register
class Sequence(Source):
    """One user a line, `user item item …`, oldest first (S3-Rec, P5); or one event a line, `user item` (SASRec).

    layout: users or pairs. There are no times, so order in the file is order in time. repeats: items can come back, and
    such events are kept; a ranking that masks training items can then never find them, so set it false for plain
    collaborative filtering.
    """

    @dataclass
    class Config:
        path: str
        layout: str
        encoding: str
        repeats: bool

    config: Config

    def files(self, root: Path) -> list[Path]:
        return [locate(self.config.path)]

    def load(self, root: Path) -> Raw:
        c = self.config
        if c.layout not in ("users", "pairs"):
            raise unknown("sequence layout", c.layout, ["users", "pairs"])
        lines = read_lines(locate(c.path), c.encoding)
        lengths = lines.lengths
        wrong = lengths != 2 if c.layout == "pairs" else lengths < 2
        if wrong.any():
            line, words = lines.numbers[wrong.argmax()], lengths[wrong.argmax()]
            needed = "exactly two, a user and an item" if c.layout == "pairs" else "a user and at least one item"
            raise RrecError(f"{lines.path}, line {line} has {words} words; layout={c.layout} needs {needed}")
        return Raw(events=lines.events(), ordered=True, repeats=c.repeats)
