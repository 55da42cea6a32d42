"""Certificates whose predictor counts the votes of many recommenders, trained on parts of the data."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_rec.certified import Ballot, Budgets, Certificate, Certified, outvoted, whole
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.graph import clicked
from robustbench_rec.poisons import poisons
from robustbench_rec.threat import Threat

DENSE = 2**28  # numbers in a matrix of users and items: 1 GiB


@dataclass
class Elections(Budgets):
    """votes: items that a recommender votes for, for each user. poison: the fake users of the empirical side."""

    votes: int
    poison: dict[str, Any]


class Elected(Certificate):
    """Certified against fake users: the recommenders that see none of them vote as they did before.

    The recommender is item-kNN with cosine similarity and all neighbours, so that a vote is two matrix products; it
    votes for nothing that shares no user with what the user has. What the evaluation excludes is never voted for.
    """

    threat: ClassVar[Threat] = Threat(
        surface="training data", knowledge="white-box", scope="all users at once", budget="fake users with any events"
    )
    unit: ClassVar[str] = "fake users"
    trains: ClassVar[bool] = True

    def __init__(self, config: Elections) -> None:
        super().__init__(config)
        self.fakes, self.votes, self.poison = whole(config.budgets), config.votes, config.poison
        self.made: dict[tuple[str, int], Data] = {}
        if config.votes < 1:
            raise RrecError(f"certify.votes={config.votes}: at least 1")
        if self.attacked and "size" not in config.poison:
            name = config.poison["name"]
            raise RrecError(
                f"certify.poison={name}: the budget says how many fake users there are, and {name} does not ask"
            )

    @abstractmethod
    def elect(self, data: Data, judging: Full, part: str) -> Ballot:
        """The votes for the users of a part, from the training events of `data`."""

    @abstractmethod
    def bounds(self, ballot: Ballot, n_bounds: int) -> tuple[Tensor, Tensor]:
        """Lower and upper bound on what the votes are about, by count."""

    @abstractmethod
    def after(self, lower: Tensor, upper: Tensor, fakes: int, data: Data) -> tuple[Tensor, Tensor]:
        """With fake users: lower bounds `[P]`, and `barriers` of the upper bounds `[U, A]`."""

    def certify(self, loaded: Loaded, judging: Full, part: str) -> Certified:
        if self.attacked:  # what cannot be built is refused before the elections, which take long
            for each in filter(None, self.fakes):
                self._poisoned(loaded.data, each)
        ballot = self.elect(loaded.data, judging, part)
        own, rows, others = ballot.bounds(judging, part, *self.bounds(ballot, ballot.counts.numel()))
        above = []
        for each in self.fakes:
            lower, barrier = self.after(own, others, each, loaded.data)
            above.append(outvoted(lower, rows, barrier))
        return Certified(ballot.clean(judging, part), torch.stack(above), {"elections": float(ballot.n)})

    def attack(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Result:
        return self.elect(self._poisoned(loaded.data, int(budget)), judging, part).clean(judging, part)

    def _poisoned(self, data: Data, fakes: int) -> Data:
        """The data with so many fake users, who are made once."""
        key = data.fingerprint, fakes
        if key not in self.made:
            made = poisons.build({**self.poison, "size": fakes / data.n_users})(data)
            if made is data:
                raise RrecError(f"certify.empirical: certify.poison={self.poison['name']} makes no fake users")
            self.made[key] = made
        return self.made[key]


def histories(data: Data) -> Tensor:
    """0/1 of users and items `[n_users, n_items]`; RrecError where that is too much to hold."""
    if data.n_users * data.n_items > DENSE:
        raise RrecError(f"a matrix of {data.n_users} users and {data.n_items} items is too large for this certificate")
    found = torch.zeros(data.n_users, data.n_items, device=data.train.users.device)
    return found.index_put_(clicked(data), torch.ones((), device=found.device))


def neighbours(owned: Tensor, others: Tensor) -> Tensor:
    """Item-kNN: summed cosines of all items with those owned `[…, U, n_items]`, over the users `[…, S, n_items]`."""
    weight = others.sum(-2, keepdim=True).clamp_min(1).rsqrt()
    near: Tensor = (owned * weight) @ others.mT  # [..., U, S]
    return near @ others * weight


def chosen(scores: Tensor, open_: Tensor, votes: int) -> tuple[Tensor, Tensor]:
    """The best `votes` candidates of each row `[…, votes]`, and whether they get a vote: with a score above 0."""
    best = scores.masked_fill(~open_, 0.0).topk(min(votes, scores.shape[-1]))
    return best.indices, best.values > 0
