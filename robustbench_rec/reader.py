"""How a model takes in what the item table says, so that texts can be edited."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


class Reader(ABC):
    """Turns rows of an item table into the tensors that a model keeps of them.

    columns: of the item table, that the model reads as text. words, codes: words with a token of their own, in lower
    case, and their tokens `[V]`; none where an attack is not told. vectors: of all tokens `[N, D]`. embedding: the
    tensor of the model that has them, where it reads tokens at every forward; None where it reads them before.
    """

    columns: tuple[str, ...]
    words: tuple[str, ...] = ()
    codes: Tensor
    vectors: Tensor
    embedding: str | None = None

    @abstractmethod
    def joined(self, table: "pd.DataFrame") -> list[str]:
        """The text of each row, as it goes into the model."""

    @abstractmethod
    def read(self, table: "pd.DataFrame", added: Tensor | None = None) -> dict[str, Tensor]:
        """What the model keeps of each row, `[n, …]` by the name of its buffer, of the shape of the buffer's rows.

        added: to `vectors`, differentiably, where these are read before the model runs.
        """

    def begins(self, text: str, starts: Sequence[int]) -> list[int | None]:
        """The tokens that begin at given characters of a text of `joined`; None behind what is read."""
        return [None] * len(starts)


def rows_of(buffer: Tensor, items: Sequence[int], new: Tensor) -> Tensor:
    """The δ that makes the rows of some items, each named once, the new ones; 0 elsewhere, differentiable in `new`."""
    index = torch.tensor(items, device=buffer.device)
    return torch.zeros_like(buffer).index_copy(0, index, new.to(buffer) - buffer[index])
