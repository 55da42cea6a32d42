"""Events with their circumstances, in the sparse format of libFM."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._lines import read_lines, refuse_words
from robustbench_rec.errors import RrecError
from robustbench_rec.raw import PARTS, Raw, Source
from robustbench_rec.sheet import locate

TAKEN = {"part", "rating", "row", "time"}
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


@datasets.register
class LibFM(Source):
    """Lines of `label feature:1 feature:1 …`, one feature for each of the `fields`, in their order.

    path: the training file, or the only one. valid, test: the files of the other parts, for split=presplit. fields:
    names, `user` and `item` among them; the others are the context of the event. Labels 1 and -1, or 1 and 0, become
    clicks, 1 and 0; other labels are ratings. A pair may come back in another context.
    """

    @dataclass
    class Config:
        path: str
        valid: str | None
        test: str | None
        fields: list[str]
        encoding: str

    config: Config

    def files(self, root: Path) -> list[Path]:
        return list(self._parts().values())

    def load(self, root: Path) -> Raw:
        fields = self.config.fields
        if len(set(fields)) < len(fields) or not {"user", "item"} <= set(fields) or TAKEN & set(fields):
            taken = ", ".join(sorted(TAKEN))
            raise RrecError(
                f"dataset.fields={fields}: different names are needed, user and item among them, none of {taken}"
            )
        parts = self._parts()
        read = [self._read(path).assign(part=part) for part, path in parts.items()]
        events = pd.concat(read, ignore_index=True)
        if set(events["rating"].unique()) <= {-1.0, 1.0}:
            events["rating"] = events["rating"].clip(lower=0.0)
        if len(parts) == 1:
            events = events.drop(columns="part")
        return Raw(events, context=tuple(each for each in fields if each not in ("user", "item")), repeats=True)

    def _parts(self) -> dict[str, Path]:
        c = self.config
        if c.valid is not None and c.test is None:
            raise RrecError("dataset.valid names a file and dataset.test none: data that comes split needs a test part")
        named = zip(PARTS, (c.path, c.valid, c.test), strict=True)
        return {part: locate(path) for part, path in named if path is not None}

    def _read(self, path: Path) -> pd.DataFrame:
        fields, lines = self.config.fields, read_lines(path, self.config.encoding)
        short = np.flatnonzero(lines.lengths != 1 + len(fields))
        if len(short):
            raise RrecError(
                f"{path}, line {lines.numbers[short[0]]} has {lines.lengths[short[0]] - 1} features, dataset.fields "
                f"names {len(fields)}: {', '.join(fields)}"
            )
        first = np.arange(len(lines.words)) % (1 + len(fields)) == 0
        labels, features = (replace(lines, words=lines.words[each], rows=lines.rows[each]) for each in (first, ~first))
        refuse_words(labels, NUMBER, "is no label, which is a number")
        refuse_words(features, r".+:1(\.0*)?", "is not feature:1")
        ids = features.words.str.rpartition(":")[0].to_numpy().reshape(-1, len(fields))
        frame = pd.DataFrame(dict(zip(fields, ids.T, strict=True)), dtype="str")
        return frame.assign(rating=labels.words.to_numpy(dtype="float64"))
