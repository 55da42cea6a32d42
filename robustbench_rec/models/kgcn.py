"""KGCN: a user's view of the knowledge graph around an item."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import KG, Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.graph import Relational
from robustbench_rec.lookup import rows
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import RecModel, check_penalties
from robustbench_rec.models import models
from robustbench_rec.shifted import Site

AGGREGATORS = ("sum", "concat", "neighbor")
CELLS = 2**23  # numbers of a layer's largest tensor held at once while the whole catalogue is scored: 32 MiB

Projected = tuple[Tensor, Tensor]  # what a node gives to itself, and to the nodes that it is a neighbour of


@models.register
class KGCN(RecModel):
    """Knowledge graph convolutional network: items as a user sees their neighbours (Wang et al., WWW 2019).

    dim: size of all vectors. layers: hops. neighbors: entities drawn around each entity, once, by neighbor_seed; with
    replacement where there are fewer. aggregator: sum, concat or neighbor. l2: weight of ½‖·‖² of all tables and
    matrices, added to the mean loss of a batch.

    A neighbour counts by the softmax of the mean of u ⊙ r over the neighbours of its entity; edges go both ways with
    one relation; ReLU stands after each layer but the last, tanh after the last. As in the published code the weighted
    neighbours are averaged, not summed as in the paper, which shrinks them by the number of neighbours; on Last.FM the
    sum is no better. Differences from that code: negatives are drawn anew every epoch; an entity without a triple has
    no neighbourhood. Edges that are weighed are those that were drawn from either end; without one, the others that
    were drawn are left, and none can be added, since nobody need draw it. The paper's data come by dataset.linked_only
    and split=random, its protocol is protocol=clicks.
    """

    @dataclass
    class Config:
        dim: int
        layers: int
        neighbors: int
        neighbor_seed: int
        aggregator: str
        l2: float

    needs: ClassVar[frozenset[str]] = frozenset({"kg"})
    loss: ClassVar[str] = "bce"
    body: ClassVar[tuple[str, ...]] = ("entity", "relation", "layers")
    newcomers: ClassVar[tuple[str, ...]] = ("user.weight",)

    tails: Tensor
    relations: Tensor
    known: Tensor
    inverse: Tensor
    weights: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2")
        if config.aggregator not in AGGREGATORS:
            raise unknown("aggregator of kgcn", config.aggregator, AGGREGATORS)
        if min(config.dim, config.layers, config.neighbors) < 1 or config.neighbor_seed < 0:
            raise RrecError(
                f"kgcn with dim={config.dim}, layers={config.layers}, neighbors={config.neighbors}, "
                f"neighbor_seed={config.neighbor_seed}: sizes are at least 1, the seed is not negative"
            )
        assert data.kg is not None
        self.config, self.n_items, self.entity_ids = config, data.n_items, data.kg.entity_ids
        self.user = nn.Embedding(data.n_users, config.dim)
        self.entity = nn.Embedding(data.kg.n_entities, config.dim)
        self.relation = nn.Embedding(max(data.kg.n_relations, 1), config.dim)  # where there is none, nothing reads it
        self.layers = nn.ModuleList(_Project(config.dim, config.aggregator) for _ in range(config.layers))
        self.sites = nn.ModuleList(Site() for _ in self.layers)
        self.widths = {f"sites.{number}": config.dim for number in range(config.layers)}
        self.meeting = Meeting(listed=False)
        for table in (self.user, self.entity, self.relation):
            nn.init.xavier_uniform_(table.weight)
        for name, each in _neighbors(data.kg, config.neighbors, config.neighbor_seed).items():
            self.register_buffer(name, each, persistent=False)
        self.register_buffer(
            "weights", torch.ones(()), persistent=False
        )  # of the neighbours [E, K], unless all count 1

    def encode(self) -> Projected:
        projected: Projected = self.layers[0](self.entity.weight)
        return projected

    def forward(self, batch: Batch, encoded: Projected) -> Output:
        users = rows(self.user.weight, batch.users)  # [B, D]
        interest = users @ self.relation.weight.T / self.config.dim  # [B, R]
        if batch.items is None:
            return Output(self._catalogue(users, interest, encoded), {"user": users})
        items = self._items(interest, batch.items, encoded)  # [B, C, D]
        scores = torch.einsum("bd,bcd->bc", self.meeting.user(users), self.meeting.item(items))
        return Output(scores, {"user": users, "item": items})

    @torch.no_grad()
    def relational(self, user: int) -> Relational:
        entities = torch.arange(len(self.tails), device=self.tails.device)
        interest = self.user.weight[[user]] @ self.relation.weight.T / self.config.dim
        counted = self._weights(interest, entities[None])[0].flatten()
        places, edge = self._edges
        weights = torch.zeros(len(places), device=places.device).index_add(0, edge, counted)
        tails, relations, inverse = (each.flatten()[places] for each in (self.tails, self.relations, self.inverse))
        layers = [weights] * self.config.layers
        return Relational(places // self.config.neighbors, relations, tails, inverse, layers, None, self.entity_ids)

    def without(self, gone: Tensor) -> dict[str, Tensor]:
        return {"weights": (~gone[self._edges[1]]).float().view_as(self.tails)}

    @property
    def edges(self) -> Tensor:
        (keys, _), kinds, shift = self._triples, self.relation.num_embeddings, self.user.num_embeddings
        heads, tails = keys // kinds // len(self.tails), keys // kinds % len(self.tails)
        return torch.stack([heads + shift, keys % kinds + 1, tails + shift])

    def weighed(self, weights: Tensor) -> dict[str, Tensor]:
        drawn = self.known.nonzero().squeeze(1)
        each = weights[self._triples[1]].view(len(drawn), -1)
        return {"weights": torch.ones_like(self.tails, dtype=weights.dtype).index_copy(0, drawn, each)}

    @property
    def _triples(self) -> tuple[Tensor, Tensor]:
        """Keys of the triples that are drawn from either end, and which is at each place of entities that have any."""
        heads = torch.arange(len(self.tails), device=self.tails.device)[:, None].expand_as(self.tails)
        first, last = torch.where(self.inverse, self.tails, heads), torch.where(self.inverse, heads, self.tails)
        keys = (first * len(self.tails) + last) * self.relation.num_embeddings + self.relations
        found, triple = torch.unique(keys[self.known], return_inverse=True)
        return found, triple

    @property
    def _edges(self) -> tuple[Tensor, Tensor]:
        """Where each of the different edges `[E]` is drawn first, and which of them is at each place `[n · K]`."""
        heads = torch.arange(len(self.tails), device=self.tails.device)[:, None]
        keys = (heads * len(self.tails) + self.tails) * self.relation.num_embeddings + self.relations
        keys = (2 * keys + self.inverse).flatten()
        found, edge = torch.unique(keys, return_inverse=True)
        places = torch.arange(len(keys), device=keys.device)
        first = torch.full_like(found, len(keys)).scatter_reduce(0, edge, places, "amin")
        return first, edge

    def user_states(self, batch: Batch, encoded: Projected) -> Tensor:
        return rows(self.user.weight, batch.users)

    def item_states(self, items: Tensor, encoded: Projected) -> Tensor:
        return rows(self.entity.weight, items)

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        if not self.config.l2:
            return 0.0
        weights = [each for each in self.parameters() if each.ndim > 1]
        return 0.5 * self.config.l2 * torch.stack([each.square().sum() for each in weights]).sum()

    def _items(self, interest: Tensor, items: Tensor, encoded: Projected) -> Tensor:
        """Vectors of candidates `[B, C]`, `[B, C, D]`, each from the tree of its neighbours.

        A tree of `layers` levels is a row, level by level, so that the k neighbours of node i are 1 + i·k … k + i·k.
        """
        levels = [items[..., None]]  # [B, C, 1], [B, C, K], [B, C, K²] …
        for _ in self.layers:
            levels.append(self.tails[levels[-1]].flatten(2))
        tree = torch.cat(levels, 2)
        inner = tree[..., : sum(each.shape[2] for each in levels[:-1])]  # those that have neighbours in the tree
        weights = self._weights(interest, inner)  # [B, C, I, K]
        n = inner.shape[2]
        own, around = (rows(each, tree) for each in encoded)  # [B, C, T, D]
        states = own
        for index, level in enumerate(reversed(levels[:-1])):
            if index:
                own, around = self.layers[index](states)
            near = around[:, :, 1 : 1 + n * self.config.neighbors].unflatten(2, (n, -1))  # [B, C, n, K, D]
            mixed = torch.einsum("bcnk,bcnkd->bcnd", weights[:, :, :n], near)
            states = self.sites[index](self._activation(index)(own[:, :, :n] + self._mean(mixed)))
            n -= level.shape[2]
        return states.squeeze(2)

    def _catalogue(self, users: Tensor, interest: Tensor, encoded: Projected) -> Tensor:
        """Scores `[B, n_items]`, some users at a time unless someone asks for the activations of all."""
        n = self.n_items if len(self.layers) == 1 else len(self.tails)
        size = max(1, CELLS // (n * max(self.config.dim, self.config.neighbors)))
        if not all(each.idle for each in self.sites.modules() if isinstance(each, Site)):
            size = len(users)
        parts = zip(users.split(size), interest.split(size), strict=True)
        return torch.cat([torch.einsum("bd,bnd->bn", some, self._every(likes, encoded)) for some, likes in parts])

    def _every(self, interest: Tensor, encoded: Projected) -> Tensor:
        """Vectors of all items `[B, n_items, D]`.

        The trees of a user's items share their nodes, so each entity is computed once. In the first layer the
        neighbours are the same for all users: a small matrix product for each entity.
        """
        own, around = encoded
        states = own
        for index, site in enumerate(self.sites):
            n = self.n_items if index == len(self.layers) - 1 else len(self.tails)
            near, weights = self.tails[:n], self._weights(interest, torch.arange(n, device=interest.device)[None])
            if index:
                own, around = self.layers[index](states)
                mixed = torch.einsum("bnk,bnkd->bnd", weights, around[:, near])
            else:
                mixed = torch.bmm(weights.transpose(0, 1), around[near]).transpose(0, 1)
            states = site(self._activation(index)(own[..., :n, :] + self._mean(mixed)))  # [B, n, D]
        return states

    def _weights(self, interest: Tensor, entities: Tensor) -> Tensor:
        """Of the neighbours of entities `[B, …]` for each user, `[B, …, K]`: softmax, 0 where there is no neighbour."""
        related = self.relations[entities]  # [B, …, K]
        found = interest.gather(1, related.flatten(1).expand(len(interest), -1)).view(-1, *related.shape[1:])
        shares = found.softmax(-1) * self.known[entities, None]
        if not self.weights.ndim:
            return shares
        parts = shares * self.weights[entities]
        total = parts.sum(-1, keepdim=True)
        return parts / torch.where(total > 0, total, 1.0)

    def _mean(self, mixed: Tensor) -> Tensor:
        """Of weighted neighbours that have been summed."""
        return mixed / self.config.neighbors

    def _activation(self, index: int) -> Callable[[Tensor], Tensor]:
        return torch.tanh if index == len(self.layers) - 1 else F.relu


class _Project(nn.Module):
    """The linear part of a layer, before neighbours are averaged: of a vector as itself, and as a neighbour."""

    def __init__(self, dim: int, aggregator: str) -> None:
        super().__init__()
        self.aggregator = aggregator
        self.weight = nn.Parameter(torch.empty(dim, 2 * dim if aggregator == "concat" else dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Projected:
        weight = self.weight
        own, around = weight.chunk(2, 1) if self.aggregator == "concat" else (weight, weight)
        near = x @ around.T
        if self.aggregator == "neighbor":
            return torch.zeros_like(near) + self.bias, near
        return x @ own.T + self.bias, near


def _neighbors(kg: KG, count: int, seed: int) -> dict[str, Tensor]:
    """tails, relations, inverse: `count` neighbours of each entity `[E, K]`; known: whether it has any `[E]`."""
    device = kg.heads.device
    if not len(kg.heads):
        nothing = torch.zeros(kg.n_entities, count, dtype=torch.long, device=device)
        return {"tails": nothing, "relations": nothing.clone(), "inverse": nothing > 0, "known": nothing[:, 0] > 0}
    heads, tails = torch.cat([kg.heads, kg.tails]), torch.cat([kg.tails, kg.heads])
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(heads), generator=draw).to(device)
    order = order[heads[order].argsort(stable=True)]  # edges by head, at random within one
    sizes = torch.bincount(heads, minlength=kg.n_entities)[:, None]  # [E, 1]
    again = (torch.rand(kg.n_entities, count, generator=draw).to(device) * sizes).long()
    places = torch.where(sizes < count, again, torch.arange(count, device=device))
    edges = (sizes.cumsum(0) - sizes + places).clamp_max(len(heads) - 1)
    chosen = order[edges]
    known = sizes.squeeze(1) > 0
    return {
        "tails": tails[chosen],
        "relations": kg.relations.repeat(2)[chosen],
        "inverse": chosen >= len(kg.heads),
        "known": known,
    }
