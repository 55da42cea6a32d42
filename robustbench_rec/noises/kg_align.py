from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.errors import RrecError
from robustbench_rec.noise import Level, cycle, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise


@noises.register
class KGAlign(KGNoise):
    """Items that are linked to the wrong entities of the knowledge graph, as by matching of titles.

    level: share of the linked items, at least two; they take one another's entities, with their names and triples.
    Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        linked = int(kg.linked.sum())
        if linked < 2:
            raise RrecError(f"noise '{self.name}' needs two linked items, the knowledge graph has {linked}")
        chosen = drawn(kg.linked.float(), max(2, self.count(linked)), generator)
        index = torch.arange(kg.n_entities)  # of each entity, where it stands now
        index[chosen] = chosen[cycle(len(chosen), generator)]
        names = [kg.entity_ids[each] for each in index.argsort().tolist()]
        return replace(kg, heads=index[kg.heads], tails=index[kg.tails], entity_ids=names)
