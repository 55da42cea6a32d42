"""Adjacency lists with the split already made, the format of LightGCN and KGAT."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._lines import read_lines, refuse_words
from robustbench_rec.datasets._options import folder_of
from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Array, Raw, Source
from robustbench_rec.sheet import decode


@datasets.register
class Adjacency(Source):
    """A folder with train.txt and test.txt, `user item item …` a line, as LightGCN and KGAT read it.

    valid.txt is read where there is one; else split=presplit takes a share of train. Optional too: `item_list.txt` and
    `user_list.txt` (`org_id remap_id …`, giving back the original ids; further columns become features), and for a
    knowledge graph `kg_final.txt` (`head relation tail`, entities 0 … n_items-1 are the items), `entity_list.txt`,
    `relation_list.txt`. item_list, user_list: another name for these files, null for the usual one, if it is there.
    """

    @dataclass
    class Config:
        path: str
        item_list: str | None
        user_list: str | None

    config: Config

    def files(self, root: Path) -> list[Path]:
        lists = [
            _optional(self._folder / f"{stem}.txt") for stem in ("valid", "kg_final", "entity_list", "relation_list")
        ]
        found = [self._folder / "train.txt", self._folder / "test.txt", self._list("item"), self._list("user"), *lists]
        return [path for path in found if path is not None]

    def load(self, root: Path) -> Raw:
        folder = self._folder
        parts = {"train": folder / "train.txt", "valid": _optional(folder / "valid.txt"), "test": folder / "test.txt"}
        read = [_read_numbers(path).assign(part=part) for part, path in parts.items() if path is not None]
        events = pd.concat(read, ignore_index=True)
        n_users, n_items = int(events["user"].max()) + 1, int(events["item"].max()) + 1
        users, items = _Ids.read(self._list("user"), n_users), _Ids.read(self._list("item"), n_items)
        kg, links = self._kg(items)
        return Raw(
            events=events.assign(user=users.restore(events["user"]), item=items.restore(events["item"])),
            items=items.features("item"),
            users=users.features("user"),
            kg=kg,
            links=links,
        )

    def _kg(self, items: "_Ids") -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        path = self._folder / "kg_final.txt"
        if not path.is_file():
            return None, None
        lines = read_lines(path, "utf-8")
        refuse_words(lines, r"\d{1,18}", "is not a number; a line is `head relation tail`")
        wrong = lines.lengths != 3
        if wrong.any():
            line = lines.numbers[wrong.argmax()]
            raise RrecError(
                f"{path}, line {line} has {lines.lengths[wrong.argmax()]} numbers, `head relation tail` are three"
            )
        triples = lines.words.astype("int64").to_numpy().reshape(-1, 3)
        n_entities = max(int(triples[:, [0, 2]].max()) + 1, items.count)
        entities = _Ids.read(_optional(self._folder / "entity_list.txt"), n_entities)
        relations = _Ids.read(_optional(self._folder / "relation_list.txt"), int(triples[:, 1].max()) + 1)
        head, relation, tail = triples.T
        kg = {"head": entities.restore(head), "relation": relations.restore(relation), "tail": entities.restore(tail)}
        known = np.unique(triples[:, [0, 2]])
        linked = known[known < items.count]
        return pd.DataFrame(kg), pd.DataFrame({"item": items.restore(linked), "entity": entities.restore(linked)})

    @property
    def _folder(self) -> Path:
        return folder_of(self.config.path)

    def _list(self, kind: str) -> Path | None:
        name = self.config.item_list if kind == "item" else self.config.user_list
        return _optional(self._folder / f"{kind}_list.txt") if name is None else self._folder / name


@dataclass(frozen=True)
class _Ids:
    """Original ids of the numbers from 0 to count-1.

    names: row i is that of number i; None where the numbers name themselves. extra: what else the list says of them.
    """

    path: Path | None
    count: int
    names: pd.Series | None
    extra: pd.DataFrame

    @classmethod
    def read(cls, path: Path | None, count: int) -> "_Ids":
        """The list in `path`, which must name `count` numbers or more; without one, the numbers name themselves."""
        if path is None:
            return cls(None, count, None, pd.DataFrame())
        lines = pc.utf8_trim_whitespace(pa.array(decode(path, "utf-8").split("\n"), type=pa.large_string()))
        filled = pc.greater(pc.binary_length(lines), 0)
        numbers = np.flatnonzero(filled.to_numpy(zero_copy_only=False)) + 1
        lines = lines.filter(filled)
        if not len(lines):
            raise RrecError(f"{path} is empty")
        first = lines[0].as_py().split()
        header = first if "remap_id" in first else ["org_id", "remap_id"]
        skip = int(header is first)
        if header[0] != "org_id":
            raise RrecError(f"{path}, line 1: the header must start with org_id, it is '{' '.join(first)}'")
        # An original id may be a text with spaces, the columns after it may not.
        cells = pc.utf8_split_whitespace(lines[skip:], max_splits=len(header) - 1, reverse=True)
        short = pc.list_value_length(cells).to_numpy() != len(header)
        if short.any():
            line = numbers[skip + short.argmax()]
            raise RrecError(f"{path}, line {line} has too few columns; expected {' '.join(header)}")
        frame = pd.DataFrame(
            pc.list_flatten(cells).to_numpy(zero_copy_only=False).reshape(-1, len(header)), columns=header, dtype="str"
        )
        index = pd.to_numeric(frame["remap_id"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        order = np.argsort(index)
        if len(index) < count or not np.array_equal(index[order], np.arange(len(index))):
            raise RrecError(f"{path} must give each number from 0 to {max(count, len(index)) - 1} one id")
        frame = frame.iloc[order].reset_index(drop=True)
        twin = frame["org_id"].duplicated()
        if twin.any():
            raise RrecError(
                f"{path} gives the id '{frame['org_id'].iloc[int(twin.to_numpy().argmax())]}' to two numbers"
            )
        return cls(path, len(frame), frame["org_id"], frame.drop(columns=["org_id", "remap_id"]))

    def restore(self, numbers: pd.Series | Array) -> pd.Series:
        if self.names is None:
            return pd.Series(np.asarray(numbers)).astype("str")
        return self.names.take(np.asarray(numbers)).reset_index(drop=True)

    def features(self, name: str) -> pd.DataFrame | None:
        if self.names is None or self.extra.empty:
            return None
        return pd.concat([self.names.rename(name), self.extra], axis=1)


def _read_numbers(path: Path) -> pd.DataFrame:
    lines = read_lines(path, "utf-8")
    refuse_words(lines, r"\d{1,18}", "is not a number; a line is `user item item …`, counted from 0")
    return lines.events().astype("int64")


def _optional(path: Path) -> Path | None:
    return path if path.is_file() else None
