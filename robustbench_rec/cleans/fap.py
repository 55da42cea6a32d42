from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Detect, Detector
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import implicit, profiles
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError


@cleans.register
class FAP(Detector):
    """FAP: suspicion spreads from seed users over the weighted graph of users and items (Y. Zhang et al., IJCAI 2015).

    An edge weighs w = 1 + |r − r̄_u|/r̄_u + |r − r̄_i|/r̄_i + |r − r̄|/r̄, each user takes the mean of the items, each item
    that of the users, and seeds are held at 1. seeds: how many. With known=true they are drawn from the fake users, as
    in the paper; else they are the users whose profiles are nearest to `near` others, so that nobody has labels.
    tolerance: it ends when no user rises by more, 0.01 in the paper; that is where the ranking comes from, since the
    limit, the probability that a random walk ever meets a seed, is 1 for all whom a path leads to one. Users start at 0
    here, not at random, so that a round is a step of the walk: the suspicion only rises, and is the probability to meet
    a seed within so many rounds.
    """

    @dataclass
    class Config(Detect):
        seeds: int
        near: int
        tolerance: float

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not (config.seeds >= 1 and config.near >= 1 and config.tolerance > 0):
            raise RrecError(
                f"clean.seeds={config.seeds}, clean.near={config.near}, clean.tolerance={config.tolerance}: seeds, "
                "near >= 1 and tolerance > 0 are needed"
            )

    def told(self, fake: Tensor) -> Tensor | None:
        """The seeds that are drawn from the truth; at most half of the fake users, so that some are left to find."""
        places = fake.nonzero().squeeze(1)
        draw = torch.Generator().manual_seed(self.config.seed)
        chosen = places[torch.randperm(len(places), generator=draw)[: max(1, min(self.config.seeds, len(places) // 2))]]
        return torch.zeros_like(fake).index_fill(0, chosen, True)

    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        seeds = self._nearest(data, users) if told is None else told
        return spread(data, seeds, self.config.tolerance)[users]

    def _nearest(self, data: Data, users: Tensor) -> Tensor:
        there, _ = profiles(data, users, "clicks")
        alike = implicit(data, users, there, self.config.near)["jaccard"]
        draw = torch.randperm(len(users), generator=torch.Generator().manual_seed(self.config.seed))
        chosen = users[draw[alike[draw].argsort(descending=True, stable=True)[: self.config.seeds]]]
        return torch.zeros(data.n_users, dtype=torch.bool).index_fill(0, chosen, True)


def weights(data: Data) -> Tensor:
    """Of the edges, one for each training event `[N]`."""
    users, items, values = data.train.users, data.train.items, data.train.values.double()

    def off(owner: Tensor, n: int) -> Tensor:
        total = torch.zeros(n, dtype=torch.double).index_add(0, owner, values)
        mean = (total / torch.bincount(owner, minlength=n).clamp_min(1))[owner]
        return _relative(values, mean)

    return 1 + off(users, data.n_users) + off(items, data.n_items) + _relative(values, values.mean())


def spread(data: Data, seeds: Tensor, tolerance: float) -> Tensor:
    """The suspicion of all users `[U]` when seeds, bool `[U]`, are held at 1."""
    users, items, edge = data.train.users, data.train.items, weights(data)

    def taken(to: Tensor, n: int) -> Tensor:
        total = torch.zeros(n, dtype=torch.double).index_add(0, to, edge)
        return edge / total[to]

    into_users, into_items = taken(users, data.n_users), taken(items, data.n_items)
    user, rise = seeds.double(), float("inf")
    while rise > tolerance:
        item = torch.zeros(data.n_items, dtype=torch.double).index_add(0, items, into_items * user[users])
        after = torch.zeros(data.n_users, dtype=torch.double).index_add(0, users, into_users * item[items])
        after[seeds] = 1
        rise, user = float((after - user).abs().max()), after
    return user


def _relative(values: Tensor, mean: Tensor) -> Tensor:
    return torch.where(mean > 0, (values - mean).abs() / mean, torch.zeros_like(values))
