from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.noise import Level, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._swaps import swapped
from robustbench_rec.noises._triples import KGNoise, keys


@noises.register
class KGRewire(KGNoise):
    """Triples of the knowledge graph that end at each other's tails, within a relation, so that types stay plausible.

    level: share of the triples. Two of them swap their tails where neither result is a triple, so that no degree
    changes; where too few of the drawn ones can, others do, and a warning says when the level is not met. Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        starts = (kg.heads * kg.n_relations + kg.relations) * kg.n_entities
        order = drawn(torch.ones(len(kg)), len(kg), generator)
        return replace(
            kg, tails=swapped(starts, kg.tails, kg.relations, keys(kg), order, self.count(len(kg)), generator)
        )
