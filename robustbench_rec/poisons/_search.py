"""What the poisons share that look for fake profiles with the gradient of a surrogate."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.factors import Factorisation, Factors, alternate, start
from robustbench_rec.poison import Rate, Shill, Shilling, View
from robustbench_rec.progress import Bar
from robustbench_rec.savepoint import Part
from robustbench_rec.threat import Threat

TRANSFER = Threat(
    surface="training data", knowledge="transfer", scope="all users at once", budget="fake users, events of each"
)


@dataclass
class Search(Shill, Factorisation):
    """The part of a config that searching poisons share.

    steps: profiles that are tried, from two, each a step of the descent from the one before. lr, momentum: of the
    descent in the profiles. sweeps: of the surrogate's training in each outer step. unroll: the last of them, through
    which the gradient goes.
    """

    steps: int
    lr: float
    momentum: float
    sweeps: int
    unroll: int


class Searching(Shilling):
    """Fake profiles that minimise a loss of a surrogate which is trained on them too.

    One number z for each fake user and item; a profile is the pushed items and the `view.room` items with the largest
    z. An outer step trains the surrogate on known users and profiles, its last part with a graph that leads back to
    the profiles, and moves z down the gradient of the loss in the profiles, each row over its norm, with momentum: the
    gradient in the profile stands for that in z (straight through). The profiles with the least loss are kept,
    measured on the surrogate that was trained on them.
    """

    threat: ClassVar[Threat] = TRANSFER
    rates: ClassVar[tuple[Rate, Rate]] = ("highest", "item")

    def __init__(self, config: Search) -> None:
        least = {"steps": 2, "sweeps": 1, "unroll": 1}
        low = [name for name, each in least.items() if getattr(config, name) < each] or not config.sound
        if low or config.unroll > config.sweeps or config.lr <= 0 or not 0 <= config.momentum < 1:
            named = (*least, "lr", "momentum", "dim", "alpha", "l2")
            told = ", ".join(f"{name}={getattr(config, name)}" for name in named)
            raise RrecError(
                f"poison with {told}: steps >= 2, sweeps, unroll, dim >= 1, unroll <= sweeps, lr, l2 > 0, alpha >= 0 "
                "and momentum in [0, 1) are needed"
            )
        super().__init__(config)
        self.config = config

    @abstractmethod
    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        """Of the surrogate trained on known users and fakes `[n, n_items]`, with a graph that leads back to these."""

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        c = self.config
        z = self.begin(view, draw)
        speed, best, least = torch.zeros_like(z), self.top(view, z), torch.full((), float("inf"), device=z.device)
        parts: dict[str, Part] = {"z": z, "speed": speed, "best": best, "least": least}
        begun = self.savepoint.load(parts, view.device)
        with Bar(type(self).__module__.rpartition(".")[2], total=c.steps, steps=1) as bar:
            for step in range(begun, c.steps if view.room else 0):
                chosen = self.top(view, z)
                fakes = profile(view, chosen).requires_grad_()
                value = self.loss(view, fakes, step)
                (gradient,) = torch.autograd.grad(value, fakes)
                if value < least:
                    best.copy_(chosen)
                    least.copy_(value.detach())
                gradient = gradient[:, view.open]
                gradient = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
                speed[:, view.open] = c.momentum * speed[:, view.open] + gradient
                z -= c.lr * speed
                self.savepoint.save(step + 1, parts)
                bar.note(step, f"loss {value.item():.4f}, least {least.item():.4f}")
        return view.pushed[:0], best

    def begin(self, view: View, draw: torch.Generator) -> Tensor:
        """z of profiles that are parts of those of known users `[n, n_items]`."""
        rows = torch.randint(view.data.n_users, (view.n,), generator=draw).to(view.device)
        noise = torch.rand(view.n, view.data.n_items, generator=draw).to(view.device)
        return 0.1 * view.clicks[rows] + 0.1 * noise

    def top(self, view: View, z: Tensor) -> Tensor:
        """The fillers `[n, room]`."""
        return z.masked_fill(~view.open, float("-inf")).topk(view.room, 1).indices


def trained(view: View, fakes: Tensor, config: Search, generator: torch.Generator) -> Factors:
    """Known users `[U, D]` and items `[n_items, D]` of a surrogate trained on known users and fakes.

    The graph of the last sweeps leads back to the fakes.
    """
    data = view.data
    first = start(data.n_users + view.n, data.n_items, config, generator, view.device)
    clicks = torch.cat([view.clicks, fakes])
    factors = alternate(clicks.detach(), first, config, config.sweeps - config.unroll)
    users, items = alternate(clicks, factors, config, config.unroll)
    return users[: data.n_users], items


def profile(view: View, fillers: Tensor) -> Tensor:
    """Fillers `[n, M]` and the pushed items as 0/1 `[n, n_items]`."""
    empty = torch.zeros(len(fillers), view.data.n_items, device=fillers.device)
    return empty.scatter_(1, fillers, 1.0).index_fill_(1, view.pushed, 1.0)


def reach(view: View, users: Tensor, items: Tensor, k: int, *, least: float) -> Tensor:
    """How far pushed items are below the k-th best item of the known users who lack them, on average.

    least: what counts for those which are further up, a negative number; 0 stops at the edge of the list.
    """
    scores = users @ items.T  # [U, n_items]
    free = scores.masked_fill(view.clicks.bool(), float("-inf"))
    edge = free.topk(min(k, free.shape[1]), 1).values[:, -1:]
    wanted = (1 - view.clicks[:, view.pushed]) * edge.isfinite()
    gap = (edge - scores[:, view.pushed]).clamp_min(least)
    return torch.where(wanted > 0, gap, torch.zeros_like(gap)).sum() / wanted.sum().clamp_min(1)
