from dataclasses import dataclass

import torch

from robustbench_rec.data import KG
from robustbench_rec.noise import Level, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import checked
from robustbench_rec.noises._triples import KGNoise, rows


@noises.register
class KGDrop(KGNoise):
    """Triples of the knowledge graph that are missing.

    level: share of the triples. bias: none, or degree for those in proportion to the degrees of head and tail,
    multiplied. Events stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        weights = torch.ones(len(kg))
        if self.bias == "degree":
            degrees = torch.bincount(torch.cat([kg.heads, kg.tails]), minlength=kg.n_entities).float()
            weights = degrees[kg.heads] * degrees[kg.tails]
        kept = torch.ones(len(kg), dtype=torch.bool)
        kept[drawn(weights, self.count(len(kg)), generator)] = False
        return rows(kg, kept)
