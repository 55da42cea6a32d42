"""Tables for people."""

import os
import sys
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

Row = Sequence[str | float | int]


class _Output(Console):
    """Standard output, whose reader may have gone (`| head`): what is not read then is no reason to stop."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print a table on standard output: names to the left, numbers to the right.

    Where it is wider than the terminal, columns of several words are broken; no single word or number is cut.
    """
    cells = [[number(each) if isinstance(each, float) else str(each) for each in row] for row in rows]
    table = Table(header_style="bold")
    least = 1  # the frame
    for index, column in enumerate(columns):
        whole = not any(" " in row[index] for row in cells)
        table.add_column(escape(column), justify="left" if index == 0 else "right", no_wrap=whole)
        least += 3 + max(cell_len(word) for row in (columns, *cells) for word in (row[index].split() or [""]))
    for row in cells:
        table.add_row(*map(escape, row))
    out = _Output()
    out.width = max(out.width, least)
    out.print(title, style="bold", markup=False, highlight=False)  # the title of a rich table is broken at its width
    out.print(table)


def line(text: str) -> None:
    """Print a line on standard output as it is."""
    _Output().print(text, markup=False, highlight=False, soft_wrap=True)


def number(value: float) -> str:
    """Four decimals; a dash where there is no number."""
    return "–" if value != value else f"{value:.4f}"


def by_metric(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    """A row for each metric, a column for each set of metrics."""
    names = list(next(iter(columns.values())))
    show(title, ["metric", *columns], [[name, *(each[name] for each in columns.values())] for name in names])
