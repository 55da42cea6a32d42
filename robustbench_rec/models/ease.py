from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import Csr, sums
from robustbench_rec.model import Encoded
from robustbench_rec.models import models
from robustbench_rec.models._item_based import ItemBased

LARGEST = 20_000


@models.register
class EASE(ItemBased):
    """Embarrassingly shallow autoencoder: item-item weights in closed form (Steck, WWW 2019).

    l2: λ of the ridge regression, in users. Nothing is learnt by gradient descent, so there is no gradient to attack.
    Memory is n_items² numbers: 4 bytes each in the checkpoint and while scoring, and 16 more while fitting, which is
    done in double precision on the CPU; 8 GB at 20,000 items, beyond which the model refuses.
    """

    @dataclass
    class Config:
        l2: float

    weight: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        if not config.l2 > 0:
            raise RrecError(f"model.l2={config.l2}: must be positive, or the weights of ease are not defined")
        if data.n_items > LARGEST:
            raise RrecError(
                f"model 'ease' holds n_items² numbers, dataset '{data.name}' has {data.n_items} items and {LARGEST} "
                "are the most; use model=itemknn, or a larger prepare.item_core"
            )
        super().__init__(data)
        self.l2 = config.l2
        self.register_buffer("weight", torch.zeros(data.n_items, data.n_items))  # row: owned item, column: scored one

    def fit(self, data: Data) -> None:
        gram = torch.empty(self.n_items, self.n_items, dtype=torch.float64)
        for first, counts in self.together():
            gram[first : first + len(counts)] = counts
        gram.diagonal().add_(self.l2)
        gram, failed = torch.linalg.cholesky_ex(gram)
        if bool(failed):
            raise RrecError(f"model.l2={self.l2}: too small to invert the item-item counts of this data; raise it")
        inverse = torch.cholesky_inverse(gram)
        del gram
        inverse /= -inverse.diagonal().clone()
        self.weight.copy_(inverse.fill_diagonal_(0))

    def of_rows(self, owned: Csr, encoded: Encoded) -> Tensor:
        return sums(self.weight, owned)
