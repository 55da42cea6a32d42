"""Users, items and the entities of a knowledge graph as one graph, which KGAT calls collaborative."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import KG, Data
from robustbench_rec.graph import Relational, edges_of, pointers
from robustbench_rec.lookup import touched
from robustbench_rec.models._propagated import Propagated


class Edges(NamedTuple):
    """Edges in both directions, sorted by head, then tail; each `[E]`.

    Nodes are the users, then the entities (items first). Relation 0 is an event, 1 … the relations of the graph, and
    the same again, counted on, for their inverses.
    """

    heads: Tensor
    relations: Tensor
    tails: Tensor

    def first(self, count: int) -> "Edges":
        """So many of them."""
        return Edges(self.heads[:count], self.relations[:count], self.tails[:count])

    def turned(self, n: int) -> tuple[Tensor, Tensor]:
        """From edges by head to edges by tail `[E]`, and where each of n tails begins there `[n + 1]`."""
        order = self.tails.argsort(stable=True)
        return order, pointers(self.tails[order], n)

    def and_more(self, edges: Tensor, n_relations: int, n: int) -> "Edges":
        """With further ones `[3, m]` and their inverses."""
        heads, relations, tails = edges
        relations = torch.cat([self.relations, relations, relations + n_relations // 2])
        return ordered(torch.cat([self.heads, heads, tails]), relations, torch.cat([self.tails, tails, heads]), n)


def ordered(heads: Tensor, relations: Tensor, tails: Tensor, n: int) -> Edges:
    """Edges between n nodes, sorted."""
    order = (heads * n + tails).argsort(stable=True)
    return Edges(heads[order], relations[order], tails[order])


def union(data: Data, kg: KG) -> Edges:
    """Training events and triples."""
    users, items = edges_of(data)
    heads = torch.cat([users, kg.heads + data.n_users])
    tails = torch.cat([items + data.n_users, kg.tails + data.n_users])
    relations = torch.cat([torch.zeros_like(users), kg.relations + 1])
    relations = torch.cat([relations, relations + 1 + kg.n_relations])
    return ordered(torch.cat([heads, tails]), relations, torch.cat([tails, heads]), data.n_users + kg.n_entities)


def softmax(logits: Tensor, heads: Tensor, n: int, weights: Tensor | None = None) -> Tensor:
    """Over the edges of each head `[E]`, which count by their weights; 0 where all of a head have weight 0."""
    top = torch.full((n,), -torch.inf, dtype=logits.dtype, device=logits.device)
    top = top.scatter_reduce(0, heads, logits.detach(), "amax")
    parts = (logits - top.index_select(0, heads)).exp()
    if weights is None or not weights.ndim:
        return parts / torch.zeros_like(top).index_add(0, heads, parts).index_select(0, heads)
    parts = parts * weights
    total = torch.zeros_like(top).index_add(0, heads, parts)
    return parts / torch.where(total > 0, total, 1.0).index_select(0, heads)


class Collaborative(Propagated):
    """Propagates over the edges `heads`, `relations`, `tails` between all nodes, whose vectors are `node`.

    Of n_nodes, the first n_read are the users and items, whose states are read.
    """

    node: nn.Embedding
    heads: Tensor
    relations: Tensor
    tails: Tensor
    entity_ids: list[str]
    l2: float
    n_users: int
    n_read: int
    n_nodes: int
    n_relations: int

    def shares(self) -> list[Tensor]:
        """What each edge counts, layer by layer, each `[E]`; the edges of a head sum to 1."""
        raise NotImplementedError

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        nodes = self.node.weight
        return self.l2 / len(batch) * touched(batch, nodes, nodes, self.n_users) if self.l2 else 0.0

    @torch.no_grad()
    def relational(self, user: int) -> Relational:
        triples, kinds, layers = self._triples, self.n_relations // 2, self.shares()
        heads, tails, relations = (each[triples] for each in (self.heads, self.tails, self.relations))
        owned = torch.zeros(self.n_read - self.n_users, device=heads.device)
        events = (self.heads == user).nonzero().squeeze(1)
        owned[self.tails[events] - self.n_users] = layers[0][events]
        return Relational(
            heads - self.n_users,
            relations % kinds - 1,
            tails - self.n_users,
            relations >= kinds,
            [each[triples] for each in layers],
            owned,
            self.entity_ids,
        )

    @property
    def directed(self) -> Edges:
        """All edges."""
        return Edges(self.heads, self.relations, self.tails)

    @property
    def _triples(self) -> Tensor:
        """Places of the edges that are no events."""
        return ((self.heads >= self.n_users) & (self.tails >= self.n_users)).nonzero().squeeze(1)
