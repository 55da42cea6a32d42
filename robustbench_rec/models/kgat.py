"""KGAT: propagation over the union of the interaction graph and the knowledge graph."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.data import KG, Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.graph import Csr, pointers, product
from robustbench_rec.lookup import rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import check_penalties
from robustbench_rec.models import models
from robustbench_rec.models._knowledge import Collaborative, Edges, softmax, union
from robustbench_rec.shifted import Site

AGGREGATORS = ("bi_interaction", "gcn", "graphsage")


@models.register
class KGAT(Collaborative):
    """Knowledge graph attention network: attentive propagation over users, items and entities (Wang et al., KDD 2019).

    dim: size of the node vectors; relation_dim: of the relation space; layers: output size of each propagation layer.
    aggregator: bi_interaction, gcn or graphsage. dropout: of messages, after each layer. l2, kg_l2: weight of ½‖·‖² of
    the node vectors in a batch, divided by its size, in the ranking and in the TransR phase, there of those of
    relations too. kg_batch_size: triples a TransR step. min_triples: entities that are no items and have fewer are left
    out, as when the paper's data were prepared.

    An epoch is all ranking batches, then one pass over all edges with the TransR loss (an optimiser of its own over the
    shared vectors), then one refresh of the attention. In between attention is a constant, as in the published code:
    the relation parameters learn from the TransR loss alone, and no score depends on them directly. Differences from
    that code: attention starts at the softmax of the initial vectors, not at a per-relation mean; every edge counts,
    also when two relations join the same pair; the last layer is computed only where it is read, for users and items;
    negative tails are drawn from all nodes and not checked against true triples; l2 is on the
    node vectors (the normalised layers add a constant to it) and kg_l2 on vectors before they are projected; no vectors
    are taken over from a trained BPR-MF; the negative slope of the activation is 0.01, not TensorFlow's 0.2.
    """

    @dataclass
    class Config:
        dim: int
        relation_dim: int
        layers: list[int]
        aggregator: str
        dropout: float
        l2: float
        kg_l2: float
        kg_batch_size: int
        min_triples: int

    needs: ClassVar[frozenset[str]] = frozenset({"kg"})
    body: ClassVar[tuple[str, ...]] = ("node", "relation", "projection", "sum", "product", "dropout")

    attention: Tensor
    by_relation: Tensor
    relation_counts: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2", "kg_l2")
        if config.aggregator not in AGGREGATORS:
            raise unknown("aggregator of kgat", config.aggregator, AGGREGATORS)
        sizes = {"dim": config.dim, "relation_dim": config.relation_dim, "kg_batch_size": config.kg_batch_size}
        if not config.layers or min(*sizes.values(), *config.layers) < 1 or not 0 <= config.dropout < 1:
            told = ", ".join(f"{key}={value}" for key, value in sizes.items())
            raise RrecError(
                f"kgat with {told}, layers={config.layers}, dropout={config.dropout}: "
                "sizes are at least 1, one layer is needed, dropout is in [0, 1)"
            )
        assert data.kg is not None
        self.config, self.l2 = config, config.l2
        self.n_users, self.n_read = data.n_users, data.n_users + data.n_items  # users and items come first
        kg = _frequent(data.kg, data.n_items, config.min_triples)
        self.n_nodes = data.n_users + kg.n_entities
        self.entity_ids = kg.entity_ids
        self.n_relations = 2 * (1 + kg.n_relations)
        self._lay(union(data, kg))
        self.node = nn.Embedding(self.n_nodes, config.dim)
        self.relation = nn.Embedding(self.n_relations, config.relation_dim)
        self.projection = nn.Parameter(torch.empty(self.n_relations, config.dim, config.relation_dim))
        width = 2 if config.aggregator == "graphsage" else 1
        pairs = list(itertools.pairwise([config.dim, *config.layers]))
        self.sum = nn.ModuleList(nn.Linear(width * a, b) for a, b in pairs)
        self.product = nn.ModuleList(nn.Linear(a, b) for a, b in pairs if config.aggregator == "bi_interaction")
        self.sites = nn.ModuleList(Site() for _ in pairs)
        self.widths = {f"sites.{number}": size for number, size in enumerate(config.layers)}
        self.propagated, self.dots = Site(), Meeting(listed=True)
        self.ends = {"propagated": config.dim + sum(config.layers)}
        self.dropout = Dropout(config.dropout)
        for each in (self.node.weight, self.relation.weight, *self.projection):
            nn.init.xavier_uniform_(each)
        for layer in (*self.sum, *self.product):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.refresh()

    def encode(self) -> tuple[Tensor, Tensor]:
        x = self.node.weight  # [N, D]
        kept = [x[: self.n_read]]
        for index, site in enumerate(self.sites):
            around = self._gather(x, "read" if index == len(self.sites) - 1 else "all")
            x = site(self._aggregate(index, x[: len(around)], around))
            kept.append(F.normalize(x[: self.n_read], dim=1))
        final = self.propagated(torch.cat(kept, 1))  # [users + items, D + sum of layers]
        return final[: self.n_users], final[self.n_users :]

    @property
    def edges(self) -> Tensor:
        there, _ = self._ways
        return torch.stack([self.heads[there], self.relations[there], self.tails[there]])

    def weighed(self, weights: Tensor) -> dict[str, Tensor]:
        each = torch.zeros_like(self.attention).index_add(0, torch.cat(self._ways), weights.repeat(2))
        parts = each * self.attention
        total = torch.zeros(self.n_nodes, device=weights.device).index_add(0, self.heads, parts)
        total = torch.where(total > 0, total, 1.0)  # without an edge, where the slope of a first one stays finite
        return {"attention": parts / total[self.heads]}

    def extended(self, edges: Tensor) -> Self:
        twin = self.twin()
        twin._lay(self.directed.and_more(edges, self.n_relations, self.n_nodes))
        twin.refresh()
        return twin

    @property
    def _ways(self) -> tuple[Tensor, Tensor]:
        """Places of the edges as they are in the data, sorted by head, tail and relation, and of their inverses."""
        inverse = self.n_relations // 2
        there, back = ((self.relations // inverse == way).nonzero().squeeze(1) for way in (0, 1))
        ends = self.heads[there] * self.n_nodes + self.tails[there], self.tails[back] * self.n_nodes + self.heads[back]
        kind = self.relations % inverse
        there = there[torch.argsort(ends[0] * inverse + kind[there], stable=True)]
        return there, back[torch.argsort(ends[1] * inverse + kind[back], stable=True)]

    def shares(self) -> list[Tensor]:
        return [self.attention] * len(self.sites)

    @torch.no_grad()
    def without(self, gone: Tensor) -> dict[str, Tensor]:
        parts = self.attention.clone()
        parts[self._triples[gone]] = 0
        total = torch.zeros(self.n_nodes, device=parts.device).index_add(0, self.heads, parts)
        return {"attention": parts / total[self.heads].clamp_min(torch.finfo(parts.dtype).tiny)}

    def auxiliary(self, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self.heads), generator=generator)
        for chosen in order.split(self.config.kg_batch_size):
            negatives = torch.randint(self.n_nodes, (len(chosen),), generator=generator)
            yield self._transr(chosen.to(self.heads.device), negatives.to(self.heads.device))

    @torch.no_grad()
    def refresh(self) -> None:
        nodes, scores = self.node.weight.detach(), torch.empty_like(self.attention)
        start = 0
        for relation, count in enumerate(self.relation_counts.tolist()):
            edges = self.by_relation[start : start + count]
            start += count
            heads = nodes[self.heads[edges]] @ self.projection[relation]  # [edges, K]
            tails = nodes[self.tails[edges]] @ self.projection[relation]
            scores[edges] = (tails * torch.tanh(heads + self.relation.weight[relation])).sum(1)
        self.attention = softmax(scores, self.heads, self.n_nodes)

    def _lay(self, edges: Edges) -> None:
        """Edges, and what the products and their transposes need."""
        graph = {
            **edges._asdict(),
            "attention": torch.zeros(len(edges.heads), device=edges.heads.device),
            "by_relation": torch.argsort(edges.relations, stable=True),
            "relation_counts": torch.bincount(edges.relations, minlength=self.n_relations),
        }
        starts = pointers(edges.heads, self.n_nodes)
        for size, n in (("all", self.n_nodes), ("read", self.n_read)):
            order, ends = edges.first(int(starts[n])).turned(self.n_nodes)
            graph |= {f"{size}_starts": starts[: n + 1], f"{size}_order": order, f"{size}_ends": ends}
            graph[f"{size}_back"] = edges.heads[order]
        for name, each in graph.items():
            self.register_buffer(name, each, persistent=False)

    def _gather(self, x: Tensor, size: str) -> Tensor:
        """Attention-weighted sum over the neighbours of "all" nodes, or of those that are "read": users and items."""
        starts, order, ends, back = (self.get_buffer(f"{size}_{each}") for each in ("starts", "order", "ends", "back"))
        forward = Csr(starts, self.tails[: len(order)], self.attention[: len(order)])
        backward = Csr(ends, back, self.attention[order])
        return product(x, forward, backward)

    def _aggregate(self, index: int, x: Tensor, around: Tensor) -> Tensor:
        if self.config.aggregator == "bi_interaction":
            added = F.leaky_relu(self.sum[index](x + around))
            return self.dropout(added + F.leaky_relu(self.product[index](x * around)))  # type: ignore[no-any-return]
        joined = x + around if self.config.aggregator == "gcn" else torch.cat([x, around], 1)
        return self.dropout(F.leaky_relu(self.sum[index](joined)))  # type: ignore[no-any-return]

    def _transr(self, edges: Tensor, negatives: Tensor) -> Tensor:
        """softplus(g(h, r, t) − g(h, r, t')), g = ‖W_r (e_h − e_t) + e_r‖², a matmul for each relation."""
        order = torch.argsort(self.relations[edges], stable=True)
        edges, negatives = edges[order], negatives[order]
        relations = self.relations[edges]
        counts = torch.bincount(relations, minlength=self.n_relations).tolist()
        heads, relation = rows(self.node.weight, self.heads[edges]), rows(self.relation.weight, relations)
        tails = [rows(self.node.weight, ends) for ends in (self.tails[edges], negatives)]
        found = []
        for each in tails:
            groups = zip((heads - each).split(counts), self.projection, strict=True)
            projected = torch.cat([group @ weight for group, weight in groups if len(group)])  # [B, K]
            found.append((projected + relation).square().sum(1))
        true, false = found
        size = torch.stack([each.square().sum() for each in (heads, relation, *tails)]).sum()
        return F.softplus(true - false).mean() + self.config.kg_l2 / len(edges) * 0.5 * size


def _frequent(kg: KG, n_items: int, least: int) -> KG:
    """The KG without entities that are no items and have fewer triples; items keep their indices."""
    counts = torch.bincount(torch.cat([kg.heads, kg.tails]), minlength=kg.n_entities)
    counts[:n_items] = least
    kept = counts >= least
    triples = kept[kg.heads] & kept[kg.tails]
    index = kept.cumsum(0) - 1
    return replace(
        kg,
        heads=index[kg.heads[triples]],
        relations=kg.relations[triples],
        tails=index[kg.tails[triples]],
        entity_ids=[kg.entity_ids[each] for each in kept.nonzero().squeeze(1).tolist()],
    )
