from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, nearest, sample
from robustbench_rec.poisons import poisons


@poisons.register
class Segment(Shilling):
    """Targets beside the items that their audience likes, which get the highest rating (Mobasher et al., TOIT 2007).

    nearest: number of these items, those with the highest cosine to the targets over the known users, popular ones
    first where none has any. Fillers are drawn uniformly and get the lowest rating, which with feedback=clicks is a
    click.
    """

    @dataclass
    class Config(Shill):
        nearest: int

    rates = ("highest", "lowest")

    def __init__(self, config: Config) -> None:
        if config.nearest < 1:
            raise RrecError(f"poison.nearest={config.nearest}: at least 1")
        super().__init__(config)
        self.nearest = config.nearest

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        near = nearest(view, view.pushed) + 1e-6 * view.counts / view.counts.max()
        selected = near.masked_fill(~view.open, -1).topk(min(self.nearest, view.room)).indices
        weights = torch.where(view.open, 1.0, -1.0).index_fill(0, selected, -1.0)
        return selected, sample(weights, view.n, view.room - len(selected), draw)
