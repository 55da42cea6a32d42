from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.certificates import certificates
from robustbench_rec.certificates._elections import Elected, Elections, chosen, histories, neighbours
from robustbench_rec.certified import CELLS, Ballot, barriers, candidates
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full


@certificates.register
class Partition(Elected):
    """Deep partition aggregation over users, against fake users (Levine & Feizi, ICLR 2021).

    groups: users are put into so many groups by a hash of their id, whoever else is there; a recommender learns from
    each group and votes for `votes` items for every user. The list has the items with the most votes. A fake user can
    change the votes of one group: an item stays above another whose votes are more than twice the number of fake users
    below. Nothing is drawn, the bounds hold with certainty. Trains models itself: the checkpoint only names the data.
    """

    @dataclass
    class Config(Elections):
        groups: int

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.groups < 1:
            raise RrecError(f"certify.groups={config.groups}: at least 1")
        self.groups = config.groups

    def elect(self, data: Data, judging: Full, part: str) -> Ballot:
        owned, group = histories(data), hashed(data.user_ids, self.groups).to(data.train.users.device)
        users, open_ = candidates(judging, part)
        counts = torch.zeros(open_.shape, dtype=torch.int32, device=users.device)
        for number in range(self.groups):
            others = owned[group == number]
            for rows in torch.arange(len(users), device=users.device).split(max(1, CELLS // data.n_items)):
                items, voted = chosen(neighbours(owned[users[rows]], others), open_[rows], self.votes)
                cells = (rows[:, None] * data.n_items + items)[voted]
                counts.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        return Ballot(counts, self.groups, self.votes)

    def bounds(self, ballot: Ballot, n_bounds: int) -> tuple[Tensor, Tensor]:
        exact = torch.arange(ballot.n + 1, dtype=torch.float64)
        return exact, exact.clone()

    def after(self, lower: Tensor, upper: Tensor, fakes: int, data: Data) -> tuple[Tensor, Tensor]:
        return lower - fakes, barriers(upper, lambda total, c: total + fakes * c.clamp_max(self.votes))


def hashed(ids: list[str], groups: int) -> Tensor:
    """The group of each id, which depends on no other id."""
    return torch.from_numpy((pd.util.hash_array(pd.array(ids, dtype=object).to_numpy()) % groups).astype("int64"))
