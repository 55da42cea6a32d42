from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import bipartite, mirrored, normalised, product
from robustbench_rec.lookup import touched
from robustbench_rec.meeting import Meeting
from robustbench_rec.model import check_penalties
from robustbench_rec.models import models
from robustbench_rec.models._propagated import Propagated
from robustbench_rec.shifted import Site


@models.register
class LightGCN(Propagated):
    """Light graph convolution: vectors averaged over hops of the user-item graph (He et al., SIGIR 2020).

    dim: size of the vectors. layers: number of hops; 0 is matrix factorisation. l2: weight of ½‖·‖² of the vectors of a
    batch before propagation, summed over its events and divided by their number. As in the paper: symmetric
    normalisation, the mean over all layers, the first included, no dropout. Xavier-uniform initialisation.
    """

    @dataclass
    class Config:
        dim: int
        layers: int
        l2: float

    body: ClassVar[tuple[str, ...]] = ("item",)

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "l2")
        if config.dim < 1 or config.layers < 0:
            raise RrecError(f"lightgcn with dim={config.dim}, layers={config.layers}: dim >= 1 and layers >= 0 needed")
        self.l2 = config.l2
        self.user = nn.Embedding(data.n_users, config.dim)
        self.item = nn.Embedding(data.n_items, config.dim)
        self.graph = normalised(data)
        self.sites = nn.ModuleList(Site() for _ in range(config.layers))
        self.dots = Meeting(listed=True)
        for table in (self.user, self.item):
            nn.init.xavier_uniform_(table.weight)

    def encode(self) -> tuple[Tensor, Tensor]:
        graph = self.graph.csr
        total = x = torch.cat([self.user.weight, self.item.weight])  # [users + items, D]
        for site in self.sites:
            x = site(product(x, graph, graph))
            total = total + x
        users, items = (total / (1 + len(self.sites))).split([self.user.num_embeddings, self.item.num_embeddings])
        return users, items

    @property
    def edges(self) -> Tensor:
        half = len(self.graph.columns) // 2
        users, items = torch.repeat_interleave(self.graph.starts.diff())[:half], self.graph.columns[:half]
        return torch.stack([users, torch.zeros_like(users), items])

    def weighed(self, weights: Tensor) -> dict[str, Tensor]:
        graph, n, (users, _, items) = self.graph.csr, self.user.num_embeddings, self.edges
        degrees = torch.zeros(len(graph.starts) - 1, device=weights.device)
        degrees = degrees.index_add(0, users, weights).index_add(0, items, weights)
        roots = degrees.clamp_min(1).rsqrt()
        values = weights * roots[users] * roots[items]
        return {"graph.values": torch.cat([values, values[mirrored(graph, n)]])}

    def extended(self, edges: Tensor) -> Self:
        twin, n_users, n_items = self.twin(), self.user.num_embeddings, self.item.num_embeddings
        users, _, items = torch.cat([self.edges, edges], 1)
        twin.graph = bipartite(users, items - n_users, n_users=n_users, n_items=n_items)
        return twin

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        return self.l2 / len(batch) * touched(batch, self.user.weight, self.item.weight) if self.l2 else 0.0
