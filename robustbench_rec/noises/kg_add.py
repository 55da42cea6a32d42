from dataclasses import dataclass, replace
from typing import Any

import torch

from robustbench_rec.data import KG
from robustbench_rec.noise import Level, repeated
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise, keys, rows


@noises.register
class KGAdd(KGNoise):
    """False triples of plausible types in the knowledge graph.

    level: as a share of the triples. A false one has head and relation of a random triple and the tail of another one
    with this relation; what is a triple already is left out. Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        order = kg.relations.argsort(stable=True)
        counts = torch.bincount(kg.relations, minlength=kg.n_relations)
        base = torch.randint(len(kg), (self.count(len(kg)),), generator=generator)
        relation = kg.relations[base]
        within = (torch.rand(len(base), generator=generator) * counts[relation]).long()
        other = order[(counts.cumsum(0) - counts)[relation] + within]
        false = replace(rows(kg, base), tails=kg.tails[other])
        false = rows(false, ~repeated(keys(false), keys(kg)))
        joined: dict[str, Any] = {
            name: torch.cat([getattr(kg, name), getattr(false, name)]) for name in ("heads", "relations", "tails")
        }
        return replace(kg, **joined)
