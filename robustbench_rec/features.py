"""Side information of users or items as tensors, everything fitted on the rows that occur in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.raw import Array

TEXTS = ("abstract", "description", "name", "plot", "review", "summary", "text", "title")
FEW = 1000
"""Different values up to which a text column is a category."""


@dataclass(frozen=True)
class Features:
    """The features of n users or items, row i for index i.

    numbers: float32 `[n, F]`, standardised; 0 where a value is missing, which is the mean in training. codes: a table
    for each category column, int64 `[n, T]` with up to T values a row; 0 stands for nothing, or for what training does
    not have. sizes: number of codes of each of them, 0 included. names: of the numbers, then of the categories.
    """

    numbers: Tensor
    codes: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Columns."""
        return len(self.names)


def features(data: Data, side: str, columns: Sequence[str] | None) -> Features:
    """What is known about the users or the items: side is `user` or `item`.

    columns: which of the side table, None for all that make a feature: numbers that differ, and text with few values
    that come back (`FEW` at most, each seen twice on average). A text column with a `|` anywhere holds several values
    in a cell; so does one with spaces that is made of no more different words than cells, as genres are. A column whose
    name ends with one of `TEXTS` is prose and never read as words here. A column that is asked for by name is used
    whatever its values are. Of items that were `reworded`, the codes are those that their values had before. RrecError
    for a column that the table does not have.
    """
    table = data.item_table if side == "item" else data.user_table
    seen = data.train.items if side == "item" else data.train.users
    n = data.n_items if side == "item" else data.n_users
    if table is None:
        table = pd.DataFrame(index=range(n))
    cells = table if side == "user" or data.reworded is None else data.reworded
    for name in columns or ():
        if name not in table.columns:
            raise unknown(f"{side} column of dataset '{data.name}'", name, table.columns)
    trained = np.zeros(n, dtype=bool)
    trained[seen.cpu().numpy()] = True
    numbers, codes, sizes = {}, {}, {}
    for name in table.columns if columns is None else columns:
        column, asked = table[name], columns is not None
        if pd.api.types.is_numeric_dtype(column):
            standardised = _standardised(column, trained)
            if standardised is not None:
                numbers[name] = standardised
            elif asked:
                raise RrecError(f"{side} column '{name}' of dataset '{data.name}' has one value only in training")
        else:
            found = _coded(column, cells[name], trained, asked)
            if found is not None:
                codes[name], sizes[name] = found
            elif asked:
                raise RrecError(f"{side} column '{name}' of dataset '{data.name}' has no value in training")
    dense = np.stack([*numbers.values()], axis=1) if numbers else np.zeros((n, 0), dtype=np.float32)
    return Features(
        torch.from_numpy(dense).to(seen.device),
        tuple(torch.from_numpy(each).to(seen.device) for each in codes.values()),
        tuple(sizes.values()),
        (*numbers, *codes),
    )


def is_prose(name: str) -> bool:
    """Whether a column of that name holds sentences."""
    return name.lower().rpartition("_")[2] in TEXTS


def filled(column: pd.Series) -> pd.Series:
    """A text column without its missing and empty cells."""
    text = column.dropna().astype("str").str.strip()
    return text[text != ""]


def _standardised(column: pd.Series, trained: Array) -> Array | None:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    known = np.isfinite(values)
    fitted = values[known & trained]
    if not len(fitted) or fitted.std() <= 1e-12 * np.abs(fitted).max():
        return None
    return np.where(known, (np.where(known, values, 0.0) - fitted.mean()) / fitted.std(), 0.0).astype(np.float32)


def _coded(column: pd.Series, cells: pd.Series, trained: Array, asked: bool) -> tuple[Array, int] | None:
    """Codes `[n, T]` of cells by the values of a column, and their number; None where the column is no category."""
    between = _between(column)
    values = _pieces(column, between)
    fitted = values[trained[values.index.to_numpy()]]
    known = pd.Index(fitted.unique())
    if not len(known) or not (asked or (len(known) <= FEW and 2 * len(known) <= len(fitted))):
        return None
    values = _pieces(cells, between)
    rows, codes = values.index.to_numpy(), known.get_indexer(values) + 1
    rows, codes = rows[codes > 0], codes[codes > 0]
    counts = np.bincount(rows, minlength=len(column))
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    table = np.zeros((len(column), max(1, counts.max())), dtype=np.int64)
    table[rows, places] = codes
    return table, len(known) + 1


def _between(column: pd.Series) -> str:
    """What stands between the values of a cell: `|`, a space, or nothing where a cell is one value."""
    text = filled(column)
    if text.str.contains("|", regex=False).any():
        return "|"
    if is_prose(str(column.name)) or not text.str.contains(" ", regex=False).any():
        return ""
    return " " if text.str.split().explode().nunique() <= text.nunique() else ""


def _pieces(column: pd.Series, between: str) -> pd.Series:
    """The values in the cells of a column, each with the place of its row as the index."""
    text = filled(column.reset_index(drop=True))
    if between:
        text = text.str.split("|" if between == "|" else None).explode().str.strip()
    return text[text != ""]
