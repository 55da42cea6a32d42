from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.poison import View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import Search, Searching, trained


@poisons.register
class PGA(Searching):
    """Projected gradient ascent through alternating least squares (Li et al., NeurIPS 2016).

    What rises is their integrity utility, the mean score of the targets for the users who lack them, at the optimum of
    the surrogate, which has one start. In their closed form the gradient goes through one row of the normal equations,
    and so reaches the pushed items of a fake user alone; here it goes through the last `unroll` sweeps, users and
    items, by differentiating their solutions, and reaches the fillers as well. Clicks with weights instead of ratings;
    the projection on a budget is that of `Searching`; the pushed items are always there.
    """

    @dataclass
    class Config(Search):
        pass

    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        users, items = trained(view, fakes, self.config, torch.Generator().manual_seed(self.shill.seed))
        scores = users @ items[view.pushed].T  # [U, P]
        wanted = 1 - view.clicks[:, view.pushed]
        return -(scores * wanted).sum() / wanted.sum().clamp_min(1)
