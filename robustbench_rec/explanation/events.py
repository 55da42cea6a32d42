"""The events of a user that a score comes from."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.edits import known, lookups, ordered, read
from robustbench_rec.explanation.base import Units
from robustbench_rec.graph import Csr, clicked
from robustbench_rec.recommendation import FoldIn, Recommender

PORTION = 32
"""Questions that are asked together."""


class Latest(Units):
    """The events of the history that a model of sequences reads; without one, the others move up."""

    kind: ClassVar[str] = "events"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        self.batch = asked.question(self.users)
        self.history = known(self.batch)
        self.items = self.history.items[0, : int(self.history.lengths[0])]
        self.said = [self.names.item(each) for each in self.items.tolist()]

    @torch.no_grad()
    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        places = torch.arange(len(self), device=kept.device).double()
        found = []
        for some in kept.split(PORTION):
            keys = places.expand(len(some), -1).masked_fill(~some, torch.inf)
            if len(self):
                history = ordered(self.items.expand(len(some), -1), keys, self.asked.data.n_items)
            else:
                history = self.history
            found.append(self.asked.at(replace(self.batch, users=self.users.repeat(len(some)), history=history)).scores)
        return torch.cat(found).float()

    def slopes(self) -> Tensor | None:
        if not lookups(self.asked.model):
            return None
        with torch.enable_grad(), read(self.asked.model) as readings:
            score = replace(self.asked.at)(self.batch).scores[0, self.item]
            slopes = torch.autograd.grad(score, [each.rows for each in readings], allow_unused=True)
        parts = [
            (each.rows * slope).sum(2)[0] for each, slope in zip(readings, slopes, strict=True) if slope is not None
        ]
        return torch.stack(parts).sum(0).detach()[: len(self)]


class Owned(Units):
    """The training items of the user, in a model that maps a row of items to scores.

    Where nothing was learnt by gradient the map is linear, and the slope of an item is its score alone.
    """

    kind: ClassVar[str] = "events"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        rows = asked.model.training_rows
        assert rows is not None
        self.items = rows.rows(self.users).columns
        self.said = [self.names.item(each) for each in self.items.tolist()]

    @torch.no_grad()
    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
        owned = Csr(starts, self.items.expand(len(kept), -1)[kept])
        return self.asked.model.of_rows(owned, self.asked.at.encoded).float()

    def slopes(self) -> Tensor | None:
        if next(self.asked.model.parameters(), None) is not None:
            return None
        each = torch.eye(len(self), dtype=torch.bool, device=self.items.device)
        return self.scores(each)[:, self.item]


class Edges(Units):
    """The user's clicks in the graph that the model reads; without one, the others are normalised again."""

    kind: ClassVar[str] = "events"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        users, _, items = asked.model.edges
        self.edges = (users == user).nonzero().squeeze(1)
        self.said = [self.names.item(each) for each in (items[self.edges] - asked.data.n_users).tolist()]

    @torch.no_grad()
    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        batch, found = self.asked.question(self.users), []
        for each in kept:
            weights = torch.ones(self.asked.model.n_edges, device=kept.device)
            weights[self.edges[~each]] = 0
            found.append(self.asked.at.weighed(weights)(batch).scores)
        return torch.cat(found).float()

    def slopes(self) -> Tensor:
        weights = torch.ones(self.asked.model.n_edges, device=self.edges.device, requires_grad=True)
        with torch.enable_grad():
            score = self.asked.at.weighed(weights)(self.asked.question(self.users)).scores[0, self.item]
            (slope,) = torch.autograd.grad(score, weights)
        return slope[self.edges]


class Refitted(Units):
    """The training events that the user's own vector comes from, which is learnt again without some of them.

    A surrogate: the model itself reads no event. The items stay as they are.
    """

    kind: ClassVar[str] = "events"

    def __init__(self, asked: Recommender, user: int, item: int) -> None:
        super().__init__(asked, user, item)
        users, items = clicked(asked.data)
        self.items = items[users == user]
        self.said = [self.names.item(each) for each in self.items.tolist()]
        self.found = FoldIn(asked.at, asked.data)
        with torch.no_grad():
            own = asked.at(asked.question(self.users)).scores[0, item].item()
        again = self.scores(torch.ones(1, len(self), dtype=torch.bool, device=self.users.device))[0, item].item()
        self.note = (
            "this model reads no event: the user's vector is learnt again from the events that are kept, items held "
            f"fixed (the item scores {again:.4f} so, {own:.4f} in the model)"
        )

    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        n_items, found = self.asked.data.n_items, []
        had = torch.zeros(1, n_items, dtype=torch.bool, device=kept.device)
        had[0, self.items] = True
        for some in kept:  # each by itself: what is found together is found less exactly
            liked = torch.zeros_like(had)
            liked[0, self.items] = some
            point, users = self.found(liked, ~had)
            with torch.no_grad():
                found.append(point(Batch.unlabelled(users)).scores)
        return torch.cat(found).float()
