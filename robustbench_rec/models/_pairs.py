"""What the models share that put a user and an item together through hidden layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from robustbench_rec.adapters import LoRA
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import rows
from robustbench_rec.shifted import Site

PIECE = 2**19  # activations of the hidden layers at once, where no gradient is wanted: what a cache holds
GRADED = 2**22  # the same for a gradient on a CPU: 16 MiB; more leaves the cache, at half as much time again
GRADED_BESIDE = 2**26  # on another device: 256 MiB
KEPT = 2**27  # what is kept from forward to backward, all pieces together: 512 MiB; beyond it pieces are computed twice
MOST = 2**29  # activations that may be shifted, pair by pair: 2 GiB


class Pairs(nn.Module):
    """Hidden layers over pairs of a user vector and an item vector, each a linear map, a `Site` and ReLU.

    user, item: sizes of the vectors. sizes: of the layers. dropout: before each linear map. The first map is that of
    the concatenated vectors, taken as the sum of a user part and an item part: computed once for each user and item,
    what is left for a pair is an addition.
    """

    def __init__(self, user: int, item: int, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.user, self.sizes, self.width = user, list(sizes), sum(sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise([user + item, *sizes]))
        self.sites = nn.ModuleList(Site() for _ in sizes)
        self.dropout = Dropout(dropout)

    def user_part(self, users: Tensor) -> Tensor:
        weight, bias = self._first()
        return F.linear(self.dropout(users), weight[:, : self.user], bias)

    def item_part(self, items: Tensor) -> Tensor:
        weight, _ = self._first()
        return F.linear(self.dropout(items), weight[:, self.user :])

    def forward(self, users: Tensor, items: Tensor, readout: Tensor) -> Tensor:
        """Parts of users `[B, 1, H]` and items `[B or 1, C, H]`, and the weight of the last layer `[K]`: `[B, C]`."""
        x = users + items
        for index, site in enumerate(self.sites):
            x = F.relu(site(self.layers[index](self.dropout(x)) if index else x))
        return x @ readout

    def score(self, users: Tensor, table: Tensor, items: Tensor | None, readout: Tensor) -> Tensor:
        """The same for parts of users `[B, H]` and rows of a table `[n, H]`; items: `[B, C]`, or None for all rows.

        In pieces of some candidates, so that memory does not grow with the catalogue; where a gradient is wanted, those
        that go beyond `KEPT` are computed again in the backward. A shifted site needs all activations at once.
        """
        count = len(table) if items is None else items.shape[1]
        if not all(each.idle for each in self.sites.modules() if isinstance(each, Site)):
            check_size(len(users), count, self.width)
            return self._piece(users, table, items, readout)
        gradient = torch.is_grad_enabled()
        graded = GRADED if users.device.type == "cpu" else GRADED_BESIDE
        column = len(users) * self.width  # activations of one candidate of each user
        size = max(1, (graded if gradient else PIECE) // column)
        if count <= size:
            return self._piece(users, table, items, readout)
        parts = [slice(first, first + size) for first in range(0, count, size)]
        pieces = [(table[each], None) if items is None else (table, items[:, each]) for each in parts]
        scores = []
        for number, (each, chosen) in enumerate(pieces, 1):
            compute = self._again if gradient and number * size * column > KEPT else self._piece
            scores.append(compute(users, each, chosen, readout))
        return torch.cat(scores, 1)

    def widths(self, name: str) -> dict[str, int]:
        """Names of the sites, where these layers are called `name`, with the sizes of their states."""
        return {f"{name}.sites.{number}": size for number, size in enumerate(self.sizes)}

    def _first(self) -> tuple[Tensor, Tensor | None]:
        layer = self.layers[0]
        assert isinstance(layer, (nn.Linear, LoRA))
        return layer.weight, layer.bias

    def _piece(self, users: Tensor, table: Tensor, items: Tensor | None, readout: Tensor) -> Tensor:
        found: Tensor = self(users[:, None], table[None] if items is None else rows(table, items), readout)
        return found

    def _again(self, users: Tensor, table: Tensor, items: Tensor | None, readout: Tensor) -> Tensor:
        tensors = dict(self.named_parameters())  # at θ + δ, which the module has forgotten by the backward

        def piece(users: Tensor, table: Tensor, readout: Tensor, *values: Tensor) -> Tensor:
            chosen = table[None] if items is None else rows(table, items)
            at = dict(zip(tensors, values, strict=True))
            found: Tensor = functional_call(self, at, (users[:, None], chosen, readout))
            return found

        found: Tensor = checkpoint(piece, users, table, readout, *tensors.values(), use_reentrant=False)
        return found


def check_size(n_users: int, n_items: int, width: int) -> None:
    """RrecError where so many activations of pairs cannot be shifted one by one."""
    if n_users * n_items * width > MOST:
        raise RrecError(
            f"activations of {n_users} × {n_items} pairs, {width} numbers each, are too many to perturb one by one; "
            "judge with protocol=sampled"
        )
