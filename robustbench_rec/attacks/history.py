from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Data
from robustbench_rec.edits import Draws, HistoryAttack, latest, ordered, read, vectors
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

OPS = ("crop", "delete", "duplicate", "insert", "replace", "reverse", "swap")
PLACES = ("any", "end", "middle", "start")
ITEMS = ("popular", "similar", "uniform", "unpopular")
LEAST = {"reverse": 2, "swap": 2}  # events that take part
SHORTER = ("crop", "delete")  # one event is left
CELLS = 2**24  # similarities held at once


@attacks.register
class HistoryEdit(HistoryAttack):
    """Deletes, inserts, replaces, swaps … events of histories without looking at a score (Betello et al., ECIR 2024).

    op: delete; insert; replace; swap (the events take one another's places); crop (they go from the two ends, half and
    half for where=middle); reverse (a run of them is turned round); duplicate (each stands twice in a row). share: of
    the events of a history; at least one, two that are moved, where it has one to spare. where: the first of them, the
    latest, those in the middle, or any. items: what is put in, in proportion to the training events of an item
    (popular), to the inverse of one more (unpopular), or the nearest by the vectors that the model reads (similar);
    never those that the goal is about: what is in a history is not recommended again.

    A history is never empty afterwards; of one that is longer than the window, the oldest events go. In a training it
    draws anew for every row of a batch. A causal model learns there from all events of a history at once, which only
    op=replace leaves in their places.
    """

    @dataclass
    class Config:
        op: str
        share: float
        where: str
        items: str
        seed: int

    threat: ClassVar[Threat] = Threat(
        surface="history",
        knowledge="none",
        scope="each user",
        budget="a share of the events",
    )
    counts: Tensor
    generator: torch.Generator | None = None

    def __init__(self, config: Config) -> None:
        for what, name, choices in (
            ("op of attack 'history'", config.op, OPS),
            ("place of attack 'history'", config.where, PLACES),
            ("kind of items of attack 'history'", config.items, ITEMS),
        ):
            if name not in choices:
                raise unknown(what, name, choices)
        if not 0 <= config.share <= 1:
            raise RrecError(f"attack.share={config.share}: a share between 0 and 1")
        self.config = config

    @property
    def passes(self) -> int:
        return 0

    @property
    def declared(self) -> Threat:
        config = self.config
        where = "any places" if config.where == "any" else f"the {config.where}"
        told = f"{config.op} {config.share:g} of the events, at {where}"
        if config.op not in ("insert", "replace"):
            return replace(self.threat, budget=told)
        knowledge = "white-box" if self._similar else "none"
        return replace(self.threat, budget=f"{told}, {config.items} items", knowledge=knowledge)

    def prepared(self, model: RecModel, data: Data) -> Self:
        held = super().prepared(model, data)
        held.counts = torch.bincount(data.clicks().items, minlength=data.n_items)
        return held

    def check(self, model: RecModel) -> None:
        super().check(model)
        if self._similar:
            vectors(model)

    def check_training(self, model: RecModel) -> None:
        super().check_training(model)
        if model.causal and self.config.op != "replace":
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(
                f"defense.attack.op={self.config.op}: model '{name}' learns from all events of a history at once, "
                "which have to stay in their places; take defense.attack.op=replace"
            )

    def drawing_from(self, generator: torch.Generator) -> "HistoryEdit":
        drawing = copy(self)
        drawing.generator = generator
        return drawing

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        history, config = self.history(batch), self.config
        draws = self._draws(batch)
        count = self._count(history.lengths)  # [B]
        if config.op in ("insert", "replace"):
            edited = self._put(at, batch, count, draws)
        elif config.op in ("reverse", "swap"):
            edited = self._moved(history, count, draws)
        else:
            edited = self._resized(history, count, draws)
        return at, replace(batch, history=latest(edited, self.window))

    def _draws(self, batch: Batch) -> Draws:
        if self.generator is None:
            return Draws(batch.users, self.config.seed)
        rows = torch.arange(len(batch.users), device=batch.users.device)  # a user may have several
        return Draws(rows, int(torch.randint(2**62, (1,), generator=self.generator)))

    @property
    def _similar(self) -> bool:
        return self.config.items == "similar" and self.config.op in ("insert", "replace")

    def _count(self, lengths: Tensor) -> Tensor:
        """Events of each row that are edited."""
        config, least = self.config, LEAST.get(self.config.op, 1)
        if not config.share:
            return torch.zeros_like(lengths)
        count = torch.minimum((config.share * lengths).round().long().clamp_min(least), lengths)
        count = torch.minimum(count, lengths - 1).clamp_min(0) if config.op in SHORTER else count
        return count.masked_fill(count < least, 0)

    def _chosen(self, history: History, count: Tensor, draws: Draws) -> Tensor:
        """The events that are edited, bool `[B, L]`."""
        places = torch.arange(history.items.shape[1], device=count.device).expand_as(history.items)
        if self.config.where == "any":
            drawn = draws(history.items.shape[1]).masked_fill(~history.real, 2.0)
            return drawn.argsort(1).argsort(1) < count[:, None]
        first = self._first(history.lengths, count, draws)[:, None]
        return (places >= first) & (places < first + count[:, None])

    def _first(self, lengths: Tensor, count: Tensor, draws: Draws) -> Tensor:
        """Where a run of `count` events begins `[B]`."""
        room = lengths - count
        if self.config.where == "any":
            drawn = draws(1)[:, 0] * (room + 1)
            return torch.minimum(drawn.long(), room)
        return {"start": torch.zeros_like(room), "middle": room // 2, "end": room}[self.config.where]

    def _resized(self, history: History, count: Tensor, draws: Draws) -> History:
        places = torch.arange(history.items.shape[1], device=count.device).expand_as(history.items)
        keys = places.float().masked_fill(~history.real, torch.inf)
        if self.config.op == "crop":
            front = self._front(count, draws)
            out = (places < front[:, None]) | (places >= (history.lengths - count + front)[:, None])
            return ordered(history.items, keys.masked_fill(out, torch.inf), self.n_items)
        chosen = self._chosen(history, count, draws)
        if self.config.op == "delete":
            return ordered(history.items, keys.masked_fill(chosen, torch.inf), self.n_items)
        twice = (keys + 0.5).masked_fill(~chosen, torch.inf)
        return ordered(torch.cat([history.items] * 2, 1), torch.cat([keys, twice], 1), self.n_items)

    def _front(self, count: Tensor, draws: Draws) -> Tensor:
        """How many of the events that a crop takes are the oldest `[B]`."""
        if self.config.where == "any":
            return torch.minimum((draws(1)[:, 0] * (count + 1)).long(), count)
        return {"start": count, "middle": count // 2, "end": torch.zeros_like(count)}[self.config.where]

    def _moved(self, history: History, count: Tensor, draws: Draws) -> History:
        places, many = torch.arange(history.items.shape[1], device=count.device), count[:, None]
        if self.config.op == "reverse":
            first = self._first(history.lengths, count, draws)[:, None]
            turned = (places >= first) & (places < first + many)
            origin = torch.where(turned, 2 * first + many - 1 - places, places)
            return replace(history, items=history.items.gather(1, origin))
        chosen = self._chosen(history, count, draws)
        drawn = draws(history.items.shape[1]).masked_fill(~chosen, 2.0)
        order = drawn.argsort(1)  # the chosen ones first, in a random order: each takes the place of the one before it
        following = torch.where(places + 1 < many, places + 1, torch.where(places < many, 0, places))
        origin = torch.empty_like(order).scatter_(1, order, order.gather(1, following))
        return replace(history, items=history.items.gather(1, origin))

    def _put(self, at: Shifted, batch: Batch, count: Tensor, draws: Draws) -> History:
        """Other items in the place of events, or between them."""
        history = self.history(batch)
        if self.config.op == "replace":
            chosen = self._chosen(history, count, draws)
            other = self._others(at, batch, history.items, draws)
            return replace(history, items=torch.where(chosen, other, history.items))
        lengths, width = history.lengths[:, None], max(int(count.max()), 1)
        drawn = (draws(width) * (lengths + 1)).long()
        gaps = {"any": torch.minimum(drawn, lengths), "start": 0 * drawn, "end": 0 * drawn + lengths}
        gap = gaps.get(self.config.where, 0 * drawn + lengths // 2)  # [B, K], before the event of that place
        beside = history.items.gather(1, (gap - 1).clamp_min(0))
        absent = torch.arange(width, device=count.device) >= count[:, None]
        other = self._others(at, batch, beside, draws)
        places = torch.arange(history.items.shape[1], device=count.device).expand_as(history.items)
        keys = torch.cat(
            [places.float().masked_fill(~history.real, torch.inf), (gap - 0.5).masked_fill(absent, torch.inf)], 1
        )
        return ordered(torch.cat([history.items, other], 1), keys, self.n_items)

    def _others(self, at: Shifted, batch: Batch, items: Tensor, draws: Draws) -> Tensor:
        """For each item another one, of the same shape."""
        n, device = self.n_items, items.device
        own = items.clamp_max(n - 1)  # padding gets something too, which nobody reads
        if self.config.items == "similar":
            return _nearest(at, batch, own)
        shares = {"popular": self.counts.double(), "unpopular": 1 / (1 + self.counts.double())}
        weights = shares.get(self.config.items, torch.ones(n, dtype=torch.double)).to(device)
        if batch.aimed is not None:
            weights[batch.aimed] = 0
        ends = weights.cumsum(0)
        point = draws(items.shape[1]) * (ends[-1] - weights[own])
        point = point + weights[own] * (point >= ends[own] - weights[own])  # as if the item itself had no share
        return torch.searchsorted(ends, point, right=True).clamp_max(n - 1)


def _first(batch: Batch) -> Batch:
    """The first row of a batch, without its answers."""
    assert batch.history is not None
    items, context = (None if each is None else each[:1] for each in (batch.items, batch.context))
    history = History(batch.history.items[:1], batch.history.lengths[:1])
    return Batch.unlabelled(batch.users[:1], items, context=context, history=history)


def _nearest(at: Shifted, batch: Batch, items: Tensor) -> Tensor:
    """The item nearest to each of some by the cosine of the vectors that histories are read with, of the same shape."""
    with read(at.model) as seen:
        at(_first(batch))
    unit = F.normalize(torch.cat([each.table for each in seen], 1).float(), dim=1)
    distinct, row = torch.unique(items, return_inverse=True)
    found = []
    for part in distinct.split(max(1, CELLS // len(unit))):
        near = unit[part] @ unit.T
        near[torch.arange(len(part), device=unit.device), part] = -torch.inf
        if batch.aimed is not None:
            near[:, batch.aimed] = -torch.inf
        found.append(near.argmax(1))
    return torch.cat(found)[row]
