from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class AverageAttack(Shilling):
    """Targets beside items rated as others rate them (Lam & Riedl, WWW 2004).

    With feedback=ratings the items are drawn uniformly, each with a rating from its own mean and deviation; with
    feedback=clicks, where nothing is left of that, they are drawn by their popularity.
    """

    @dataclass
    class Config(Shill):
        pass

    rates = ("highest", "item")

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        likely = view.counts if self.shill.feedback == "clicks" else torch.ones_like(view.counts)
        return view.pushed[:0], sample(torch.where(view.open, likely, -1.0), view.n, view.room, draw)
