"""How far a long loop is: a bar with rate and ETA on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustbench_rec.console import Output

T = TypeVar("T")
REDRAW = 0.1
"""Seconds between updates: counting must not cost what it counts."""
SPEAK = 2.0
"""Seconds between plain lines about rounds."""
ALIVE = 30.0
"""Seconds without a plain line after which one tells how far the round is."""


class Bar:
    """Progress over `total` rounds of `steps` steps each.

    On a terminal one bar shows rounds, steps a second, the latest note and the time left; otherwise the note of a round
    is printed as a line, at most one every two seconds, and always the last; a long round tells where it is.
    """

    def __init__(self, title: str, *, total: int, steps: int, console: Console | None = None) -> None:
        self.console = console or Output(stderr=True)
        self.title, self.total, self.steps = title, total, steps
        self.live = self.console.is_terminal
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task(title, total=total, rate="", note="")
        self.spoken, self.unsaid, self.begun = 0.0, "", time.perf_counter()

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.stop()
        if self.unsaid:
            self.console.print(self.unsaid, highlight=False, markup=False, soft_wrap=True)

    def each(self, round_: int, steps: Iterable[T]) -> Iterator[T]:
        """Count the steps of a round, counted from 0."""
        start = drawn = time.perf_counter()
        for done, step in enumerate(steps):
            yield step
            now = time.perf_counter()
            rate = (done + 1) / (now - start)
            if self.live and now - drawn > REDRAW:
                drawn = now
                self.bar.update(
                    self.task, completed=round_ + (done + 1) / max(self.steps, 1), rate=f"{rate:.0f} steps/s"
                )
            elif not self.live and now - max(self.spoken, self.begun) > ALIVE:
                self.spoken = now
                line = f"{self.title} {round_ + 1}/{self.total}  step {done + 1}/{self.steps}, {rate:.2g} a second"
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def note(self, round_: int, text: str) -> None:
        """A round is over."""
        self.bar.update(self.task, completed=round_ + 1, note=text)
        if self.live:
            return
        line = f"{self.title} {round_ + 1}/{self.total}  {text}"
        now = time.perf_counter()
        if now - self.spoken > SPEAK:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self.spoken, self.unsaid = now, ""
        else:
            self.unsaid = line
