from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import Csr, sums
from robustbench_rec.model import Encoded
from robustbench_rec.models import models
from robustbench_rec.models._item_based import ItemBased


@models.register
class ItemKNN(ItemBased):
    """Item-based nearest neighbours with shrunk cosine similarity (Sarwar et al., WWW 2001; Deshpande & Karypis, 2004).

    k: neighbours of each item, at most the other items. shrink: added to the product of the norms, so that pairs with
    few common users count less. The score of an item is the sum of its similarities to those of its neighbours that the
    user has in training, over 0/1 events. Nothing is learnt by gradient descent, so there is no gradient to attack.
    """

    @dataclass
    class Config:
        k: int
        shrink: float

    neighbour: Tensor
    similarity: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        if config.k < 1 or config.shrink < 0:
            raise RrecError(f"itemknn with k={config.k}, shrink={config.shrink}: k >= 1 and shrink >= 0 are needed")
        super().__init__(data)
        self.k, self.shrink = min(config.k, data.n_items - 1), config.shrink
        self.register_buffer("neighbour", torch.zeros(data.n_items, self.k, dtype=torch.long))
        self.register_buffer("similarity", torch.zeros(data.n_items, self.k))  # most similar first

    def fit(self, data: Data) -> None:
        norm = torch.bincount(self.owned.columns, minlength=self.n_items).sqrt()
        for first, counts in self.together():
            part = slice(first, first + len(counts))
            cosine = counts / (norm[part, None] * norm + self.shrink).clamp_min(1e-6)  # an item without events: 0 / 0
            cosine.diagonal(first).fill_(-1)
            self.similarity[part], self.neighbour[part] = cosine.topk(self.k, 1)

    def refresh(self) -> None:
        if bool(((self.neighbour < 0) | (self.neighbour >= self.n_items)).any()):
            raise RrecError(f"itemknn: a neighbour is not among the {self.n_items} items; train it anew")

    def of_rows(self, owned: Csr, encoded: Encoded) -> Tensor:
        has = owned.dense(self.n_items).T  # [n_items, U]
        starts = self.k * torch.arange(self.n_items + 1, device=has.device)
        return sums(has, Csr(starts, self.neighbour.flatten(), self.similarity.flatten())).T.contiguous()
