import logging
from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import KG
from robustbench_rec.noise import Level, repeated
from robustbench_rec.noises import noises
from robustbench_rec.noises._triples import KGNoise, keys, rows, together

log = logging.getLogger(__name__)
PATIENCE = 20  # draws without a new one


@noises.register
class KGAdd(KGNoise):
    """False triples of plausible types in the knowledge graph.

    level: as a share of the triples. A false one has head and relation of a random triple and the tail of another one
    with this relation, and is drawn again where it is a triple already; a warning says where there are too few others.
    Events stay.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        order = kg.relations.argsort(stable=True)
        counts = torch.bincount(kg.relations, minlength=kg.n_relations)
        starts, count, grown, still = counts.cumsum(0) - counts, self.count(len(kg)), kg, 0
        while (left := len(kg) + count - len(grown)) and still < PATIENCE:
            base = torch.randint(len(kg), (left,), generator=generator)
            relation = kg.relations[base]
            within = (torch.rand(left, generator=generator) * counts[relation]).long()
            false = replace(rows(kg, base), tails=kg.tails[order[starts[relation] + within]])
            false = rows(false, ~repeated(keys(false), keys(grown)))
            still = 0 if len(false) else still + 1
            grown = together(grown, false)
        if left:
            log.warning("noise kg_add: %d of %d false triples were found, others are hardly there", count - left, count)
        return grown
