"""Diagonal Gaussians: a table of them, their distance, and self-attention over a sequence of them.

As points [μ, √Σ], two of them have the squared Wasserstein distance of two points, so that one matrix product compares
all pairs.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.batch import Batch, History
from robustbench_rec.catalogue import Products
from robustbench_rec.dropout import Dropout
from robustbench_rec.lookup import Events, pairs, rows
from robustbench_rec.models._sequences import from_the_end
from robustbench_rec.shifted import Embedded, Site

TINY = 1e-24


class Gaussian(NamedTuple):
    """Means and covariances, both `[…, D]`."""

    mean: Tensor
    covariance: Tensor

    def point(self) -> Tensor:
        """`[…, 2D]`."""
        return torch.cat([self.mean, self.covariance.clamp_min(TINY).sqrt()], -1)

    def told(self) -> Tensor:
        """Mean and log covariance, what linear layers are told: `[…, 2D]`."""
        return torch.cat([self.mean, self.covariance.clamp_min(TINY).log()], -1)

    def read(self, history: History) -> "Gaussian":
        """Those that speak for the rows of scores, of `[B, L, D]`."""
        return Gaussian(history.read(self.mean), history.read(self.covariance))


def deviation(raw: Tensor) -> Tensor:
    """√(ELU(raw) + 1) > 0; neither rounds to 0 nor has an infinite slope where ELU + 1 and its root would."""
    return torch.exp(0.5 * raw.clamp_max(0)) * torch.sqrt(1 + F.relu(raw))


def nearness(points: Tensor, others: Tensor, batch: Batch) -> Tensor | Products:
    """-W₂² of Gaussians `[N, 2D]` and the candidates `[N, C]` of a batch among others `[n, 2D]`, or all of these."""
    reduced = torch.is_autocast_enabled(points.device.type)
    with torch.autocast(points.device.type, enabled=False):  # a small difference of large numbers
        points, others = points.float(), others.float()
        size, sizes = points.square().sum(1, keepdim=True), others.square().sum(1, keepdim=True)
        left = torch.cat([2 * points, -size, torch.ones_like(size)], 1)
        right = torch.cat([others, torch.ones_like(sizes), -sizes], 1)
        if batch.items is not None:
            return pairs(left, None, right, batch.items)
        return left @ right.T if reduced else batch.products(left, right)  # one product, and no pass over all pairs


def distance_deviation(users: Gaussian, items: Gaussian, chosen: Tensor | None) -> Tensor:
    """Standard deviation of ‖u − i‖² for draws u, i of users `[N, D]` and of the items chosen `[N, C]`: `[N, C]`."""
    picked = items if chosen is None else Gaussian(items.mean[chosen], items.covariance[chosen])
    spread = users.covariance[:, None] + picked.covariance
    return (2 * spread.square() + 4 * spread * (users.mean[:, None] - picked.mean).square()).sum(-1).sqrt()


def apart(points: Tensor, others: Tensor, items: Tensor) -> Tensor:
    """mean max(0, W₂²(user, positive) − W₂²(positive, negative)) of users `[N, 2D]` and candidates `[N, 1 + C]`."""
    positive, negatives = rows(others, items[:, :1]), rows(others, items[:, 1:])  # [N, 1, 2D], [N, C, 2D]
    own = (points[:, None] - positive).square().sum(2)
    return F.relu(own - (positive - negatives).square().sum(2)).mean()


class Items(nn.Module):
    """Gaussians of the items, and of the places in a window. As published, all raw values start at N(0.01, 0.02²)."""

    def __init__(self, n_items: int, dim: int, window: int, dropout: float) -> None:
        super().__init__()
        self.mean, self.covariance = nn.Embedding(n_items, dim), nn.Embedding(n_items, dim)
        self.place_mean, self.place_covariance = nn.Embedding(window, dim), nn.Embedding(window, dim)
        self.mean_norm, self.covariance_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.events, self.dropout = Events(), Dropout(dropout)
        self.mean_site, self.covariance_site = Site(places=True), Site(places=True)
        self.embedded_mean, self.embedded_covariance = Embedded(listed=False), Embedded(listed=False)
        for table in (self.mean, self.covariance, self.place_mean, self.place_covariance):
            nn.init.normal_(table.weight, 0.01, 0.02)

    def gaussians(self) -> Gaussian:
        """All items `[n_items, D]`."""
        return Gaussian(self.mean.weight, deviation(self.covariance.weight).square())

    def forward(self, history: History) -> Gaussian:
        """The events `[B, L, D]`."""
        places = from_the_end(history, len(self.place_mean.weight))
        mean = self.embedded_mean(self.events(self.mean.weight, history)) + rows(self.place_mean.weight, places)
        raw = self.embedded_covariance(self.events(self.covariance.weight, history))
        raw = raw + rows(self.place_covariance.weight, places)
        mean = F.elu(self.mean_site(self.dropout(self.mean_norm(mean))))
        return Gaussian(mean, deviation(self.covariance_site(self.dropout(self.covariance_norm(raw)))).square())


class WassersteinBlock(nn.Module):
    """Self-attention of Gaussians by -W₂², over the steps so far or the latest `span` of them; then a layer a step."""

    def __init__(self, dim: int, heads: int, dropout: float, span: int | None = None) -> None:
        super().__init__()
        self.heads, self.span = heads, span
        self.mean, self.covariance = _Path(dim, dropout), _Path(dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, events: Gaussian, history: History | None = None) -> Gaussian:
        """`[B, L, D]` to `[B, L, D]`; given whose history it is, to what speaks for the rows of scores `[N, D]`."""
        if self.span is not None and history is not None and history.steps is None:
            places, history = history.latest(self.span)
            events = Gaussian(*(each.take_along_dim(places[..., None], 1) for each in events))
        q, k, v = self._heads(self.mean.qkv(events.mean))
        q_root, k_root, v_root = self._heads(deviation(self.covariance.qkv(events.covariance)))
        query, asking = torch.cat([q, q_root], -1), events
        sees = seen(query.shape[2], self.span, query.device)  # [L, L]
        if history is not None and history.steps is None:  # the last step of each row alone asks: L = 1
            query = history.read(query.transpose(1, 2))[:, :, None]
            sees = history.read(sees.expand(len(query), -1, -1))[:, None, None]  # [B, 1, 1, L]
            asking = Gaussian(*(each[:, None] for each in events.read(history)))
        weights = self.dropout(self.attention(query, torch.cat([k, k_root], -1), sees))
        around = (weights @ v).transpose(1, 2).flatten(2)
        spread = (weights.square() @ v_root.square()).transpose(1, 2).flatten(2)  # of a sum of independents
        mean, raw = self.mean(asking.mean, around), self.covariance(asking.covariance, spread)
        found = Gaussian(mean, deviation(raw).square())
        if history is None:
            return found
        return Gaussian(*(each[:, 0] for each in found)) if history.steps is None else found.read(history)

    def attention(self, query: Tensor, key: Tensor, sees: Tensor) -> Tensor:
        """softmax(-W₂²/√d) over the steps that each sees `[…, T, L]`; points `[B, H, T, 2d]`, `[B, H, L, 2d]`."""
        scale = (query.shape[-1] / 2) ** 0.5
        # ‖q‖² is the same for all keys, so softmax does not need it
        logits: Tensor = (2 * query @ key.transpose(2, 3) - key.square().sum(3)[:, :, None]) / scale
        return logits.masked_fill(~sees, float("-inf")).softmax(3)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value, each `[B, H, L, D/H]`."""
        return tuple(x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4))


def seen(length: int, span: int | None, device: torch.device) -> Tensor:
    """Which steps a step sees, bool `[L, L]`: itself and those before it, or the latest `span` of these.

    Padding stands on the right, so no step before it sees it.
    """
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril() if span is None else every.tril().triu(1 - span)


def path_widths(names: Iterable[str], dim: int) -> dict[str, int]:
    """Names of the sites behind the two paths of the named blocks, with the size of the states."""
    return {f"{name}.{path}.fed": dim for name in names for path in ("mean", "covariance")}


class _Path(nn.Module):
    """The linear layers of the means, or of the covariances."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.first, self.last = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        self.attended, self.hidden, self.fed = (Site(places=True) for _ in range(3))
        for each in (self.qkv, self.out, self.first, self.last):
            nn.init.normal_(each.weight, 0.01, 0.02)
            nn.init.zeros_(each.bias)

    def forward(self, x: Tensor, around: Tensor) -> Tensor:
        x = self.attended(self.attention_norm(x + self.dropout(self.out(around))))
        inner = self.hidden(F.elu(self.first(x)))
        return self.fed(self.feed_norm(x + self.dropout(self.last(inner))))  # type: ignore[no-any-return]
