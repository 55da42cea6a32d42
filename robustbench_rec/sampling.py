"""Training batches: shuffled positives with sampled negatives, an epoch at a time."""

import math
from collections.abc import Iterator
from hashlib import sha256

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError

BITMAP = 2**27
"""User-item pairs up to which a bit a pair (128 MiB) tells what is owned, 25 times faster than a sorted list does."""


class Sampler:
    """Every training event once an epoch, column 0, beside `negatives` items that the user has no training event with.

    Negatives are uniform over the catalogue, drawn for the whole epoch at once; a draw that hits a training item of the
    user is drawn again. All randomness comes from the generator that an epoch is asked with.
    """

    def __init__(self, data: Data, *, batch_size: int, negatives: int) -> None:
        if batch_size < 1 or negatives < 1:
            raise RrecError(f"batch_size={batch_size}, negatives={negatives}: both must be at least 1")
        self.users, self.items = data.train.users, data.train.items
        self.batch_size, self.negatives, self.n_items = batch_size, negatives, data.n_items
        self.keys = torch.unique(self.users * self.n_items + self.items)  # sorted
        self.bitmap = None
        if data.n_users * self.n_items <= BITMAP:
            self.bitmap = torch.zeros(data.n_users * self.n_items, dtype=torch.bool, device=self.keys.device)
            self.bitmap[self.keys] = True
        owned = torch.bincount(self.keys // self.n_items, minlength=data.n_users)
        if bool((owned >= self.n_items).any()):
            user = data.user_ids[int(owned.argmax())]
            raise RrecError(f"user '{user}' has a training event with every item: there is no negative to draw")

    def __len__(self) -> int:
        return math.ceil(len(self.users) / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        device = self.users.device
        order = torch.randperm(len(self.users), generator=generator).to(device)
        users, positives = self.users[order], self.items[order]
        items = torch.cat([positives[:, None], self._negatives(users, generator)], 1)  # [N, 1 + negatives]
        labels = torch.zeros(self.batch_size, items.shape[1], device=device)
        labels[:, 0] = 1
        for part, chosen in zip(users.split(self.batch_size), items.split(self.batch_size), strict=True):
            yield Batch(part, chosen, labels[: len(part)])

    def _negatives(self, users: Tensor, generator: torch.Generator) -> Tensor:
        drawn = self._draw((len(users), self.negatives), generator)
        flat, base = drawn.view(-1), (users * self.n_items).repeat_interleave(self.negatives)
        todo = self._owned(base + flat).nonzero().squeeze(1)
        while len(todo):
            flat[todo] = self._draw((len(todo),), generator)
            todo = todo[self._owned(base[todo] + flat[todo])]
        return drawn

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.n_items, shape, generator=generator).to(self.users.device)

    def _owned(self, keys: Tensor) -> Tensor:
        if self.bitmap is not None:
            return self.bitmap[keys]
        at = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        owned: Tensor = self.keys[at] == keys
        return owned


STREAMS = ("batches", "objective", "dropout", "auxiliary")


def epoch_generator(seed: int, epoch: int, stream: str) -> torch.Generator:
    """The generator of one consumer in one epoch.

    A run that is resumed draws what an undisturbed one would have drawn, and a defence that draws does not change the
    batches, so that runs with and without it are paired.
    """
    mixed = sha256(f"{seed}/{epoch}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:4]))  # the generator of the CPU uses 32 bits
