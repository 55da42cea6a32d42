from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import unknown
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import added, joined, rows, with_train

OPS = ("replace", "insert", "swap")


@noises.register
class HistoryNoise(Noise):
    """Training histories whose order or content is wrong (after Betello et al., ECIR 2024).

    level: share of the events. op: swap, they take one another's places within a user, two of a user at least (those
    with a single event keep it), times stay; replace, their items are others, uniform, that the user has in no part
    (`train/noise` of the ground truth); insert, such an item comes behind each, at the same time. What deletes events
    is `sparsify`. Valid and test stay; what a model reads before a test event changes as well.
    """

    @dataclass
    class Config(Level):
        op: str

    needs: ClassVar[frozenset[str]] = frozenset({"order"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.op not in OPS:
            raise unknown("noise.op", config.op, OPS)
        self.op = config.op

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train = data.train
        count = self.count(len(train))
        if self.op == "swap":
            origin = _shuffled(train.users, _several(train.users, count, generator), generator)
            return with_train(data, replace(rows(train, origin), times=train.times), origin)
        chosen = drawn(torch.ones(len(train)), count, generator)
        false, places = added(data, chosen, torch.ones(data.n_items), generator)
        origin = torch.arange(len(train))
        if self.op == "insert":
            order = torch.cat([origin, places]).argsort(stable=True)  # each behind the one that it is a copy of
            return with_train(
                data,
                rows(joined(train, false), order),
                torch.cat([origin, places])[order],
                order >= len(train),
            )
        items, noise = train.items.clone(), torch.zeros(len(train), dtype=torch.bool)
        items[places], noise[places] = false.items, True
        return with_train(data, replace(train, items=items), origin, noise)


def _several(users: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Places of so many events, of each user none or at least two; one fewer where only couples are left."""
    sizes = torch.bincount(users)
    order = drawn((sizes[users] > 1).float(), len(users), generator)
    rank = torch.empty_like(users).scatter_(0, order, torch.arange(len(order)))
    order = order[users[order].argsort(stable=True)]  # a run for each user
    owner = users[order]
    start = torch.searchsorted(owner, owner)
    nth = torch.arange(len(order)) - start
    # the first two of a user come together, at the turn of either: so users of all sizes are as likely as their events
    late = torch.randint(2, (len(sizes),), generator=generator)[owner]
    turn = rank[torch.where(nth < 2, order[start + late], order)]
    by_turn = turn.argsort(stable=True)
    order, nth = order[by_turn], nth[by_turn]
    chosen, left = order[:count], order[count:]
    if len(left) and nth[count] == 1:  # the other one of a couple stays
        chosen = chosen[:-1]
        chosen = torch.cat([chosen, left[torch.isin(users[left], users[chosen])][:1]])
    return chosen


def _shuffled(users: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Where each event comes from, when the chosen ones of each user go round in a random cycle `[N]`."""
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    chosen = chosen[users[chosen].argsort(stable=True)]  # a run for each user
    owner, place = users[chosen], torch.arange(len(chosen))
    counts = torch.bincount(owner, minlength=int(users.max()) + 1)
    start = (counts.cumsum(0) - counts)[owner]
    origin = torch.arange(len(users))
    origin[chosen] = chosen[start + (place - start + 1) % counts[owner]]
    return origin
