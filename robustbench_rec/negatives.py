"""Items that a user has nothing to do with."""

from collections.abc import Iterable

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError

BITMAP = 2**27
"""User-item pairs up to which a bit a pair (128 MiB) tells what is owned, 25 times faster than a sorted list does."""


class Negatives:
    """Draws items that a user has no event with in some parts of the data, uniform over the catalogue."""

    def __init__(self, data: Data, parts: Iterable[str] = ("train",)) -> None:
        self.n_items = data.n_items
        owned = [data.part(each).users * self.n_items + data.part(each).items for each in parts]
        self.keys = torch.unique(torch.cat(owned))  # sorted
        self.bitmap = None
        if data.n_users * self.n_items <= BITMAP:
            self.bitmap = torch.zeros(data.n_users * self.n_items, dtype=torch.bool, device=self.keys.device)
            self.bitmap[self.keys] = True
        counts = torch.bincount(self.keys // self.n_items, minlength=data.n_users)
        if bool((counts >= self.n_items).any()):
            user = data.user_ids[int(counts.argmax())]
            raise RrecError(f"user '{user}' has an event with every item: there is no negative to draw")

    def draw(self, users: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`[N, count]` for users `[N]`; a draw that hits an item of the user is drawn again."""
        drawn = self._uniform((len(users), count), generator)
        flat, base = drawn.view(-1), (users * self.n_items).repeat_interleave(count)
        todo = self._owned(base + flat).nonzero().squeeze(1)
        while len(todo):
            flat[todo] = self._uniform((len(todo),), generator)
            todo = todo[self._owned(base[todo] + flat[todo])]
        return drawn

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.n_items, shape, generator=generator).to(self.keys.device)

    def _owned(self, keys: Tensor) -> Tensor:
        if self.bitmap is not None:
            return self.bitmap[keys]
        at = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        owned: Tensor = self.keys[at] == keys
        return owned
