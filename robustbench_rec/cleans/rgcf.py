from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import Csr, clicked, pointers, sums
from robustbench_rec.progress import Bar

CELLS = 2**24
TINY = 1e-12


@cleans.register
class RGCF(Clean):
    """Edges between users and items that are unlike in structure leave the graph (after Tian et al., SIGIR 2022: RGCF).

    share: of the edges, those with the lowest cosine. A user and an item are compared by audiences, without learned
    parameters: an item is the users who have it, a user is the sum over own items of these, normalised, the user's own
    click left out of the item it is compared with. A user keeps an edge. Only the graph changes, the training events
    stay, and a model that reads no graph is refused. Differences from the paper: a share instead of a threshold, no
    weights on what is left, no added edges and no contrastive term. It takes about 3 ns for each pair of an edge and a
    user (Gowalla: a minute or more).
    """

    @dataclass
    class Config:
        share: float

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not 0 <= config.share < 1:
            raise RrecError(f"clean.share={config.share}: must be in [0, 1)")

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        users, items = clicked(data)
        likeness = structural(users, items, data.n_users, data.n_items)
        order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
        order = order[likeness[order].argsort(stable=True)]  # edges are sorted by user: ties must not tell them apart
        best = torch.full((data.n_users,), float("-inf"), dtype=likeness.dtype)
        best = best.scatter_reduce(0, users, likeness, "amax")
        order = order[likeness[order] < best[users[order]]]  # all but the best of each user
        gone = order[: round(self.config.share * len(users))]
        left = torch.ones(len(users), dtype=torch.bool).index_fill(0, gone, False)
        edges = torch.stack([users[left], items[left]]) if len(gone) else None
        return Finding(torch.zeros(len(data.train), dtype=torch.bool), {"edges": len(gone)}, edges=edges)


def structural(users: Tensor, items: Tensor, n_users: int, n_items: int) -> Tensor:
    """Cosine of the audiences of both ends of each edge `[E]`, the edges sorted by user; 0 where one is empty."""
    had = Csr(pointers(users, n_users), items)
    audience = had.transposed(n_items)
    counts = torch.bincount(items, minlength=n_items).double()
    found = []
    portions = torch.arange(n_users).split(max(1, CELLS // max(n_users, n_items)))
    with Bar("rgcf", total=1, steps=len(portions)) as bar:
        for few in bar.each(0, portions):
            rows = had.rows(few)
            share = rows.dense(n_items).double() / counts.clamp_min(1).sqrt()  # [B, n_items]
            own = sums(share.T, had)  # [n_users, B], the audiences of what a user has, added up
            met = sums(own, audience)  # [n_items, B], of these what is in the audience of each item
            user, item = torch.repeat_interleave(rows.starts.diff()), rows.columns
            count, both = counts[item], met[item, user]
            # of the audience without the user, and of the sum without the audience of the item
            dot = both - count.sqrt() - own[few[user], user] + count.rsqrt()
            sizes = (count - 1) * (own.square().sum(0)[user] - 2 * both * count.rsqrt() + 1).clamp_min(0)
            found.append(torch.where(sizes > TINY, dot * sizes.clamp_min(TINY).rsqrt(), 0.0))
    return torch.cat(found)
