"""Items that a user has nothing to do with."""

from collections.abc import Iterable

import torch
from torch import Tensor

from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError

MARKS = 2**26
"""Bytes of a table of marks, which tells at once that most pairs are not owned, 25 times faster than a sorted list."""


class Negatives:
    """Draws items that a user has no event with, among those of train or of other parts, uniform over the catalogue."""

    def __init__(self, data: Data, parts: Iterable[Interactions] | None = None) -> None:
        self.n_items = data.n_items
        owned = [each.users * self.n_items + each.items for each in ([data.train] if parts is None else parts)]
        self.keys = torch.unique(torch.cat(owned))  # sorted
        self.marks = torch.zeros(min(data.n_users * self.n_items, MARKS), dtype=torch.bool, device=self.keys.device)
        self.marks[self.keys % len(self.marks)] = True
        counts = torch.bincount(self.keys // self.n_items, minlength=data.n_users)
        if bool((counts >= self.n_items).any()):
            user = data.user_ids[int(counts.argmax())]
            raise RrecError(f"user '{user}' has an event with every item: there is no negative to draw")

    def draw(self, users: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`[N, count]` for users `[N]`; a draw that hits an item of the user is drawn again."""
        drawn = self._uniform((len(users), count), generator)
        flat, base = drawn.view(-1), (users * self.n_items).repeat_interleave(count)
        todo = self._owned(base + flat)
        while len(todo):
            flat[todo] = self._uniform((len(todo),), generator)
            todo = todo[self._owned(base[todo] + flat[todo])]
        return drawn

    def _uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.n_items, shape, generator=generator).to(self.keys.device)

    def _owned(self, keys: Tensor) -> Tensor:
        """Places of the pairs that are owned."""
        marked = self.marks.index_select(0, keys % len(self.marks)).nonzero().squeeze(1)
        likely = keys.index_select(0, marked)
        at = torch.searchsorted(self.keys, likely).clamp_max(len(self.keys) - 1)
        return marked[self.keys.index_select(0, at) == likely]
