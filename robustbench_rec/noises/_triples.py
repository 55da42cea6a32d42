"""What noises on the knowledge graph share."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.data import KG, Data
from robustbench_rec.noise import Noise


class KGNoise(Noise):
    """Changes the triples and nothing else, before any inverse edge is built."""

    needs: ClassVar[frozenset[str]] = frozenset({"kg"})

    def change(self, data: Data, generator: torch.Generator) -> Data:
        assert data.kg is not None
        return replace(data, kg=self.triples(data.kg, generator))

    @abstractmethod
    def triples(self, kg: KG, generator: torch.Generator) -> KG:
        """The noisy graph."""


def keys(kg: KG) -> Tensor:
    """A key for each triple `[T]`."""
    return (kg.heads * kg.n_relations + kg.relations) * kg.n_entities + kg.tails


def rows(kg: KG, index: Tensor) -> KG:
    """The triples of the given places."""
    return replace(kg, heads=kg.heads[index], relations=kg.relations[index], tails=kg.tails[index])


def together(one: KG, other: KG) -> KG:
    """The triples of both, which have the same entities and relations."""
    heads, relations, tails = (
        torch.cat([getattr(one, name), getattr(other, name)]) for name in ("heads", "relations", "tails")
    )
    return replace(one, heads=heads, relations=relations, tails=tails)
