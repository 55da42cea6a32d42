from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class ProfileCopy(Shilling):
    """Copies of the known users who are nearest to the waiting ones, with targets in the place of some items.

    Nearest is the cosine to the sum of the profiles of those who lack a target. A fake user is a random part of the
    profile that it copies where that is too long, and a shorter one where that is; profiles are copied again once all
    are used.
    """

    @dataclass
    class Config(Shill):
        pass

    rates = ("highest", "item")

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        users = view.clicks
        near = users @ (view.waiting @ users) / users.sum(1).clamp_min(1).sqrt()
        order = near.argsort(descending=True, stable=True)
        copied = users[order[torch.arange(view.n, device=view.device) % len(order)]]  # [n, n_items]
        copied = copied.masked_fill(~view.open, 0)
        items = sample(torch.where(copied > 0, 1.0, -1.0), view.n, view.room, draw)
        return view.pushed[:0], torch.where(copied.gather(1, items) > 0, items, -1)
