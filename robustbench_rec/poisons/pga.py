from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.factors import alternate, start
from robustbench_rec.poison import View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import Search, Searching


@poisons.register
class PGA(Searching):
    """Projected gradient ascent through alternating least squares (Li et al., NeurIPS 2016).

    What rises is their integrity utility, the mean score of the targets for the users who lack them, at the optimum of
    the surrogate. In their closed form the gradient goes through one row of the normal equations, and so reaches the
    pushed items of a fake user alone; here it goes through the last `unroll` sweeps, users and items, by differentiating
    their solutions, and reaches the fillers as well. Clicks with weights instead of ratings; the projection on a budget is
    that of `Searching`; the pushed items are always there.
    """

    @dataclass
    class Config(Search):
        pass

    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        c, data = self.config, view.data
        generator = torch.Generator().manual_seed(self.shill.seed)
        first = start(data.n_users + view.n, data.n_items, c, generator, view.device)
        clicks = torch.cat([view.clicks, fakes])
        factors = alternate(clicks.detach(), first, c, c.sweeps - c.unroll)
        users, items = alternate(clicks, factors, c, c.unroll)
        scores = users[: data.n_users] @ items[view.pushed].T  # [U, P]
        wanted = 1 - view.clicks[:, view.pushed]
        return -(scores * wanted).sum() / wanted.sum().clamp_min(1)
