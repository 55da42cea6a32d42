"""Texts of items as numbered words, the words being those of the items that occur in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown

PADDING, UNKNOWN = 0, 1
WORD = r"\w+"


@dataclass(frozen=True)
class Vocabulary:
    """Numbered words, and the columns of the item table that are read with them.

    words: what the codes from 2 on stand for. max_tokens: of a text, the first ones are read.
    """

    columns: tuple[str, ...]
    words: tuple[str, ...]
    max_tokens: int

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.words) + 2

    def joined(self, table: pd.DataFrame) -> "pd.Series[str]":
        """The columns one after the other."""
        chosen = table[list(self.columns)]
        text: pd.Series[str] = chosen.astype("str").where(chosen.notna(), "").agg(" ".join, axis=1)
        return text.reset_index(drop=True)

    def read(self, table: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Codes of the words of each row `[n, max_tokens]`, PADDING where a text has ended, and their numbers `[n]`."""
        words = split(self.joined(table)).str[: self.max_tokens].explode().dropna()
        rows, codes = words.index.to_numpy(), pd.Index(self.words).get_indexer(pd.Index(words))
        lengths = np.bincount(rows, minlength=len(table))
        places = np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)
        tokens = np.full((len(table), self.max_tokens), PADDING, dtype=np.int64)
        tokens[rows, places] = np.where(codes < 0, UNKNOWN, codes + 2)
        return torch.from_numpy(tokens), torch.from_numpy(lengths)


def split(text: "pd.Series[str]") -> "pd.Series[list[str]]":
    """The words of texts, normalised (NFKC) and in lower case."""
    return text.str.normalize("NFKC").str.lower().str.findall(WORD)


def item_vocabulary(data: Data, columns: Sequence[str] | None, *, min_count: int, max_tokens: int) -> Vocabulary:
    """The words of the text columns of the item table, those of items in training.

    columns: which ones, None for all that hold text. min_count: items in training that must have a word, for it to have
    a code. max_tokens: of a text, the first ones. RrecError where the dataset has no item texts.
    """
    for name in columns or ():
        if name not in data.text_columns:
            raise unknown(f"text column of the items of dataset '{data.name}'", name, data.text_columns)
    chosen, table = data.text_columns if columns is None else list(columns), data.item_table
    if table is None or not chosen:
        raise RrecError(f"dataset '{data.name}' has no texts of its items")
    words = split(Vocabulary(tuple(chosen), (), max_tokens).joined(table)).str[:max_tokens].explode().dropna()
    items = words.index.to_numpy()
    trained = np.zeros(data.n_items, dtype=bool)
    trained[data.train.items.cpu().numpy()] = True
    fitted = pd.DataFrame({"item": items[trained[items]], "word": words[trained[items]].to_numpy()}).drop_duplicates()
    counts = fitted["word"].value_counts(sort=False)
    known = counts.index[counts >= min_count].sort_values()
    if not len(known):
        raise RrecError(f"dataset '{data.name}' has no word that {min_count} items in training have")
    return Vocabulary(tuple(chosen), tuple(known), max_tokens)
