from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View
from robustbench_rec.poisons import poisons


@poisons.register
class Covisitation(Shilling):
    """Fillers that as many waiting users as possible have, user after fake user (after Yang et al., NDSS 2017).

    Each fake user takes the items with the largest Σ w_u over the known users u who have them and lack a target, w = 1
    at first; then w_u is multiplied by decay to the power of the share of the profile that u has, so that the next
    fake user turns to those who are not reached yet. The paper solves a linear programme over the co-visitation graph
    of one service; this is its greedy form for any recommender of similar items, as simple as it gets.
    """

    @dataclass
    class Config(Shill):
        decay: float

    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        if not 0 < config.decay <= 1:
            raise RrecError(f"poison.decay={config.decay}: must lie in (0, 1]")
        super().__init__(config)
        self.decay = config.decay

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        users, weights, rows = view.clicks, view.waiting.clone(), []
        for _ in range(view.n):
            row = (weights @ users).masked_fill(~view.open, -1).topk(view.room).indices
            weights = weights * self.decay ** users[:, row].mean(1) if view.room else weights
            rows.append(row)
        return view.pushed[:0], torch.stack(rows)
