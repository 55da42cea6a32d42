"""What a report is made of, before it is a page, a folder of tables or a paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from robustbench_rec.significance import Spread


@dataclass(frozen=True)
class Cell:
    """A value of a table. mark: a word beside it ("best", "≈ best"). share: shown in per cent."""

    value: str | float | int | Spread | None
    mark: str = ""
    share: bool = False

    @property
    def number(self) -> float | None:
        """What it is sorted by; None for text and where there is none."""
        value = self.value.mean if isinstance(self.value, Spread) else self.value
        return float(value) if isinstance(value, (int, float)) and value == value else None

    @property
    def text(self) -> str:
        """As people read it: mean ± standard deviation over seeds, a dash where there is nothing."""
        value = self.value
        if isinstance(value, Spread):
            spread = f" ± {self._written(value.std)}" if value.n > 1 else ""
            return f"{self._written(value.mean)}{spread}"
        if isinstance(value, float):
            return self._written(value)
        return "–" if value is None else str(value)

    def _written(self, value: float) -> str:
        if value != value:
            return "–"
        return f"{100 * value:.1f} %" if self.share else f"{value + 0.0:.4f}"


@dataclass(frozen=True)
class Table:
    """name: of its file. title: above it. rows: of cells. folded: shown when it is asked for. choices: columns
    with few values, to choose from.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False
    choices: Sequence[str] = ()
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Figure:
    """name: of its file. draw: makes it with matplotlib."""

    name: str
    title: str
    draw: Callable[[], Any]
    note: str = ""
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    text: str
    blocks: Sequence[Table | Figure]


@dataclass(frozen=True)
class Page:
    """summary: sentences, under the heading `lead`. sections: those that have something to show."""

    title: str
    subtitle: str
    summary: Sequence[str]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=tuple)
    lead: str = "Summary"

    @property
    def tables(self) -> list[Table]:
        """All of them, in order."""
        return [each for section in self.sections for each in section.blocks if isinstance(each, Table)]

    @property
    def figures(self) -> list[Figure]:
        """All of them, in order."""
        return [each for section in self.sections for each in section.blocks if isinstance(each, Figure)]


@dataclass(frozen=True)
class Listed:
    """The first items of a user's list before and after an attack, each with whether the user chose it.

    why: the user was taken. place: among those that were. history: some of what is known of the user.
    """

    name: str
    why: str
    place: int
    history: Sequence[str]
    before: Sequence[tuple[str, bool]]
    after: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Before:
    """Lists of some users before and after one attack. label: of the model and the attack."""

    label: str
    users: Sequence[Listed]
