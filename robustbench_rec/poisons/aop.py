from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class AverageOverPopular(Shilling):
    """Targets beside items drawn from the popular ones, rated as others rate them (Hurley et al., RecSys 2009).

    share: of the items with an event, from the most popular down, that are drawn from, uniformly; more of them where a
    fake user needs more.
    """

    @dataclass
    class Config(Shill):
        share: float

    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        if not 0 < config.share <= 1:
            raise RrecError(f"poison.share={config.share}: must lie in (0, 1]")
        super().__init__(config)
        self.share = config.share

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = view.counts.masked_fill(~view.open, -1)
        size = max(view.room, round(self.share * int((counts > 0).sum())))
        among = counts.topk(size).indices
        weights = torch.full_like(counts, -1.0).index_fill(0, among, 1.0)
        return view.pushed[:0], sample(weights, view.n, view.room, draw)
