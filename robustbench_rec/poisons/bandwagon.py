from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class Bandwagon(Shilling):
    """Targets beside the most popular items and items drawn uniformly (Mobasher et al., TOIT 2007).

    popular: number of the former, as many as there is room for.
    """

    @dataclass
    class Config(Shill):
        popular: int

    def __init__(self, config: Config) -> None:
        if config.popular < 1:
            raise RrecError(f"poison.popular={config.popular}: at least 1")
        super().__init__(config)
        self.popular = config.popular

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = view.counts.masked_fill(~view.open, -1)
        selected = counts.topk(min(self.popular, view.room)).indices
        weights = torch.where(view.open, 1.0, -1.0).index_fill(0, selected, -1.0)
        return selected, sample(weights, view.n, view.room - len(selected), draw)
