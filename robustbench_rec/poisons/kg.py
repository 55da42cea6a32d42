from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class KnowledgeGraph(Shilling):
    """Targets beside items that share facts with them in a knowledge graph (after Anelli et al., ESWC 2020: SAShA).

    Items are drawn by Σ over the shared (relation, entity) of 1 / (items that have it), and uniformly where that is not
    enough; the paper fills with the most similar items of a random, an average or a bandwagon profile. An entity counts
    whichever end of a triple it is. Where no target is linked, all are drawn uniformly.
    """

    @dataclass
    class Config(Shill):
        pass

    rates = ("highest", "item")

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        kg, n = view.data.kg, view.data.n_items
        if kg is None:
            raise RrecError(f"poison=kg needs a knowledge graph, which dataset '{view.data.name}' does not have")
        items, others = torch.cat([kg.heads, kg.tails]), torch.cat([kg.tails, kg.heads])
        relations = torch.cat([kg.relations, kg.relations + kg.n_relations])
        known = items < n
        items, facts = items[known], (relations * kg.n_entities + others)[known]
        _, facts, sizes = torch.unique(facts, return_inverse=True, return_counts=True)
        worth = torch.isin(items, view.pushed).float() / sizes[facts]
        of_fact = torch.zeros(len(sizes), device=view.device).index_add_(0, facts, worth)
        weights = torch.zeros(n, device=view.device).index_add_(0, items, of_fact[facts])
        weights = weights.masked_fill(~view.open, -1)
        return view.pushed[:0], sample(weights, view.n, view.room, draw)
