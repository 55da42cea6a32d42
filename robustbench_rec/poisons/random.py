from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class RandomAttack(Shilling):
    """Targets beside items drawn uniformly (Lam & Riedl, WWW 2004).

    Ratings are like those of all items.
    """

    @dataclass
    class Config(Shill):
        pass

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        weights = torch.where(view.open, 1.0, -1.0)
        return view.pushed[:0], sample(weights, view.n, view.room, draw)
