from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import clicked


@cleans.register
class RGCF(Clean):
    """Edges between users and items that are unlike in structure leave the graph (after Tian et al., SIGIR 2022: RGCF).

    share: of the edges, those with the lowest cosine. A user and an item are compared by audiences, without learned
    parameters: an item is the users who have it, a user is the sum over own items of these, normalised, the user's own
    click left out of the item it is compared with. dim: audiences are projected on so many random directions, drawn by
    seed. A user keeps an edge. Only the graph changes, the training events stay, and a model that reads no graph
    is refused. Differences from the paper: a share instead of a threshold, no weights on what is left, no added edges
    and no contrastive term.
    """

    @dataclass
    class Config:
        share: float
        dim: int
        seed: int

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not (0 <= config.share < 1 and config.dim >= 1 and config.seed >= 0):
            raise RrecError(
                f"clean.share={config.share}, clean.dim={config.dim}, clean.seed={config.seed}: share in [0, 1), "
                "dim >= 1 and seed >= 0 are needed"
            )

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        users, items = clicked(data)
        likeness = structural(users, items, data.n_users, data.n_items, self.config.dim, self.config.seed)
        order = likeness.argsort(stable=True)
        best = torch.full((data.n_users,), float("-inf"), dtype=likeness.dtype)
        best = best.scatter_reduce(0, users, likeness, "amax")
        order = order[likeness[order] < best[users[order]]]  # all but the best of each user
        gone = order[: round(self.config.share * len(users))]
        left = torch.ones(len(users), dtype=torch.bool).index_fill(0, gone, False)
        edges = torch.stack([users[left], items[left]]) if len(gone) else None
        return Finding(torch.zeros(len(data.train), dtype=torch.bool), {"edges": len(gone)}, edges=edges)


def structural(users: Tensor, items: Tensor, n_users: int, n_items: int, dim: int, seed: int) -> Tensor:
    """Cosine of the audiences of both ends of each edge `[E]`, after a random projection."""
    axes = torch.randn(n_users, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.double) / dim**0.5
    counts = torch.bincount(items, minlength=n_items).clamp_min(1).double()
    empty = torch.zeros(n_items, dim, dtype=torch.double)
    audience = empty.index_add(0, items, axes[users])
    share = audience / counts.sqrt()[:, None]
    own = torch.zeros(n_users, dim, dtype=torch.double).index_add(0, users, share[items])
    # without the edge itself, which would make every two ends alike
    there, here = audience[items] - axes[users], own[users] - share[items]
    return F.cosine_similarity(there, here, dim=1)
