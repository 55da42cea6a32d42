"""The words of an item's text that a score comes from."""

from typing import ClassVar

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import cleanings
from robustbench_rec.explanation.base import Units
from robustbench_rec.reader import rows_of
from robustbench_rec.recommendation import Recommender


class Words(Units):
    """The words of the item in all columns that the model reads as text; it is read again without some of them.

    Rules of a cleaning that stand before the model read what is left.
    """

    kind: ClassVar[str] = "words"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        assert asked.data.item_table is not None
        self.reader = asked.model.text_reader(asked.data)
        self.row = asked.data.item_table.iloc[[item]]
        cells = {name: self.row[name].iloc[0] for name in self.reader.columns}
        self.words = [
            (name, word) for name, cell in cells.items() if isinstance(cell, str) for word in cell.split()
        ]  # in the order in which they are read
        self.said = [word if len(cells) == 1 else f"{word} ({name})" for name, word in self.words]

    @torch.no_grad()
    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        at, masks = self.asked.at, kept.tolist()
        different = list(dict.fromkeys(map(tuple, masks)))
        texts = {
            name: cleanings.as_read(
                self.asked.data,
                name,
                [self.item] * len(different),
                [
                    " ".join(
                        word for (column, word), there in zip(self.words, mask, strict=True) if there and column == name
                    )
                    for mask in different
                ],
            )
            for name in self.reader.columns
        }
        rows = pd.concat([self.row] * len(different), ignore_index=True)
        read = self.reader.read(rows.assign(**{name: pd.Series(each, dtype="object") for name, each in texts.items()}))
        base = at.tensors(read)
        batch = self.asked.question(self.users, torch.tensor([[self.item]], device=self.users.device))
        found = {}
        for row, mask in enumerate(different):
            delta = {name: rows_of(each, [self.item], read[name][[row]]) for name, each in base.items()}
            found[mask] = at.shift(delta).holding(None)(batch).scores[0, 0].float()
        scores = at(self.asked.question(self.users)).scores.float().repeat(len(kept), 1)  # the other items stay
        scores[:, self.item] = torch.stack([found[tuple(mask)] for mask in masks])
        return scores
