"""Plain sequences: ids only, in the order of time."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._lines import read_lines
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.raw import Raw, Source
from robustbench_rec.sheet import decode, locate


@datasets.register
class Sequence(Source):
    """One user a line, `user item item …`, oldest first (S3-Rec, P5); or one event a line, `user item` (SASRec).

    layout: users or pairs. There are no times, so order in the file is order in time. repeats: items can come back, and
    such events are kept; where they are held out, a ranking leaves them out unless seen=true. Of the items, null where
    there is none: texts, a file with `item word word …` a line (IDGenRec), the column `text`; attributes, a JSON object
    `{"item": [attribute, …]}` (S3-Rec), the column `attributes`, one text with spaces between them.
    """

    @dataclass
    class Config:
        path: str
        layout: str
        encoding: str
        repeats: bool
        texts: str | None
        attributes: str | None

    config: Config

    def files(self, root: Path) -> list[Path]:
        c = self.config
        return [locate(path) for path in (c.path, c.texts, c.attributes) if path is not None]

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
        return Raw(events=lines.events(), items=self._items(), ordered=True, repeats=c.repeats)

    def _items(self) -> pd.DataFrame | None:
        c = self.config
        tables = []
        if c.texts is not None:
            tables.append(_texts(locate(c.texts), c.encoding))
        if c.attributes is not None:
            tables.append(_attributes(locate(c.attributes), c.encoding))
        if len(tables) == 2:  # an item that is in one file only has no value for the other
            return tables[0].merge(tables[1], on="item", how="outer", sort=False)
        return tables[0] if tables else None


def _texts(path: Path, encoding: str) -> pd.DataFrame:
    lines = pd.Series(decode(path, encoding).split("\n"), dtype="str").str.strip()
    cells = lines[lines != ""].str.split(n=1, expand=True)
    if not len(cells):
        raise RrecError(f"{path} is empty")
    cells = cells.reindex(columns=range(2)).fillna("")  # an item alone on its line has no text
    return cells.set_axis(["item", "text"], axis=1).astype("str").reset_index(drop=True)


def _attributes(path: Path, encoding: str) -> pd.DataFrame:
    try:
        content = json.loads(decode(path, encoding))
    except (ValueError, RecursionError) as error:
        raise RrecError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(each, list) for each in content.values()):
        raise RrecError(f'{path} must hold one object, {{"item": [attribute, …], …}}')
    table = (
        pd.Series(content, dtype="object").explode().dropna().astype("str").groupby(level=0, sort=False).agg(" ".join)
    )
    return pd.DataFrame({"item": table.index, "attributes": table.to_numpy()}, dtype="str")
