import logging
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
from robustbench_rec.model import RecModel
from robustbench_rec.noise import repeated
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

OPS = ("drop", "add", "rewire")
GUIDES = ("gradient", "high_degree", "low_degree", "random")
KINDS = ("all", "clicks", "triples")
REDRAWS = 20
log = logging.getLogger(__name__)


@attacks.register
class EdgeAttack(Attack):
    """Drops and adds edges by the slope of the objective in their weights (after Zügner & Günnemann, ICLR 2019).

    op: drop, add, or rewire, which adds as many as it drops. kind: all edges, clicks or triples. share: of these, as
    the model reads them, how many go, or come, at most. guide: gradient; high_degree or low_degree, by the product of
    the degrees of both ends; or random, the control. steps: rounds of gradient with equal parts of the share and new
    slopes in each; 1 takes all at once. The other guides look at no score and take all at once. pool: candidates that
    are drawn anew in each round for every edge that it adds. seed: of pool, random and ties.

    Gradient takes edges whose weight lowers the objective to first order, and candidates, at weight 0, whose weight
    raises it; a round that does not raise it is undone, and the parts are halved. Candidates are clicks and triples in
    proportion to the edges. A click is no event of its user in any part of the data, so nothing relevant is added; half
    are of the items that the goal is about, where it is about some. An added click is an edge and no event: its item
    can still be shown to the user, and counts where a goal promotes it. A triple has head and relation of one and the
    tail of another with this relation. Normalisation and attention are those of the changed graph. The paper perturbs
    while the model is trained; here it has its parameters, unless it is part of a training, which knows the training
    events alone and adds none of these.
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
    events: Tensor | None = None
    """Clicks that are no candidates `[3, N]`, once it is prepared."""
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
        users, items = (torch.cat([getattr(each, name) for each in parts]) for name in ("users", "items"))
        held.events = torch.stack([users, torch.zeros_like(users), items + data.n_users])
        held.n_users, held.n_items = data.n_users, data.n_items
        return held

    def check(self, model: RecModel) -> None:
        if not self._there(model).any():
            name = type(model).__module__.rpartition(".")[2]
            what = self.config.kind if model.n_edges else "edges"
            raise RrecError(f"model '{name}' has no graph whose {what} can be weighed: nothing to {self.config.op}")
        if self.config.op != "drop":
            model.extended(model.edges[:, :0])

    def drawing_from(self, generator: torch.Generator) -> "EdgeAttack":
        drawing = copy(self)
        drawing.generator = generator
        return drawing

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        return "all"

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        generator = self.generator or torch.Generator().manual_seed(self.config.seed)
        there = self._there(at.model)
        count = int(self.config.share * int(there.sum()) + 1e-9)  # at most the share, whatever that rounds to
        if self.config.share and not count:
            log.warning(
                "attack.share=%g of %d edges is less than one: none is changed", self.config.share, int(there.sum())
            )
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
        clicks = model.edges[1] == 0
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
        own = graph.at.model.edges[[0, 2]]
        ends = torch.cat([own, graph.extra[[0, 2]]], 1)
        degrees = torch.bincount(own.flatten(), minlength=int(ends.max()) + 1).double()
        product = degrees[ends].prod(0) + drawn  # which breaks ties
        return product if self.config.guide == "high_degree" else 1 / product

    def _pooled(self, graph: "_Graph", part: int, batch: Batch, generator: torch.Generator) -> "_Graph":
        """With new candidates in the place of the old ones."""
        graph = graph.used()
        if self.config.op == "drop":
            return graph
        assert self.events is not None, "it is not prepared"
        edges, pool = graph.at.model.edges, graph.extra
        there = edges[:, self._there(graph.at.model)]
        for _ in range(REDRAWS):
            missing = self.config.pool * part - (pool.shape[1] - graph.extra.shape[1])
            if not missing:
                break
            drawn = self._drawn(there, missing, batch.aimed, generator)
            keys = _keys(torch.cat([self.events, edges, pool, drawn], 1))
            fresh = ~repeated(keys[len(keys) - missing :], keys[: len(keys) - missing])
            pool = torch.cat([pool, drawn[:, fresh]], 1)
        return graph.beside(pool[:, graph.extra.shape[1] :])

    def _drawn(self, edges: Tensor, count: int, aims: Tensor | None, generator: torch.Generator) -> Tensor:
        """So many clicks and triples, in proportion to those among the edges `[3, count]`."""
        triples = edges[:, edges[1] > 0]
        n = count - round(count * triples.shape[1] / edges.shape[1])
        users, items = (torch.randint(size, (n,), generator=generator) for size in (self.n_users, self.n_items))
        if aims is not None:
            items[::2] = aims.cpu()[torch.randint(len(aims), (n,), generator=generator)][::2]
        clicks = torch.stack([users, torch.zeros_like(users), items + self.n_users]).to(edges.device)
        if n == count:
            return clicks
        base = torch.randint(triples.shape[1], (count - n,), generator=generator).to(edges.device)
        order, counts = triples[1].argsort(stable=True), torch.bincount(triples[1])
        heads, relations, _ = triples[:, base]
        within = (torch.rand(count - n, generator=generator).to(edges.device) * counts[relations]).long()
        tails = triples[2, order[(counts.cumsum(0) - counts)[relations] + within]]
        return torch.cat([clicks, torch.stack([heads, relations, tails])], 1)


@dataclass(frozen=True, kw_only=True)
class Rewired(Shifted):
    """A model on another graph; dropped, added: edges of it."""

    dropped: int
    added: int


class _Graph(NamedTuple):
    """The graph of a model, and edges beside it that it does not have.

    extra: these `[3, X]`. weights: `[n_edges + X]`, 0 for what is not, or no more, there.
    """

    at: Shifted
    extra: Tensor
    weights: Tensor

    @classmethod
    def of(cls, at: Shifted) -> "_Graph":
        edges = at.model.edges
        return cls(at, edges[:, :0], torch.ones(edges.shape[1], device=edges.device))

    @property
    def own(self) -> int:
        """Edges that the model has."""
        return len(self.weights) - self.extra.shape[1]

    @property
    def changed(self) -> tuple[int, int]:
        """How many edges went and came."""
        return int((self.weights[: self.own] == 0).sum()), int((self.weights[self.own :] > 0).sum())

    def used(self) -> "_Graph":
        """Without the edges of weight 0 beside it."""
        kept = self.weights[self.own :] > 0
        return _Graph(
            self.at, self.extra[:, kept], torch.cat([self.weights[: self.own], self.weights[self.own :][kept]])
        )

    def beside(self, edges: Tensor) -> "_Graph":
        """With more edges of weight 0 beside it."""
        weights = torch.cat([self.weights, torch.zeros_like(edges[0], dtype=self.weights.dtype)])
        return _Graph(self.at, torch.cat([self.extra, edges], 1), weights)

    def point(self, weights: Tensor) -> Shifted:
        """The model on this graph with weights `[n_edges + X]`."""
        if not self.extra.shape[1]:
            return self.at.weighed(weights)
        order = _keys(torch.cat([self.at.model.edges, self.extra], 1)).argsort(stable=True)
        return Shifted(self.at.model.extended(self.extra), self.at.delta).weighed(weights[order])

    def left(self) -> Shifted:
        """The model on this graph, where it is another one."""
        graph, (dropped, added) = self.used(), self.changed
        if not dropped + added:
            return self.at
        point = graph.point(graph.weights)
        return Rewired(point.model, point.delta, dropped=dropped, added=added)


def _keys(edges: Tensor) -> Tensor:
    """By head, tail and relation, in the order of a model's edges."""
    heads, relations, tails = edges.unbind()
    return (heads * (tails.max() + 1) + tails) * (relations.max() + 1) + relations


def _sloped(graph: _Graph, batch: Batch, objective: Scalar) -> tuple[Tensor, Tensor]:
    """The objective on a graph, and its slope in the weights."""
    leaf = graph.weights.clone().requires_grad_()
    with torch.enable_grad():
        value = objective(graph.point(leaf), batch)
        (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope
