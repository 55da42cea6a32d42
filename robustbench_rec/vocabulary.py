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
class Texts:
    """Words of every item.

    tokens: int64 `[n_items, T]`, PADDING where a text has ended, UNKNOWN for a word that is too rare or new.
    lengths: words of each text, up to T `[n_items]`. words: what the codes from 2 on stand for.
    """

    tokens: Tensor
    lengths: Tensor
    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of codes."""
        return len(self.words) + 2


def item_texts(data: Data, columns: Sequence[str] | None, *, min_count: int, max_tokens: int) -> Texts:
    """The text columns of the item table one after the other, normalised (NFKC), in lower case, cut into words.

    columns: which ones, None for all that hold text. min_count: items in training that must have a word, for it to have
    a code. max_tokens: of a text, the first ones. RrecError where the dataset has no item texts.
    """
    for name in columns or ():
        if name not in data.text_columns:
            raise unknown(f"text column of the items of dataset '{data.name}'", name, data.text_columns)
    chosen, table = data.text_columns if columns is None else list(columns), data.item_table
    if table is None or not chosen:
        raise RrecError(f"dataset '{data.name}' has no texts of its items")
    text = table[chosen].astype("str").where(table[chosen].notna(), "").agg(" ".join, axis=1)
    found = text.reset_index(drop=True).str.normalize("NFKC").str.lower().str.findall(WORD)
    words = found.str[:max_tokens].explode().dropna()
    items = words.index.to_numpy()
    trained = np.zeros(data.n_items, dtype=bool)
    trained[data.train.items.cpu().numpy()] = True
    fitted = pd.DataFrame({"item": items[trained[items]], "word": words[trained[items]].to_numpy()}).drop_duplicates()
    counts = fitted["word"].value_counts(sort=False)
    known = pd.Index(counts.index[counts >= min_count].sort_values())
    if not len(known):
        raise RrecError(f"dataset '{data.name}' has no word that {min_count} items in training have")
    codes = known.get_indexer(words)
    lengths = np.bincount(items, minlength=data.n_items)
    places = np.arange(len(items)) - np.repeat(lengths.cumsum() - lengths, lengths)
    tokens = np.full((data.n_items, int(lengths.max())), PADDING, dtype=np.int64)
    tokens[items, places] = np.where(codes < 0, UNKNOWN, codes + 2)
    device = data.train.items.device
    return Texts(torch.from_numpy(tokens).to(device), torch.from_numpy(lengths).to(device), tuple(known))
