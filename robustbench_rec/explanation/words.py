"""The words of an item's text that a score comes from."""

from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.explanation.base import Units
from robustbench_rec.recommendation import Recommender
from robustbench_rec.rewording import Column


class Words(Units):
    """The words of the item in the column that the model reads as its text; the item is read again without them."""

    kind: ClassVar[str] = "words"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        self.column = Column.of(asked.data, None, asked.model)
        self.said = self.column.texts[item].split()
        self.note = f"of the column '{self.column.name}'"

    @torch.no_grad()
    def scores(self, kept: Tensor) -> Tensor:
        at, words = self.asked.at, self.said
        texts = [" ".join(word for word, there in zip(words, row, strict=True) if there) for row in kept.tolist()]
        batch = self.asked.question(self.users, torch.tensor([[self.item]], device=self.users.device))
        own = self.asked.at(self.asked.question(self.users)).scores.float()  # [1, n_items]
        different = list(dict.fromkeys(texts))
        found = {
            text: at.shift(delta).holding(None)(batch).scores[0, 0].float()
            for text, delta in zip(different, self.column.deltas(at, self.item, different), strict=True)
        }
        scores = own.repeat(len(kept), 1)
        scores[:, self.item] = torch.stack([found[text] for text in texts])
        return scores
