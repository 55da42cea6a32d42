"""What every user did, in order."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Data, Interactions


class Histories:
    """The events of some parts of the data, a run of them for each user, ordered by time.

    Without times, the parts follow one another, and each is in its own order.
    """

    def __init__(self, *parts: Interactions, n_users: int, n_items: int) -> None:
        users, items = (torch.cat([getattr(each, name) for each in parts]) for name in ("users", "items"))
        times = [each.times for each in parts if each.times is not None]
        order = torch.cat(times).argsort(stable=True) if len(times) == len(parts) else torch.arange(len(users))
        order = order.to(users.device)
        order = order[users[order].argsort(stable=True)]
        self.items, self.n_items = items[order], n_items
        counts = torch.bincount(users, minlength=n_users)
        self.starts = F.pad(counts.cumsum(0), (1, 0))  # [n_users + 1]

    def __len__(self) -> int:
        return len(self.items)

    def question(self, users: Tensor, items: Tensor | None, window: int) -> Batch:
        """A batch to score, with the latest `window` events of each user (0: for a model that reads none)."""
        return Batch.unlabelled(users, items, history=self.of(users, window) if window else None)

    def of(self, users: Tensor, window: int) -> History:
        """The latest `window` events of each user."""
        return self.between(self.starts[users], self.starts[users + 1], window)

    def between(self, first: Tensor, end: Tensor, window: int) -> History:
        """The latest `window` of the events first … end-1 of `items`, a row for each pair `[B]`."""
        lengths = (end - first).clamp(0, window)
        places = torch.arange(max(int(lengths.max()) if len(lengths) else 0, 1), device=first.device)  # [L]
        at = (end - lengths)[:, None] + places
        inside = places < lengths[:, None]
        items = self.items[at.clamp_max(len(self.items) - 1)].masked_fill(~inside, self.n_items)
        return History(items, lengths)


def overtaken(data: Data) -> float:
    """Share of the held-out events before which their user's history does not end; 0 where times are not known."""
    latest, early, count = torch.full((data.n_users,), -(2**62), device=data.train.users.device), 0, 0
    for before, part in ((data.train, data.valid), (data.valid, data.test)):
        if before.times is None or part.times is None:
            return 0.0
        latest = latest.scatter_reduce(0, before.users, before.times, "amax")
        early, count = early + int((part.times < latest[part.users]).sum()), count + len(part)
    return early / max(1, count)
