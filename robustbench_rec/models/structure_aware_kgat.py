"""Attention over users, items and entities that also looks at the structure of the graph."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.graph import Csr, pointers, product, sums
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import check_penalties
from robustbench_rec.models import models
from robustbench_rec.models._knowledge import Collaborative, Edges, softmax, union
from robustbench_rec.models._structure import STRUCTURE, structural
from robustbench_rec.shifted import Site

READOUTS = ("concat", "weighted")


@models.register
class StructureAwareKGAT(Collaborative):
    """Knowledge graph attention that sees structure: learnt attention plus degrees, relation frequencies and overlaps.

    After the abstract of Lyu et al. (arXiv:2510.10109, 2025); there is no code and the formulas are a reconstruction:
    a(h, r, t) = LeakyReLU(vᵀ[W e_h ‖ W e_t ‖ e_r]) + bᵀφ(h, r, t), softmax over the edges of h, then a bi-interaction
    of e_h and W' Σ a e_t, dropout, layer normalisation. Edges are the training events and the triples, each with its
    inverse. Gradients flow through the attention, unlike in KGAT.

    dim: size of all vectors. layers: hops. structure: false leaves bᵀφ out, which is a plain relational GAT. φ,
    standardised over the edges: log degree of the tail, log frequency of the relation, Jaccard index and Adamic-Adar
    index of the neighbourhoods of head and tail (0 without triangles). neighbors: edges kept of each node, drawn once
    by neighbor_seed; null for all. readout: node vectors and layers side by side (concat) or summed with learnt weights
    (weighted), layers at unit length as in KGAT, without which they overfit. dropout: of messages. l2: weight of ½‖·‖²
    of the node vectors in a batch, divided by its size.

    Edges with other weights count by these in the softmax. φ is that of the edges whose weight is above 0, constant in
    the weights. Where neighbors are drawn, an edge is what one of its ends has drawn: without it the others that were
    drawn are left, φ stays that of the whole graph, and no edge can be added, since nobody need draw it.
    """

    @dataclass
    class Config:
        dim: int
        layers: int
        structure: bool
        neighbors: int | None
        neighbor_seed: int
        readout: str
        dropout: float
        l2: float

    needs: ClassVar[frozenset[str]] = frozenset({"kg"})
    loss: ClassVar[str] = "bce"
    body: ClassVar[tuple[str, ...]] = ("node", "relation", "attentions", "updates")

    starts: Tensor
    weights: Tensor
    feature_structure: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2")
        if config.readout not in READOUTS:
            raise unknown("readout of structure_aware_kgat", config.readout, READOUTS)
        sizes = [config.dim, config.layers, *([] if config.neighbors is None else [config.neighbors])]
        if min(sizes) < 1 or config.dim < 2 or config.neighbor_seed < 0 or not 0 <= config.dropout < 1:
            raise RrecError(
                f"structure_aware_kgat with dim={config.dim}, layers={config.layers}, neighbors={config.neighbors}, "
                f"neighbor_seed={config.neighbor_seed}, dropout={config.dropout}: "
                "sizes are at least 1, dim at least 2, the seed is not negative, dropout is in [0, 1)"
            )
        assert data.kg is not None
        self.config, self.l2 = config, config.l2
        self.n_users, self.n_read = data.n_users, data.n_users + data.n_items  # users and items come first
        self.n_nodes = data.n_users + data.kg.n_entities
        self.entity_ids = data.kg.entity_ids
        self.n_relations = 2 * (1 + data.kg.n_relations)
        self.node = nn.Embedding(self.n_nodes, config.dim)
        self.relation = nn.Embedding(self.n_relations, config.dim)
        self._graph(union(data, data.kg))
        width = len(STRUCTURE) if config.structure else 0
        self.attentions = nn.ModuleList(_Attention(config.dim, width) for _ in range(config.layers))
        self.updates = nn.ModuleList(_Update(config.dim, config.dropout) for _ in range(config.layers))
        self.mixture = nn.Parameter(torch.zeros(1 + config.layers)) if config.readout == "weighted" else None
        self.propagated, self.dots = Site(), Meeting(listed=True)
        self.widths = {f"updates.{number}.site": config.dim for number in range(config.layers)}
        self.ends = {"propagated": (1 if config.readout == "weighted" else 1 + config.layers) * config.dim}
        for table in (self.node, self.relation):
            nn.init.xavier_uniform_(table.weight)

    def encode(self) -> tuple[Tensor, Tensor]:
        first, *later = [each[: self.n_read] for each in self._states()]
        kept = [first, *(F.normalize(each, dim=1) for each in later)]
        if self.mixture is None:
            read = torch.cat(kept, 1)
        else:
            read = torch.einsum("l,lnd->nd", self.mixture.softmax(0), torch.stack(kept))
        final = self.propagated(read)
        return final[: self.n_users], final[self.n_users :]

    @torch.no_grad()
    def shares(self) -> list[Tensor]:
        before = list(self._states())[:-1]
        logits = [self._logits(layer, x, len(self.heads)) for layer, x in enumerate(before)]
        return [softmax(each, self.heads, self.n_nodes, self.weights) for each in logits]

    def without(self, gone: Tensor) -> dict[str, Tensor]:
        kept = torch.ones_like(self.heads, dtype=torch.bool)
        kept[self._triples[gone]] = False
        found = self._laid(Edges(*(each[kept] for each in self.directed)))
        found |= {"weights": self.weights[kept]} if self.weights.ndim else {}
        if not self.config.structure:
            return found
        if self.config.neighbors is not None:  # structure of the graph that the neighbours were drawn from
            return {**found, "feature_structure": self.feature_structure[kept]}
        there = kept & (self.weights > 0) if self.weights.ndim else kept
        return {**found, "feature_structure": structural(self.directed, self.n_nodes, there)[kept]}

    @property
    def edges(self) -> Tensor:
        keys, half = self._both[0], self.n_relations // 2
        return torch.stack([keys // half // self.n_nodes, keys % half, keys // half % self.n_nodes])

    def weighed(self, weights: Tensor) -> dict[str, Tensor]:
        each = weights[self._both[1]]
        if not self.config.structure or self.config.neighbors is not None:
            return {"weights": each}
        return {"weights": each, "feature_structure": structural(self.directed, self.n_nodes, each.detach() > 0)}

    def extended(self, edges: Tensor) -> Self:
        if self.config.neighbors is not None:
            told = f"model.neighbors={self.config.neighbors}"
            raise RrecError(
                f"structure_aware_kgat with {told}: an added edge need not be drawn; train with null to add"
            )
        twin = self.twin()
        twin._graph(self.directed.and_more(edges, self.n_relations, self.n_nodes))
        return twin

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        """Keys of the edges, one for both directions, and which one is at each place; the same triple twice is one."""
        half = self.n_relations // 2
        back = self.relations >= half
        first, last = torch.where(back, self.tails, self.heads), torch.where(back, self.heads, self.tails)
        keys = (first * self.n_nodes + last) * half + self.relations % half
        found, edge = torch.unique(keys, return_inverse=True)
        return found, edge

    def _states(self) -> Iterator[Tensor]:
        """Node vectors before and after each layer `[n_nodes, D]`; after the last one of users and items only."""
        x = self.node.weight
        yield x
        for index, update in enumerate(self.updates):
            size, n = ("read", self.n_read) if index == self.config.layers - 1 else ("all", self.n_nodes)
            order, ends = self.get_buffer(f"{size}_order"), self.get_buffer(f"{size}_ends")
            count = len(order)
            graph = (self.heads[:count], self.tails[:count], self.starts[: n + 1], order, ends)
            logits = self._logits(index, x, count)
            if self.weights.ndim:
                around = _weighted(logits, x, graph, self.weights[:count])
            else:
                around = _Attend.apply(logits, x, graph)  # type: ignore[no-untyped-call]
            x = update(x[:n], around)
            yield x

    def _logits(self, layer: int, x: Tensor, count: int) -> Tensor:
        """Of the first edges, before the softmax."""
        structure = self.feature_structure[:count] if self.config.structure else None
        found: Tensor = self.attentions[layer](x, self.relation.weight, self.directed.first(count), structure)
        return found

    def _graph(self, edges: Edges) -> None:
        every = torch.ones_like(edges.heads, dtype=torch.bool)
        phi = structural(edges, self.n_nodes, every) if self.config.structure else None
        if self.config.neighbors is not None:
            kept = _sample(edges.heads, self.config.neighbors, self.config.neighbor_seed)
            edges = Edges(*(each[kept] for each in edges))
            phi = None if phi is None else phi[kept]
        if phi is not None:
            self.register_buffer("feature_structure", phi, persistent=False)
        for name, each in self._laid(edges).items():
            self.register_buffer(name, each, persistent=False)
        self.register_buffer("weights", torch.ones((), device=edges.heads.device), persistent=False)  # [E] unless all 1

    def _laid(self, edges: Edges) -> dict[str, Tensor]:
        starts = pointers(edges.heads, self.n_nodes)
        graph = {**edges._asdict(), "starts": starts}
        for size, n in (("all", self.n_nodes), ("read", self.n_read)):
            graph[f"{size}_order"], graph[f"{size}_ends"] = edges.first(int(starts[n])).turned(self.n_nodes)
        return graph


class _Attention(nn.Module):
    """Logits of edges: what W, v and b of a layer make of them. width: of φ, 0 for none."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.score = nn.Linear(3 * dim, 1, bias=False)
        self.structure = nn.Linear(width, 1, bias=False) if width else None
        for each in (self.project, self.score, self.structure):
            if each is not None:
                nn.init.xavier_uniform_(each.weight)

    def forward(self, x: Tensor, relations: Tensor, edges: Edges, structure: Tensor | None) -> Tensor:
        """Of E edges between vectors `[N, D]`, given those of relations `[R, D]`; every node is projected once."""
        head, tail, related = self.score.weight.chunk(3, 1)  # [1, D]
        ends = torch.cat([head, tail]) @ self.project.weight @ x.T  # [2, N]
        heads, named, tails = edges
        logits = ends[0].index_select(0, heads) + ends[1].index_select(0, tails)
        logits = F.leaky_relu(logits + (relations @ related.T).squeeze(1).index_select(0, named))
        if self.structure is None or structure is None:
            return logits
        return logits + (structure @ self.structure.weight.T).squeeze(1)


