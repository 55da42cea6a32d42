from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from robustbench_rec.attack import Attack, Scope
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.graph import edges_of
from robustbench_rec.model import RecModel
from robustbench_rec.noise import pairs, repeated
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

OPS = ("drop", "add", "rewire")
GUIDES = ("gradient", "high_degree", "low_degree", "random")
KINDS = ("all", "clicks", "triples")
REDRAWS = 20


@attacks.register
class EdgeAttack(Attack):
    """Drops and adds edges by the slope of the objective in their weights (after Zügner & Günnemann, ICLR 2019).

    op: drop; add clicks; or rewire, which adds as many as it drops. share: of the edges of a kind that the model reads,
    how many go, or come, at most. kind: all, clicks or triples; added are clicks alone, since a triple would need a
    relation (`noise=kg_add` draws some). guide: gradient; high_degree or low_degree, by the product of the degrees of
    both ends; or random, the control. steps: rounds of gradient with equal parts of the share and new slopes in each; 1
    takes all at once. The other guides look at no score and take all at once. pool: clicks that are drawn anew in each
    round for every edge that it adds; half of them are of the items that the goal is about, where it is about some.
    seed: of pool, random and ties.

    Gradient takes edges whose weight lowers the objective to first order, and candidates, at weight 0, whose weight
    raises it; a round that does not raise it is undone, and the parts are halved. A candidate is no event of its user
    in any part of the data, so nothing relevant is added. An added click is an edge and no event: its item is still a
    candidate of the user, and counts where a goal promotes it. Normalisation and attention are those of the changed
    graph. The paper perturbs while the model is trained; here it has its parameters.
    """

    @dataclass
    class Config:
        op: str
        guide: str
        kind: str
        share: float
        steps: int
        pool: int
        seed: int

    threat: ClassVar[Threat] = Threat(
        surface="graph",
        knowledge="white-box",
        scope="all users at once",
        budget="a share of the edges",
    )
    known: Tensor | None = None
    """Keys of what is no candidate, once it is prepared."""
    n_users: int
    n_items: int
    generator: torch.Generator | None = None

    def __init__(self, config: Config) -> None:
        for what, name, choices in (
            ("op of attack 'edges'", config.op, OPS),
            ("guide of attack 'edges'", config.guide, GUIDES),
            ("kind of edges", config.kind, KINDS),
        ):
            if name not in choices:
                raise unknown(what, name, choices)
        if not 0 <= config.share <= 1 or config.steps < 1 or config.pool < 1:
            told = f"attack.share={config.share}, attack.steps={config.steps}, attack.pool={config.pool}"
            raise RrecError(f"{told}: a share, at least one step and one candidate for each edge are needed")
        if config.op == "add" and config.kind == "triples":
            raise RrecError("attack.kind=triples: triples are dropped, not added; noise=kg_add draws some")
        self.config = config

    @property
    def passes(self) -> int:
        return self.config.steps + 1 if self._climbs else 0

    @property
    def declared(self) -> Threat:
        config = self.config
        which = "edges" if config.kind == "all" else config.kind
        told = f"{config.op} {config.share:g} of the {which}"
        if self._climbs:
            return replace(self.threat, budget=told)
        return replace(self.threat, budget=f"{told}, {config.guide.replace('_', ' ')}", knowledge="none")

    def prepared(self, model: RecModel, data: Data) -> Self:
        held = copy(super().prepared(model, data))
        parts = [data.train, data.valid, data.test, *([] if data.hidden is None else [data.hidden])]
        users, items = edges_of(data)
        held.known = torch.unique(torch.cat([*(pairs(each, data) for each in parts), users * data.n_items + items]))
        held.n_users, held.n_items = data.n_users, data.n_items
        return held

    def check(self, model: RecModel) -> None:
        if not model.n_edges:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no graph whose edges can be weighed: nothing to drop")
        if self.config.op != "drop":
            model.extended(torch.empty_like(model.ends[:, :0]))

    def drawing_from(self, generator: torch.Generator) -> "EdgeAttack":
        drawing = copy(self)
        drawing.generator = generator
        return drawing

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        return "all"

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        generator = self.generator or torch.Generator().manual_seed(self.config.seed)
        there = self._there(at.model)
        count = round(self.config.share * int(there.sum()))
        part = -(-count // self.config.steps) if self._climbs else count
        graph = self._pooled(_Graph.of(at), part, batch, generator)
        if not self._climbs:
            return self._edited(graph, self._worth(graph, generator), there, count).left(), batch
        value, slope = _sloped(graph, batch, objective)
        for _ in range(self.config.steps):
            trial = self._edited(graph, slope * (1 - 2 * graph.weights), there, min(part, count - max(graph.changed)))
            trial = self._pooled(trial, part, batch, generator)
            found, along = _sloped(trial, batch, objective)
            if found > value:
                graph, value, slope = trial, found, along
            else:
                part = max(1, part // 2)
        return graph.left(), batch

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Edges that went and that came, and the larger number as a share of the edges of the kind."""
        dropped, added = (worse.dropped, worse.added) if isinstance(worse, Rewired) else (0, 0)
        share = max(dropped, added) / max(1, int(self._there(at.model).sum()))
        told = {"dropped": float(dropped), "added": float(added), "share": share}
        return {name: torch.tensor([each]) for name, each in told.items()}

    @property
    def _climbs(self) -> bool:
        return self.config.guide == "gradient"

    def _there(self, model: RecModel) -> Tensor:
        """The edges of the kind, bool `[n_edges]`."""
        clicks = torch.arange(model.n_edges, device=model.ends.device) < model.clicks.shape[1]
        return {"all": torch.ones_like(clicks), "clicks": clicks, "triples": ~clicks}[self.config.kind]

    def _edited(self, graph: "_Graph", gain: Tensor, there: Tensor, most: int) -> "_Graph":
        """Without the edges, and with the candidates, of the largest gains above 0, at most so many of each."""
        n, used = len(there), graph.weights > 0
        gone = gain[:n].masked_fill(~(used[:n] & there), -torch.inf)
        come = gain[n:].masked_fill(used[n:], -torch.inf)
        sizes = [int((each > 0).sum()) for each in (gone, come)]
        fewer, more = {"drop": (sizes[0], 0), "add": (0, sizes[1]), "rewire": (min(sizes), min(sizes))}[self.config.op]
        weights = graph.weights.index_fill(0, gone.topk(min(most, fewer)).indices, 0.0)
        return graph._replace(weights=weights.index_fill(0, n + come.topk(min(most, more)).indices, 1.0))

    def _worth(self, graph: "_Graph", generator: torch.Generator) -> Tensor:
        """What edges and candidates are taken by, without a look at a score; above 0."""
        drawn = 1 - torch.rand(len(graph.weights), dtype=torch.double, generator=generator).to(graph.weights.device)
        if self.config.guide == "random":
            return drawn
        own = graph.at.model.ends
        come = torch.stack([graph.extra[0], graph.extra[1] + self.n_users]) if graph.extra.shape[1] else graph.extra
        ends = torch.cat([own, come], 1)
        degrees = torch.bincount(own.flatten(), minlength=int(ends.max()) + 1).double()
        product = degrees[ends].prod(0) + drawn  # which breaks ties
        return product if self.config.guide == "high_degree" else 1 / product

    def _pooled(self, graph: "_Graph", part: int, batch: Batch, generator: torch.Generator) -> "_Graph":
        """With new candidates in the place of the old ones."""
        graph = graph.used()
        if self.config.op == "drop":
            return graph
        if self.known is None:
            raise RrecError("edges are added by rrec attack, not in training: take attack.op=drop")
        aims, device = _aims(batch), self.known.device
        known = torch.cat([self.known, graph.extra[0] * self.n_items + graph.extra[1]])
        n, wanted = len(known), self.config.pool * part
        for _ in range(REDRAWS):
            missing = n + wanted - len(known)
            users = torch.randint(self.n_users, (missing,), generator=generator).to(device)
            items = torch.randint(self.n_items, (missing,), generator=generator).to(device)
            if aims is not None:
                some = torch.randint(len(aims), (missing,), generator=generator).to(device)
                items[::2] = aims[some][::2]
            keys = users * self.n_items + items
            known = torch.cat([known, keys[~repeated(keys, known)]])
        keys = known[n:]
        return graph.beside(torch.stack([keys // self.n_items, keys % self.n_items]))


@dataclass(frozen=True, kw_only=True)
class Rewired(Shifted):
    """A model on another graph; dropped, added: edges of it."""

    dropped: int
    added: int


class _Graph(NamedTuple):
    """The graph of a model, and clicks beside it.

    extra: users and items `[2, X]` that are no edges. weights: `[n_edges + X]`, 0 for what is not, or no more, there.
    """

    at: Shifted
    extra: Tensor
    weights: Tensor

    @classmethod
    def of(cls, at: Shifted) -> "_Graph":
        ends = at.model.ends
        return cls(at, ends[:, :0], torch.ones(ends.shape[1], device=ends.device))

    @property
    def own(self) -> int:
        """Edges that the model has."""
        return len(self.weights) - self.extra.shape[1]

    @property
    def changed(self) -> tuple[int, int]:
        """How many edges went and came."""
        return int((self.weights[: self.own] == 0).sum()), int((self.weights[self.own :] > 0).sum())

    def used(self) -> "_Graph":
        """Without the clicks of weight 0 beside it."""
        kept = self.weights[self.own :] > 0
        return _Graph(
            self.at, self.extra[:, kept], torch.cat([self.weights[: self.own], self.weights[self.own :][kept]])
        )

    def beside(self, clicks: Tensor) -> "_Graph":
        """With more clicks of weight 0 beside it."""
        weights = torch.cat([self.weights, torch.zeros_like(clicks[0], dtype=self.weights.dtype)])
        return _Graph(self.at, torch.cat([self.extra, clicks], 1), weights)

    def point(self, weights: Tensor) -> Shifted:
        """The model on this graph with weights `[n_edges + X]`."""
        if not self.extra.shape[1]:
            return self.at.weighed(weights)
        had = self.at.model.clicks
        users, items = torch.cat([had, self.extra], 1)
        order = (users * (items.max() + 1) + items).argsort()
        index, n = torch.arange(len(weights), device=weights.device), had.shape[1]
        place = torch.cat([torch.cat([index[:n], index[self.own :]])[order], index[n : self.own]])
        return Shifted(self.at.model.extended(self.extra), self.at.delta).weighed(weights[place])

    def left(self) -> Shifted:
        """The model on this graph, where it is another one."""
        graph, (dropped, added) = self.used(), self.changed
        if not dropped + added:
            return self.at
        point = graph.point(graph.weights)
        return Rewired(point.model, point.delta, dropped=dropped, added=added)


def _aims(batch: Batch) -> Tensor | None:
    """Items that the goal is about."""
    if batch.aims is None:
        return None
    items = batch.aims if batch.items is None else batch.items.gather(1, batch.aims)
    return items.unique()  # type: ignore[no-any-return]


def _sloped(graph: _Graph, batch: Batch, objective: Scalar) -> tuple[Tensor, Tensor]:
    """The objective on a graph, and its slope in the weights."""
    leaf = graph.weights.clone().requires_grad_()
    with torch.enable_grad():
        value = objective(graph.point(leaf), batch)
        (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope
