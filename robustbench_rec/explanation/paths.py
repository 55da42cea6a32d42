"""Paths of a knowledge graph from what a user had to an item."""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.explanation.base import Units
from robustbench_rec.graph import Csr, Relational, clicked, pointers
from robustbench_rec.recommendation import Recommender
from robustbench_rec.shifted import Shifted

BEAM = 2**15
"""Unfinished paths that are followed further, those that count most."""


@dataclass(frozen=True)
class Path:
    """One path. nodes: entities from the item of the history to the item. score: product of its weights.

    parallel: paths by other relations through the same entities, none of which counts more.
    """

    nodes: tuple[int, ...]
    relations: tuple[str, ...]
    score: float
    parallel: int
    said: str


class Paths(Units):
    """The triples on the paths from items that the user had to the item, as the model weighs them.

    A path has up to `hops` triples and no entity twice. What it counts is the product of the attention along it, the
    first layer at the item of the history and one layer further with each triple (the last one again, where the model
    has fewer layers), times what the item of the history counts for the user, where the user is a node. The triples are
    left out for everybody, and what remains is normalised again. Alone are paths without any other triple.
    """

    kind: ClassVar[str] = "paths"

    def __init__(self, asked: Recommender, user: int, item: int, *, hops: int) -> None:
        super().__init__(asked, user, item)
        self.graph = asked.model.relational(user)
        users, items = clicked(asked.data)
        ends = torch.zeros(len(self.graph.names), dtype=torch.bool, device=items.device)
        ends[items[users == user]] = True
        ends[item] = False
        layers, lengths = len(self.graph.layers), range(1, 1 + hops)
        if hops > layers:
            self.note = (
                f"this model reads {layers} hop{'s' if layers > 1 else ''} at once: the attention of a longer path is "
                "that of its triples, not of one pass along it"
            )
        self.walks = [_walks(self.graph, item, ends, length) for length in lengths]  # edges [P, length], values [P]
        self.values = torch.cat([values for _, values in self.walks])
        order = self.values.argsort(descending=True, stable=True)
        self.group = self._grouped()  # of paths through the same entities [P]
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        first = torch.full((int(self.group.max()) + 1 if len(order) else 0,), len(order), device=order.device)
        self.order = order[first.scatter_reduce(0, self.group, place, "amin").sort().values]  # the best of each group
        self._label()

    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        model, copy, found = self.asked.model, deepcopy(self.asked.model), []
        batch = self.asked.question(self.users)
        for each in kept:
            gone = torch.full((len(self.graph.heads),), alone, device=each.device)
            gone[self.used] = ~each[self.unit]
            for name, buffer in model.without(gone).items():
                setattr(copy, name, buffer)
            with torch.no_grad():
                found.append(Shifted(copy, self.asked.at.delta)(batch).scores)
        return torch.cat(found).float()

    def importance(self, method: str) -> Tensor:
        """What the paths through each triple count together, whatever the method."""
        total = torch.zeros(len(self), dtype=torch.double, device=self.users.device)
        for edges, values in self.walks:
            total.index_add_(0, self.unit_of[edges].flatten(), values.repeat_interleave(edges.shape[1]))
        return total

    def explained(self, order: Tensor, top: int) -> Tensor:
        """The triples of the first `top` paths, and of those through the same entities."""
        shown = torch.isin(self.group, self.group[self.order[:top]])
        parts = shown.split([len(values) for _, values in self.walks])
        told = [self.unit_of[edges[some]].flatten() for (edges, _), some in zip(self.walks, parts, strict=True)]
        found: Tensor = torch.cat(told).unique()
        return found

    def best(self, top: int) -> list[Path]:
        """The paths that count most, one through the same entities."""
        return [self._told(each) for each in self.order[:top].tolist()]

    def _grouped(self) -> Tensor:
        """Numbers of the paths' entities `[P]`, equal where all of them are."""
        found, start = [], 0
        for edges, values in self.walks:
            groups = self.graph.tails[edges].unique(dim=0, return_inverse=True)[1] if len(values) else edges[:, 0]
            found.append(groups + start)
            start += len(values)
        joined: Tensor = torch.cat(found).unique(return_inverse=True)[1]
        return joined

    def _label(self) -> None:
        """Units are triples, whichever way they are walked: `unit_of` edge `[E]`, and their names."""
        graph, n = self.graph, len(self.graph.names)
        low, high = torch.minimum(graph.heads, graph.tails), torch.maximum(graph.heads, graph.tails)
        key = (graph.relations * n + low) * n + high
        keys = key[torch.cat([edges.flatten() for edges, _ in self.walks])].unique()
        place = torch.searchsorted(keys, key).clamp_max(max(len(keys) - 1, 0))
        same = keys[place] == key if len(keys) else torch.zeros_like(key, dtype=torch.bool)
        self.used = same.nonzero().squeeze(1)  # edges, both ways
        self.unit = place[self.used]
        self.unit_of = torch.full_like(key, -1).masked_scatter(same, self.unit)
        first = torch.full_like(keys, len(key)).scatter_reduce(0, self.unit, self.used, "amin").tolist()
        self.said = [self._step(edge) for edge in first]

    def _edges(self, path: int) -> Tensor:
        """Of one path, from the item."""
        for edges, _ in self.walks:
            if path < len(edges):
                return edges[path]
            path -= len(edges)
        raise IndexError(path)

    def _step(self, edge: int) -> str:
        return f"{self._named(int(self.graph.heads[edge]))} {self._arrow(edge, back=False)} " + self._named(
            int(self.graph.tails[edge])
        )

    def _arrow(self, edge: int, *, back: bool) -> str:
        """The relation with its direction, from head to tail, or walked back from tail to head."""
        name = self.asked.data.kg.relation_ids[int(self.graph.relations[edge])] if self.asked.data.kg else ""
        return f"←{name}–" if bool(self.graph.inverse[edge]) != back else f"–{name}→"

    def _named(self, node: int) -> str:
        return self.names.item(node) if node < self.asked.data.n_items else self.graph.names[node]

    def _told(self, path: int) -> Path:
        edges = self._edges(path).tolist()
        nodes = [self.item, *(int(self.graph.tails[edge]) for edge in edges)]
        words = [f"you had {self._named(nodes[-1])}"]
        relations = []
        for edge, node in zip(reversed(edges), reversed(nodes[:-1]), strict=True):
            words += [self._arrow(edge, back=True), self._named(node)]
            relations.append(self._arrow(edge, back=True).strip("–←→"))
        parallel = int((self.group == self.group[path]).sum()) - 1
        return Path(tuple(reversed(nodes)), tuple(relations), float(self.values[path]), parallel, " ".join(words))


def _walks(graph: Relational, item: int, ends: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Walks of so many edges from an item to marked ends, no entity twice: edges `[P, length]`, what each counts."""
    device, n = graph.heads.device, len(graph.names)
    table = Csr(pointers(graph.heads, n), torch.arange(len(graph.heads), device=device))
    nodes = torch.tensor([[item]], device=device)
    edges = torch.zeros(1, 0, dtype=torch.long, device=device)
    values = torch.ones(1, dtype=torch.double, device=device)
    for hop in range(length):
        near = table.rows(nodes[:, -1])
        row, edge = torch.repeat_interleave(near.starts.diff()), near.columns
        tails = graph.tails[edge]
        fresh = (nodes[row] != tails[:, None]).all(1)
        if hop == length - 1:
            fresh &= ends[tails]
        row, edge, tails = row[fresh], edge[fresh], tails[fresh]
        values = values[row] * graph.layers[min(length - 1 - hop, len(graph.layers) - 1)][edge].double()
        nodes, edges = torch.cat([nodes[row], tails[:, None]], 1), torch.cat([edges[row], edge[:, None]], 1)
        if len(values) > BEAM:
            kept = values.topk(BEAM).indices
            nodes, edges, values = nodes[kept], edges[kept], values[kept]
    if graph.owned is not None and len(values):
        values = values * graph.owned[nodes[:, -1]].double()
    counted = values > 0
    return edges[counted], values[counted]
