from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.histories import Histories
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import EDITS, ITEMS, allotted, edited, rows, with_train

OPS = ("crop", "delete", "insert", "replace", "reverse", "swap")
PLACES = ("any", "cascade", "end", "middle", "start")


@noises.register
class HistoryNoise(Noise):
    """Training histories whose order or content is wrong (after Betello et al., ECIR 2024).

    level: share of the events. op: as in `attack=history`; swap, they take one another's places within a user, and
    reverse, runs of them are turned round (two of a user at least; times stay); replace, their items are others that
    the user has in no part (`train/noise` of the ground truth); insert, such an item comes behind each, at the same
    time; delete; crop, they go from the two ends. where: the first of a user's events, the latest, those in the middle,
    each user's share of the level rounded up or down; any; or, for what edits events one by one, cascade: those from
    which most others follow (CASPER: Oh et al., CIKM 2022). items: what is put in, drawn by its training events
    (popular), by the inverse of one more (unpopular), or uniform.

    Valid and test stay; what a model reads before a test event changes as well. Nothing is duplicated: a user has an
    item once in train. What takes the same share of every user is `sparsify`.
    """

    @dataclass
    class Config(Level):
        op: str
        where: str
        items: str

    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for key, value, choices in (
            ("op", config.op, OPS),
            ("where", config.where, PLACES),
            ("items", config.items, ITEMS),
        ):
            if value not in choices:
                raise unknown(f"noise.{key}", value, choices)
        if config.where == "cascade" and config.op not in EDITS:
            raise RrecError(f"noise.where=cascade is for {', '.join(EDITS)}, not for noise.op={config.op}")
        self.config = config

    @property
    def only(self) -> frozenset[str]:
        return self.needs if self.config.op in ("reverse", "swap") else frozenset()

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train, op = data.train, self.config.op
        if op in ("crop", "reverse"):
            edit = Runs(data).cropped if op == "crop" else Runs(data).reversed
            found = edit(self.level, self.config.where, generator)
        else:
            found = self._chosen(data, generator)
        if op in ("reverse", "swap"):
            origin = _shuffled(train.users, found, generator) if op == "swap" else found
            return with_train(data, replace(rows(train, origin), times=train.times), origin)
        return edited(data, "delete" if op == "crop" else op, found, self.config.items, generator)

    def _chosen(self, data: Data, generator: torch.Generator) -> Tensor:
        """Places of the events that are edited one by one."""
        users, count, swap = data.train.users, self.count(len(data.train)), self.config.op == "swap"
        if self.config.where == "cascade":
            return cascading(data, count)
        if self.config.where != "any":
            return Runs(data).run(self.level, self.config.where, generator, least=2 if swap else 1)
        if swap:
            return _several(users, count, generator)
        return drawn(torch.ones(len(users)), count, generator)


class Runs:
    """The training events of each user, oldest first: those without times in their own order.

    order: places of the events, a run for each user. owner, nth: the user of each, and its number in the run, from 0.
    """

    def __init__(self, data: Data) -> None:
        runs = Histories(
            replace(data.train, items=torch.arange(len(data.train))), n_users=data.n_users, n_items=len(data.train)
        )
        self.order, self.sizes, self.starts = runs.items, runs.starts.diff(), runs.starts[:-1]
        self.owner = data.train.users[self.order]
        self.nth = torch.arange(len(self.order)) - self.starts[self.owner]

    def run(self, level: float, where: str, generator: torch.Generator, *, least: int = 1) -> Tensor:
        """Places of so many events that stand beside one another, in some part of each user's run."""
        first, count = self._stretch(level, where, generator, least)
        return self.order[self._within(first, count)]

    def cropped(self, level: float, where: str, generator: torch.Generator) -> Tensor:
        """Places of the events that go from the ends."""
        count = allotted(self.sizes, level, generator)
        some = (torch.rand(len(count), generator=generator) * (count + 1)).long().minimum(count)
        front = {"any": some, "start": count, "middle": count // 2, "end": torch.zeros_like(count)}[where]
        kept = self._within(front, self.sizes - count)
        return self.order[~kept]

    def reversed(self, level: float, where: str, generator: torch.Generator) -> Tensor:
        """Where each event comes from, when a part of each run is turned round `[N]`."""
        first, count = self._stretch(level, where, generator, 2)
        turned = self._within(first, count)
        mirrored = self.starts[self.owner] + (2 * first + count - 1)[self.owner] - self.nth
        origin = torch.empty_like(self.order)
        origin[self.order] = self.order[torch.where(turned, mirrored, torch.arange(len(turned)))]
        return origin

    def _stretch(self, level: float, where: str, generator: torch.Generator, least: int) -> tuple[Tensor, Tensor]:
        """Number of the first event and length of the part of each user's run that is edited `[n_users]`."""
        count = allotted(self.sizes, level, generator, least=least)
        room = self.sizes - count
        some = (torch.rand(len(room), generator=generator) * (room + 1)).long().minimum(room)
        return {"any": some, "start": torch.zeros_like(room), "middle": room // 2, "end": room}[where], count

    def _within(self, first: Tensor, count: Tensor) -> Tensor:
        """Which events, in the order of the runs, have numbers from `first` on, `count` of a user, bool `[N]`."""
        return (self.nth >= first[self.owner]) & (self.nth < (first + count)[self.owner])


def cascading(data: Data, count: int) -> Tensor:
    """Places of the `count` training events from which most others follow.

    An event leads to the next one of its user, to the next one of its item, and to all that these lead to. In the
    released code only events without one before them count, and those outside of the window of a model lead to nothing.
    It takes as many walks through all events as are chosen, or twice: seconds for a thousandth of 100,000.
    """
    if data.train.times is None:
        raise RrecError(f"noise.where=cascade: dataset '{data.name}' has no times, so nothing follows from anything")
    n, order = len(data.train), data.train.times.argsort(stable=True)
    edges = []
    for owner in (data.train.users, data.train.items):
        run = order[owner[order].argsort(stable=True)]
        same = owner[run[1:]] == owner[run[:-1]]
        edges.append(torch.stack([run[:-1][same], run[1:][same]]))
    heads, tails = torch.cat(edges, 1).numpy()
    graph = csr_matrix((np.ones(len(heads), dtype=np.int8), (heads, tails)), shape=(n, n))

    def found(event: int) -> tuple[int, int]:
        return -len(breadth_first_order(graph, event, return_predecessors=False)), event

    # none leads to as much as what leads to it, so the next best stands behind one that is chosen, or behind none
    waiting = [found(each) for each in np.setdiff1d(np.arange(n), tails).tolist()]
    heapify(waiting)
    seen, chosen = {event for _, event in waiting}, list[int]()
    while len(chosen) < count:
        _, event = heappop(waiting)
        chosen.append(event)
        for each in graph.indices[graph.indptr[event] : graph.indptr[event + 1]].tolist():
            if each not in seen:
                seen.add(each)
                heappush(waiting, found(each))
    return torch.tensor(chosen, dtype=torch.long)


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
