from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.noise import Level, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise, changed, rows


@noises.register
class KGRewire(KGNoise):
    """Triples of the knowledge graph that end at each other's tails, within a relation, so that types stay plausible.

    level: share of the triples. Where the result is a triple already, it stays what it was. Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        chosen = drawn(torch.ones(len(kg)), self.count(len(kg)), generator)  # in a random order
        chosen = chosen[kg.relations[chosen].argsort(stable=True)]
        other = chosen[torch.randperm(len(chosen), generator=generator)]
        other = other[kg.relations[other].argsort(stable=True)]
        return changed(kg, chosen, replace(rows(kg, chosen), tails=kg.tails[other]))
