from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.errors import RrecError
from robustbench_rec.noise import Level, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise, changed, rows


@noises.register
class KGRelation(KGNoise):
    """Triples of the knowledge graph under a wrong relation.

    level: share of the triples; each takes another relation, uniform. Where the result is a triple already, it stays
    what it was. Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        if kg.n_relations < 2:
            raise RrecError(f"noise '{self.name}' needs a knowledge graph with two relations, this one has one")
        chosen = drawn(torch.ones(len(kg)), self.count(len(kg)), generator)
        shift = torch.randint(1, kg.n_relations, (len(chosen),), generator=generator)
        relations = (kg.relations[chosen] + shift) % kg.n_relations
        return changed(kg, chosen, replace(rows(kg, chosen), relations=relations))
