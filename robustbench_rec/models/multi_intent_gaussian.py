from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.batch import Batch, History, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import unknown
from robustbench_rec.lookup import rows
from robustbench_rec.model import RecModel, check_penalties
from robustbench_rec.models import models
from robustbench_rec.models._gaussians import (
    TINY,
    Gaussian,
    Items,
    WassersteinBlock,
    apart,
    distance_deviation,
    nearness,
    path_widths,
    seen,
)
from robustbench_rec.models._sequences import checked, dots
from robustbench_rec.shifted import Site

FUSIONS = ("gate", "poe", "sum", "long", "short")
SCORES = ("wasserstein", "probit")


@models.register
class MultiIntentGaussian(RecModel):
    """Several intents of a user and the latest events, as Gaussians that a gate fuses (Xu et al., arXiv:2509.04694).

    dim: size of means and of covariances. heads: of the attention, which divide dim. layers: blocks of Wasserstein
    attention under the intents. intents: how many. window, recent: how many of a user's events make the long and the
    short term; the latest always has the last position. dropout: as in STOSA. fusion: of the long and the short term:
    gate, poe (product of experts), sum, or one of them alone, long or short. score: wasserstein (−W₂²) or probit (the
    dot product, nearer to 0 the more it is in doubt). kl: weight of KL(user ‖ N(0, I)), of which free_bits nats a
    dimension are free. diversity: of the mean cos² between two intents of a user. pvn: as in STOSA.

    Reconstructed: only the abstract of the paper was at hand. Events go through Wasserstein self-attention; each intent
    is a causal softmax over them in which uncertain ones weigh less, with the variance within it added to its
    covariance; the short term is one block over the latest events, and asks which intents make the long term. The
    weights of the penalties do not warm up.
    """

    @dataclass
    class Config:
        dim: int
        heads: int
        layers: int
        intents: int
        window: int
        recent: int
        dropout: float
        fusion: str
        score: str
        kl: float
        free_bits: float
        diversity: float
        pvn: float

    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("items", "blocks", "recent")
    causal: ClassVar[bool] = True

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "kl", "free_bits", "diversity", "pvn")
        checked("multi_intent_gaussian", config, normed=True)
        for key, value, choices in (("fusion", config.fusion, FUSIONS), ("score", config.score, SCORES)):
            if value not in choices:
                raise unknown(f"{key} of multi_intent_gaussian", value, choices)
        self.config, self.window = config, config.window
        dim, heads, dropout = config.dim, config.heads, config.dropout
        self.items = Items(data.n_items, dim, config.window, dropout)
        self.ends = path_widths(["recent"], dim)
        self.widths = self.ends
        if config.fusion != "short":
            self.blocks = nn.ModuleList(WassersteinBlock(dim, heads, dropout) for _ in range(config.layers))
            self.intents = Intents(dim, config.intents)
            self.widths = path_widths([*(f"blocks.{number}" for number in range(config.layers)), "recent"], dim)
        self.recent = WassersteinBlock(dim, heads, dropout, span=config.recent)
        if config.fusion == "gate":
            self.gate = nn.Linear(4 * dim, dim)
            nn.init.xavier_normal_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.user_mean, self.user_covariance = Site(), Site()

    def encode(self) -> tuple[Tensor, Tensor]:
        mean, covariance = self.items.gaussians()
        return mean, covariance

    def forward(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> Output:
        user, intents = self._read(batch)
        items = Gaussian(*encoded)
        hidden = {"mean": user.mean, "covariance": user.covariance}
        if intents is not None:
            hidden |= {"intents": intents.mean, "intent_covariances": intents.covariance}
        if self.config.score == "wasserstein":
            return Output(nearness(user.point(), items.point(), batch), hidden)
        return Output(probit(user, items, batch.items), hidden)

    def deviation(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> Tensor:
        user, items = self._read(batch)[0], Gaussian(*encoded)
        if self.config.score == "wasserstein":
            return distance_deviation(user, items, batch.items)
        doubt = variance(user, items, batch.items)
        return doubt.sqrt() / damping(doubt)

    def user_states(self, batch: Batch, encoded: tuple[Tensor, Tensor]) -> Tensor:
        return self._read(batch)[0].point()

    def item_states(self, items: Tensor, encoded: tuple[Tensor, Tensor]) -> Tensor:
        return rows(Gaussian(*encoded).point(), items)

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        config = self.config
        pvn = config.pvn if batch.items is not None and batch.items.shape[1] > 1 else 0.0
        if not (config.kl or config.diversity or pvn):
            return 0.0
        hidden = said().hidden
        user = Gaussian(hidden["mean"], hidden["covariance"])
        found = config.kl * divergence(user, config.free_bits)
        if "intents" in hidden:
            found = found + config.diversity * likeness(hidden["intents"])
        if pvn:
            assert batch.items is not None
            found = found + pvn * apart(user.point(), self.items.gaussians().point(), batch.items)
        return found

    def _read(self, batch: Batch) -> tuple[Gaussian, Gaussian | None]:
        """The users `[N, D]` and their intents `[N, K, D]`."""
        assert batch.history is not None
        events = self.items(batch.history)
        short = self.recent(events, batch.history)
        intents = None
        if self.config.fusion == "short":
            user = short
        else:
            states = events
            for block in self.blocks:
                states = block(states)
            intents = self.intents(states, batch.history)
            user = self._fused(self.intents.joined(intents, short), short)
        covariance = self.user_covariance(user.covariance.clamp_min(TINY).log()).exp()  # shifted, it stays positive
        return Gaussian(self.user_mean(user.mean), covariance), intents

    def _fused(self, long: Gaussian, short: Gaussian) -> Gaussian:
        match self.config.fusion:
            case "long":
                return long
            case "poe":
                return product(long, short)
            case "sum":
                return Gaussian(long.mean + short.mean, long.covariance + short.covariance)
        share = self.gate(torch.cat([long.told(), short.told()], 1)).sigmoid()  # [N, D]
        mean = share * long.mean + (1 - share) * short.mean
        return Gaussian(mean, share.square() * long.covariance + (1 - share).square() * short.covariance)


class Intents(nn.Module):
    """What a user is after, each intent a Gaussian of some of the events."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, count, bias=False)
        self.caution = nn.Parameter(torch.zeros(()))  # η is its softplus
        self.ask, self.vote = nn.Linear(4 * dim, dim), nn.Linear(dim, 1, bias=False)
        self.hidden, self.asked = Site(places=True), Site()
        for each in (self.first, self.last, self.ask, self.vote):
            nn.init.xavier_normal_(each.weight)

    def forward(self, states: Gaussian, history: History) -> Gaussian:
        """States `[B, L, D]` to the intents `[N, K, D]` of the rows of scores."""
        weights = self.attention(states, history)  # [B, K, T, L]
        mean = weights @ states.mean[:, None]  # [B, K, T, D]
        spread = (weights @ states.mean.square()[:, None] - mean.square()).clamp_min(0)
        own = weights.square() @ states.covariance[:, None]
        found = (each.transpose(1, 2) for each in (mean, own + spread))  # [B, T, K, D]
        return Gaussian(*(each[:, 0] if history.steps is None else history.read(each) for each in found))

    def attention(self, states: Gaussian, history: History) -> Tensor:
        """Shares of the events that a step sees, uncertain ones less: `[B, K, T, L]`; T = 1 if only the last counts."""
        length = history.items.shape[1]
        sees = seen(length, None, history.items.device)  # [L, L]
        if history.steps is None:
            sees = history.read(sees.expand(len(history.items), length, length))[:, None, None]  # [B, 1, 1, L]
        doubt = states.covariance.clamp_min(TINY).log().mean(2, keepdim=True)  # [B, L, 1]
        logits: Tensor = self.last(self.hidden(torch.tanh(self.first(states.mean))))
        logits = (logits - 0.5 * F.softplus(self.caution) * doubt).transpose(1, 2)  # [B, K, L]
        return logits[:, :, None].masked_fill(~sees, float("-inf")).softmax(3)

    def joined(self, intents: Gaussian, recent: Gaussian) -> Gaussian:
        """One Gaussian with the moments of the mixture that the recent behaviour asks for: `[N, D]`."""
        asking = recent.told()[:, None].expand(-1, intents.mean.shape[1], -1)
        told = torch.cat([intents.told(), asking], 2)  # [N, K, 4D]
        shares = self.vote(self.asked(torch.tanh(self.ask(told)))).softmax(1)  # [N, K, 1]
        return mixture(intents, shares)


def mixture(parts: Gaussian, shares: Tensor) -> Gaussian:
    """Moments of a mixture of Gaussians `[N, K, D]` with shares `[N, K, 1]`: `[N, D]`."""
    mean = (shares * parts.mean).sum(1)
    within = (shares * parts.covariance).sum(1)
    return Gaussian(mean, within + (shares * (parts.mean - mean[:, None]).square()).sum(1))


def product(one: Gaussian, two: Gaussian) -> Gaussian:
    """Product of experts: precisions add up."""
    total = one.covariance + two.covariance
    mean = (two.covariance * one.mean + one.covariance * two.mean) / total
    return Gaussian(mean, one.covariance * two.covariance / total)


def probit(user: Gaussian, items: Gaussian, chosen: Tensor | None) -> Tensor:
    """E/√(1 + π Var/8) of the dot products of independent Gaussians: logits that doubt brings nearer to 0.

    users `[N, D]`; chosen `[N, C]` among items `[n, D]`, or all of them. Var = μ_u²·Σ_i + Σ_u·μ_i² + Σ_u·Σ_i.
    """
    return dots(user.mean, items.mean, chosen) / damping(variance(user, items, chosen))


def damping(doubt: Tensor) -> Tensor:
    """√(1 + π Var/8), what a dot product with this variance is divided by."""
    return torch.sqrt(1 + torch.pi / 8 * doubt)


def variance(user: Gaussian, items: Gaussian, chosen: Tensor | None) -> Tensor:
    """Of the dot products."""
    left = torch.cat([user.mean.square() + user.covariance, user.covariance], 1)
    right = torch.cat([items.covariance, items.mean.square()], 1)
    return dots(left, right, chosen)


def divergence(user: Gaussian, free: float) -> Tensor:
    """KL(N(μ, Σ) ‖ N(0, I)), what is above `free` nats a dimension, summed over them; mean over users."""
    mean, covariance = user
    each = 0.5 * (covariance + mean.square() - 1 - covariance.clamp_min(TINY).log())
    return F.relu(each - free).sum(1).mean()


def likeness(intents: Tensor) -> Tensor:
    """Mean of cos² over all pairs of different intents `[N, K, D]`."""
    count = intents.shape[1]
    if count == 1:
        return intents.new_zeros(())
    unit = F.normalize(intents, dim=2)
    squares = (unit @ unit.transpose(1, 2)).square()
    return (squares.sum((1, 2)) - squares.diagonal(dim1=1, dim2=2).sum(1)).mean() / (count * (count - 1))
