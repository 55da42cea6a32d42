"""Tables of the user's own: CSV, TSV, any other delimiter, Parquet."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._options import scale_of
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.raw import Raw, Source, one_to_one
from robustbench_rec.sheet import File, Sheet, locate, read

log = logging.getLogger(__name__)


@dataclass
class Features(File):
    """Side information of items or users. id: the column of ids. numbers: columns that hold numbers, not text."""

    id: str
    numbers: list[str]


@dataclass
class Items(Features):
    """Those of items. title: the column that names them, null for `title`, or one that ends so."""

    title: str | None = None  # checkpoints of before do not have it


@dataclass
class Triples(File):
    """A knowledge graph, a triple a row."""

    head: str
    relation: str
    tail: str


@dataclass
class Links(File):
    """Which entity of the knowledge graph each item is; without it, items and entities share their ids."""

    item: str
    entity: str


@datasets.register
class Table(Source):
    """Interactions in a CSV, TSV or Parquet file, with optional tables of items, users, KG triples and KG links.

    rating, time: null where the file has none. time_format: seconds, milliseconds, iso, or a pattern like %d/%m/%Y.
    scale: smallest and largest rating, null for no check. repeats: true where the same pair may well come back.
    linked_only: keep only the events of items that are in a triple of the knowledge graph, as KGCN prepares its data.
    Side tables are there when they have a path, and each has a layout of its own.
    """

    @dataclass
    class Config(File):
        user: str
        item: str
        rating: str | None
        time: str | None
        time_format: str
        scale: list[float] | None
        repeats: bool
        linked_only: bool
        items: Items
        users: Features
        kg: Triples
        links: Links

    config: Config

    def files(self, root: Path) -> list[Path]:
        c = self.config
        if c.path is None:
            raise RrecError("dataset=table needs dataset.path=<file>")
        return [locate(each.path) for each in (c, c.items, c.users, c.kg, c.links) if each.path is not None]

    def load(self, root: Path) -> Raw:
        c = self.config
        kg, links = _sheet(c.kg), _sheet(c.links)
        _named(kg, {"kg.head": c.kg.head, "kg.relation": c.kg.relation, "kg.tail": c.kg.tail})
        _named(links, {"links.item": c.links.item, "links.entity": c.links.entity})
        if links is not None and kg is None:
            raise RrecError("dataset.links ties items to a knowledge graph: it needs dataset.kg.path")
        raw = Raw(
            events=self._events(),
            items=_titled(_features(c.items, "item"), c.items.title),
            users=_features(c.users, "user"),
            kg=None if kg is None else kg.columns({"head": c.kg.head, "relation": c.kg.relation, "tail": c.kg.tail}),
            links=None if links is None else links.columns({"item": c.links.item, "entity": c.links.entity}),
            scale=scale_of(c.scale),
            repeats=c.repeats,
        )
        return _linked(raw) if c.linked_only else raw

    def _events(self) -> pd.DataFrame:
        c = self.config
        sheet = read(c, locate(str(c.path)))
        _named(sheet, {"user": c.user, "item": c.item, "rating": c.rating, "time": c.time})
        events = sheet.columns({"user": c.user, "item": c.item})
        if c.rating is not None:
            events["rating"] = sheet.ratings(c.rating)
        if c.time is not None:
            events["time"] = sheet.times(c.time, c.time_format)
        return events


def _linked(raw: Raw) -> Raw:
    """Without the events of items that no triple names; of ambiguous links the first counts."""
    if raw.kg is None:
        raise RrecError("dataset.linked_only goes by the knowledge graph: it needs dataset.kg.path")
    known = pd.Index(raw.kg["head"]).union(pd.Index(raw.kg["tail"]))
    if raw.links is not None:
        links = raw.links[raw.links["item"].isin(raw.events["item"])]
        links = links[one_to_one(links)]
        known = pd.Index(links["item"][links["entity"].isin(known)])
    kept = raw.events["item"].isin(known).to_numpy()
    if not kept.any():
        raise RrecError("dataset.linked_only leaves no event: no item is in the knowledge graph; are the ids the same?")
    log.info("linked_only: %s of %s events are left", f"{kept.sum():,}", f"{len(kept):,}")
    return replace(raw, events=raw.events[kept].reset_index(drop=True))


def _sheet(file: File) -> Sheet | None:
    return None if file.path is None else read(file, locate(file.path))


def _titled(table: pd.DataFrame | None, title: str | None) -> pd.DataFrame | None:
    """With the column that names items under the name by which others find it."""
    if table is None or title is None:
        return table
    if title not in table.columns:
        raise RrecError(f"dataset.items.title: {unknown('column', title, table.columns)}")
    if title != "title" and "title" in table.columns:
        raise RrecError(f"dataset.items.title={title}: there is a column 'title' beside; rename one of them")
    return table.rename(columns={title: "title"})


def _features(file: Features, name: str) -> pd.DataFrame | None:
    sheet = _sheet(file)
    _named(sheet, {f"{name}s.id": file.id})
    return None if sheet is None else replace(sheet, numeric=frozenset(file.numbers)).features(file.id, name)


def _named(sheet: Sheet | None, columns: Mapping[str, str | None]) -> None:
    """RrecError, with the key that names it, where a sheet lacks a column. columns: names by keys of the dataset."""
    for key, name in columns.items():
        if sheet is None or name is None:
            continue
        try:
            sheet.pick(name)
        except RrecError as error:
            without = ", null where there is none" if key in ("rating", "time") else ""
            raise RrecError(f"{error}; dataset.{key} names it{without}") from error
