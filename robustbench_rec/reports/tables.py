"""Tables for people."""

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from robustbench_rec.console import Output

Row = Sequence[str | float | int]


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
    out = Output()
    out.width = max(out.width, least)
    out.print(title, style="bold", markup=False, highlight=False)  # the title of a rich table is broken at its width
    out.print(table)


def number(value: float) -> str:
    """Four decimals, none of a count; a dash where there is no number."""
    if value != value:
        return "–"
    return f"{value:.0f}" if value.is_integer() and abs(value) > 1 else f"{value:.4f}"


def by_metric(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    """A row for each metric, a column for each set of metrics."""
    names = list(next(iter(columns.values())))
    show(title, ["metric", *columns], [[name, *(each[name] for each in columns.values())] for name in names])
