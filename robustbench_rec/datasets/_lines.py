"""Lines of `user item item …`, read without a Python loop."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Array
from robustbench_rec.sheet import decode


@dataclass(frozen=True)
class Lines:
    """Whitespace-separated words, row by row.

    words: text `[W]`. rows: which row each word is in, int64 `[W]`. numbers: line number of each row, from 1 `[R]`.
    """

    path: Path
    words: pd.Series
    rows: Array
    numbers: Array

    @property
    def lengths(self) -> Array:
        """Words in each row, int64 `[R]`."""
        return np.bincount(self.rows, minlength=len(self.numbers))

    def events(self) -> pd.DataFrame:
        """`user`, `item`: the first word of a row is the user, each other word an event of theirs, in that order."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        users = np.repeat(starts, self.lengths)
        rest = np.ones(len(self.words), dtype=bool)
        rest[starts] = False
        pair = {"user": self.words.to_numpy()[users[rest]], "item": self.words.to_numpy()[rest]}
        return pd.DataFrame(pair, dtype="str")


def read_lines(path: Path, encoding: str) -> Lines:
    """The words of a text file; blank lines are passed over, a file without any word is refused."""
    text = pa.array(decode(path, encoding).split("\n"), type=pa.large_string())
    text = pc.utf8_trim_whitespace(text)
    filled = pc.greater(pc.binary_length(text), 0)
    words = pc.utf8_split_whitespace(text.filter(filled))
    if not len(words):
        raise RrecError(f"{path} is empty")
    rows = pc.list_parent_indices(words).to_numpy().astype(np.int64)
    numbers = np.flatnonzero(filled.to_numpy(zero_copy_only=False)) + 1
    return Lines(path, pd.Series(pc.list_flatten(words), dtype="str"), rows, numbers)


def refuse_words(lines: Lines, pattern: str, complaint: str) -> None:
    """RrecError with the line and the word for the first one that does not match `pattern`."""
    bad = ~lines.words.str.fullmatch(pattern).to_numpy(dtype=bool)
    if bad.any():
        word = int(bad.argmax())
        line = lines.numbers[lines.rows[word]]
        raise RrecError(f"{lines.path}, line {line}: '{lines.words.iloc[word]}' {complaint}")
