"""Tables for people."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

Row = Sequence[str | float | int]


def show(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print a table on standard output: names to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(number(each) if isinstance(each, float) else str(each) for each in row))
    Console().print(table)


def number(value: float) -> str:
    """Four decimals; a dash where there is no number."""
    return "–" if value != value else f"{value:.4f}"


def by_metric(title: str, columns: Mapping[str, Mapping[str, float]]) -> None:
    """A row for each metric, a column for each set of metrics."""
    names = list(next(iter(columns.values())))
    show(title, ["metric", *columns], [[name, *(each[name] for each in columns.values())] for name in names])
