"""RecBole's atomic files: tab-separated tables whose header names a type for each column, `user_id:token`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Raw
from robustbench_rec.sheet import Sheet, read_text, refuse_twins

TYPES = ("token", "token_seq", "float", "float_seq")
SIDES = ("item", "user", "kg", "link")


@dataclass(frozen=True, kw_only=True)
class AtomicFolder:
    """The atomic files of one dataset.

    parts: which part of the split each interaction file is, `{"": None}` for the one file `<stem>.inter`, or
    `{"infix": "train", …}` for `<stem>.<infix>.inter`. user, item, rating, time: columns of the interaction files, as
    are those of context, whose values are read as text, an empty one too.
    """

    folder: Path
    stem: str
    parts: Mapping[str, str | None]
    user: str
    item: str
    rating: str | None
    time: str | None
    scale: tuple[float, float] | None
    context: Sequence[str] = ()

    def files(self) -> list[Path]:
        """The interaction files, and those side files that are there."""
        sides = [self.folder / f"{self.stem}.{suffix}" for suffix in SIDES]
        return [self._inter(infix) for infix in self.parts] + [path for path in sides if path.is_file()]

    def load(self) -> Raw:
        """Read all of them; features declared `float` become numbers, `token_seq` stays one text with spaces."""
        events = [self._events(infix, part) for infix, part in self.parts.items()]
        items, users, kg, links = (self._side(suffix) for suffix in SIDES)
        if links is not None and kg is None:
            raise RrecError(f"{links.path} ties items to a knowledge graph, but there is no {self.stem}.kg")
        return Raw(
            events=pd.concat(events, ignore_index=True),
            items=None if items is None else items.features(self.item, "item"),
            users=None if users is None else users.features(self.user, "user"),
            kg=None if kg is None else _leading(kg, ["head", "relation", "tail"]),
            links=None if links is None else _leading(links, ["item", "entity"]),
            scale=self.scale,
            context=tuple(self.context),
        )

    def _inter(self, infix: str) -> Path:
        return self.folder / (f"{self.stem}.{infix}.inter" if infix else f"{self.stem}.inter")

    def _events(self, infix: str, part: str | None) -> pd.DataFrame:
        sheet = read_atomic(self._inter(infix))
        events = sheet.columns({"user": self.user, "item": self.item})
        if self.rating is not None:
            events["rating"] = sheet.ratings(self.rating)
        if self.time is not None:
            events["time"] = sheet.times(self.time, "seconds")
        for name in self.context:
            if name in (*events.columns, "row", "part"):
                raise RrecError(f"dataset.context cannot have the column '{name}': the name is taken")
            events[name] = sheet.pick(name).astype("str").fillna("")
        return events if part is None else events.assign(part=part)

    def _side(self, suffix: str) -> Sheet | None:
        path = self.folder / f"{self.stem}.{suffix}"
        return read_atomic(path) if path.is_file() else None


def read_atomic(path: Path) -> Sheet:
    """One atomic file: columns without their types, those declared `float` as numbers (NaN where empty)."""
    sheet = read_text(path, "\t", None, True, "utf-8")
    names, kinds = [], []
    for column in sheet.frame.columns:
        name, _, kind = column.rpartition(":")
        if not name or kind not in TYPES:
            raise RrecError(f"{path}, line 1: column '{column}' needs a name and a type, name:{'|'.join(TYPES)}")
        names.append(name)
        kinds.append(kind)
    refuse_twins(path, names)
    numeric = frozenset(name for name, kind in zip(names, kinds, strict=True) if kind == "float")
    return Sheet(path, sheet.frame.set_axis(names, axis=1), 1, numeric)


def _leading(sheet: Sheet, names: list[str]) -> pd.DataFrame:
    if sheet.frame.shape[1] < len(names):
        raise RrecError(f"{sheet.path} needs {len(names)} columns ({', '.join(names)}), it has {sheet.frame.shape[1]}")
    return sheet.columns(dict(zip(names, sheet.frame.columns, strict=False)))
