from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import clicked
from robustbench_rec.histories import Histories
from robustbench_rec.shifted import Shifted

CELLS = 2**25


@cleans.register
class GraphDA(Clean):
    """The graph is made anew of a trained model's scores: best items of users, best users of items (GraphDA, SIGIR'23).

    ckpt: a run of `rrec train` on the same data, LightGCN in the paper; its scores decide. items, users: edges from
    every user to so many items, and from every item to so many users. threshold: only edges with a score above (null:
    all). Only the graph changes, the training events stay, and a model that reads no graph is refused. Without the
    paper's edges between users and between items.
    """

    @dataclass
    class Config:
        ckpt: str | None
        items: int
        users: int
        threshold: float | None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.items < 0 or config.users < 0 or not config.items + config.users:
            raise RrecError(f"clean.items={config.items}, clean.users={config.users}: not negative, and not both 0")

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        if self.config.ckpt is None:
            raise RrecError("clean=graphda needs clean.ckpt=<run directory>, a run of rrec train on the same data")
        place = None if data.place is None else str(data.place)
        teacher = checkpoint.load(self.config.ckpt, data_dir=place, device=torch.device("cpu"), key="clean.ckpt")
        if teacher.data.fingerprint != data.fingerprint:
            raise RrecError(
                f"clean.ckpt={self.config.ckpt} was trained on data {teacher.data.fingerprint[:12]}, these are "
                f"{data.fingerprint[:12]}: train it with the same dataset, prepare, split, noise and poison"
            )
        edges = rebuilt(Shifted(teacher.model.requires_grad_(False).eval()), teacher.data, self.config)
        if not edges.shape[1]:
            raise RrecError(f"clean.threshold={self.config.threshold}: no score is above it")
        old, new = (users * data.n_items + items for users, items in (clicked(data), edges))
        kept = int(torch.isin(old, new).sum())
        counts = {"edges_gone": len(old) - kept, "edges_new": len(new) - kept}
        return Finding(torch.zeros(len(data.train), dtype=torch.bool), counts, edges=edges)


@torch.no_grad()
def rebuilt(at: Shifted, data: Data, config: GraphDA.Config) -> Tensor:
    """Users and items of the best edges `[2, E]`, sorted."""
    history = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
    most, keys = min(config.users, data.n_users), []
    best = torch.empty(0, data.n_items), torch.empty(0, data.n_items, dtype=torch.long)
    for users in torch.arange(data.n_users).split(max(1, CELLS // data.n_items)):
        scores = at(history.question(users, None, at.model.window)).scores.float()  # [B, n_items]
        if config.threshold is not None:
            scores = scores.masked_fill(scores <= config.threshold, float("-inf"))
        values, items = scores.topk(min(config.items, data.n_items), 1)
        keys.append((users[:, None] * data.n_items + items)[values.isfinite()])
        values, owners = torch.cat([best[0], scores]), torch.cat([best[1], users[:, None].expand_as(scores)])
        values, place = values.topk(min(most, len(values)), 0)
        best = values, owners.gather(0, place)
    columns = torch.arange(data.n_items).expand_as(best[1])
    keys.append((best[1] * data.n_items + columns)[best[0].isfinite()])
    found = torch.unique(torch.cat(keys))
    return torch.stack([found // data.n_items, found % data.n_items])
