import logging
from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.errors import RrecError
from robustbench_rec.noise import Level, drawn, repeated
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise, keys, rows

log = logging.getLogger(__name__)


@noises.register
class KGRelation(KGNoise):
    """Triples of the knowledge graph under a wrong relation.

    level: share of the triples; each takes another relation, uniform. Where the result is a triple already, another
    one is taken in its place; a warning says where there are too few. Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        if kg.n_relations < 2:
            raise RrecError(f"noise '{self.name}' needs a knowledge graph with two relations, this one has one")
        order, count = drawn(torch.ones(len(kg)), len(kg), generator), self.count(len(kg))
        left = count
        while left and len(order):
            chosen, order = order[:left], order[left:]
            shift = torch.randint(1, kg.n_relations, (len(chosen),), generator=generator)
            other = replace(rows(kg, chosen), relations=(kg.relations[chosen] + shift) % kg.n_relations)
            right = ~repeated(keys(other), keys(kg))
            relations = kg.relations.clone()
            relations[chosen[right]] = other.relations[right]
            kg, left = replace(kg, relations=relations), left - int(right.sum())
        if left:
            log.warning("noise kg_relation: %d of %d triples got another relation", count - left, count)
        return kg
