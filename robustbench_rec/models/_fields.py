"""Ids and features of users or items as vectors, a field each."""

import torch
from torch import Tensor, nn

from robustbench_rec.features import Features
from robustbench_rec.lookup import rows


class Fields(nn.Module):
    """K fields of n users or items: the id (unless n_ids is 0), numbers, categories.

    A number scales the vector of its column, a category with several values is the mean of theirs, and what is missing
    or new is the zero vector.
    """

    feature_numbers: Tensor

    def __init__(self, features: Features, *, n_ids: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.count = bool(n_ids) + len(features)
        self.id = nn.Embedding(n_ids, dim) if n_ids else None
        self.number = None
        if features.numbers.shape[1]:
            self.register_buffer("feature_numbers", features.numbers, persistent=False)
            self.number = nn.Parameter(torch.empty(features.numbers.shape[1], dim))
        self.categories = nn.ModuleList(nn.Embedding(size, dim) for size in features.sizes)
        for place, codes in enumerate(features.codes):
            self.register_buffer(f"codes_{place}", codes, persistent=False)
        for each in self.parameters():
            nn.init.xavier_normal_(each)

    def forward(self, index: Tensor) -> Tensor:
        """`[N, K, D]` for indices `[N]`."""
        found = [] if self.id is None else [rows(self.id.weight, index)[:, None]]
        if self.number is not None:
            found.append(self.feature_numbers[index, :, None] * self.number)  # [N, F, D]
        for place, table in enumerate(self.categories):
            found.append(mean_rows(table, self.get_buffer(f"codes_{place}")[index])[:, None])
        return torch.cat(found, 1) if found else torch.zeros(len(index), 0, self.dim, device=index.device)


def mean_rows(table: nn.Module, codes: Tensor) -> Tensor:
    """The mean of the vectors that codes `[N, T]` name in an embedding, without code 0: `[N, D]`."""
    assert isinstance(table, nn.Embedding)
    real = (codes > 0).unsqueeze(2)
    return (rows(table.weight, codes) * real).sum(1) / real.sum(1).clamp_min(1)