class _Update(nn.Module):
    """What becomes of a node, given the weighted sum of what is around it."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim, bias=False)
        self.sum, self.product = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm, self.dropout, self.site = nn.LayerNorm(dim), Dropout(dropout), Site()
        for each in (self.value, self.sum, self.product):
            nn.init.xavier_uniform_(each.weight)
        for each in (self.sum, self.product):
            nn.init.zeros_(each.bias)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        around = self.value(around)
        mixed = F.leaky_relu(self.sum(x + around)) + F.leaky_relu(self.product(x * around))
        moved: Tensor = self.site(self.norm(self.dropout(mixed)))
        return moved


class _Attend(torch.autograd.Function):
    """Sums over the tails of each head, weighted by the softmax of the edges' logits.

    With α = softmax(a) and y_h = Σ α x_t, the gradient in a of an edge is α (g_h · x_t − g_h · y_h).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, graph: tuple[Tensor, ...]) -> Tensor:
        heads, tails, starts, _, _ = graph
        ctx.graph, ctx.dtypes = graph, (logits.dtype, x.dtype)
        single = torch.promote_types(x.dtype, torch.float32)
        weights, x = softmax(logits.to(single), heads, len(starts) - 1), x.to(single)
        found = sums(x, Csr(starts, tails, weights))
        ctx.save_for_backward(weights, x, found)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        weights, x, found = ctx.saved_tensors
        heads, tails, starts, order, ends = ctx.graph
        outer = outer.to(x.dtype)
        to_x = sums(outer, Csr(ends, heads.index_select(0, order), weights.index_select(0, order)))
        dots = _dots(outer, x, Csr(starts, tails))
        to_logits = weights * (dots - (outer * found).sum(1).index_select(0, heads))
        return to_logits.to(ctx.dtypes[0]), to_x.to(ctx.dtypes[1]), None


def _dots(left: Tensor, right: Tensor, places: Csr) -> Tensor:
    """Dot products of row h of `left` with row t of `right` for every place (h, t) of a matrix, `[nnz]`."""
    size, nothing = (len(left), len(right)), left.new_zeros(len(places.columns))  # garbage times β = 0 could be NaN
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        sparse = torch.sparse_csr_tensor(places.starts, places.columns, nothing, size, check_invariants=False)
    found: Tensor = torch.sparse.sampled_addmm(sparse, left.contiguous(), right.t(), beta=0.0).values()
    return found  # on a CPU twenty times faster than rows gathered and multiplied


def _weighted(logits: Tensor, x: Tensor, graph: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """What `_Attend` gives, where edges count by weights; differentiable in these too."""
    heads, tails, starts, order, ends = graph
    shares = softmax(logits.float() if x.dtype != torch.double else logits, heads, len(starts) - 1, weights)
    backward = Csr(ends, heads.index_select(0, order), shares.index_select(0, order))
    return product(x, Csr(starts, tails, shares), backward)


def _sample(heads: Tensor, count: int, seed: int) -> Tensor:
    """Which edges stay when each head keeps at most `count`, drawn at random, ascending."""
    order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed)).to(heads.device)
    order = order[heads[order].argsort(stable=True)]
    place = torch.arange(len(heads), device=heads.device) - pointers(heads, int(heads.max()) + 1)[heads]
    return order[place < count].sort().values
