from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.lookup import rows
from robustbench_rec.model import RecModel, check_penalties
from robustbench_rec.models import models
from robustbench_rec.models._gaussians import (
    Gaussian,
    Items,
    WassersteinBlock,
    apart,
    distance_deviation,
    nearness,
    path_widths,
)
from robustbench_rec.models._sequences import checked


@models.register
class STOSA(RecModel):
    """Stochastic self-attention: events and users as Gaussians, by Wasserstein distance (Fan et al., WWW 2022).

    dim: size of means and of covariances. heads: of the attention, which divide dim. layers: blocks. window: how many
    of a user's events are read; the latest always has the last position. dropout: of the embedded events, the
    attention and both parts of a block. pvn: weight of mean max(0, W₂²(user, positive) − W₂²(positive, negative))
    where negatives are sampled. as_released: the means of the events pass every block unchanged, as a misspelt
    variable of the released code has it, so that the mean of a user is that of the latest event.

    The default loss is softmax over the whole catalogue; that of the paper is loss=bpr negatives=1. Score and loss have
    the squared distance, as the released code.
    """

    @dataclass
    class Config:
        dim: int
        heads: int
        layers: int
        window: int
        dropout: float
        pvn: float
        as_released: bool

    needs: ClassVar[frozenset[str]] = frozenset({"order"})
    loss: ClassVar[str] = "softmax"
    negatives: ClassVar[int] = 0
    body: ClassVar[tuple[str, ...]] = ("items", "blocks")
    causal: ClassVar[bool] = True

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        check_penalties(config, "pvn")
        checked("stosa", config, normed=True)
        self.config, self.window = config, config.window
        self.items = Items(data.n_items, config.dim, config.window, config.dropout)
        self.blocks = nn.ModuleList(
            WassersteinBlock(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        names = [f"blocks.{number}" for number in range(config.layers)]
        self.widths, self.ends = path_widths(names, config.dim), path_widths(names[-1:], config.dim)

    def encode(self) -> Tensor:
        return self.items.gaussians().point()

    def forward(self, batch: Batch, encoded: Tensor) -> Output:
        user = self._users(batch)
        given = nearness(user.point(), encoded, batch)
        return Output(given, {"user_mean": user.mean, "user_covariance": user.covariance})

    def deviation(self, batch: Batch, encoded: Tensor) -> Tensor:
        mean, root = encoded.chunk(2, 1)
        return distance_deviation(self._users(batch), Gaussian(mean, root.square()), batch.items)

    def user_states(self, batch: Batch, encoded: Tensor) -> Tensor:
        return self._users(batch).point()

    def item_states(self, items: Tensor, encoded: Tensor) -> Tensor:
        return rows(encoded, items)

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        if not self.config.pvn or batch.items is None or batch.items.shape[1] < 2:
            return 0.0
        user = Gaussian(*said().hidden.values())
        return self.config.pvn * apart(user.point(), self.encode(), batch.items)

    def _users(self, batch: Batch) -> Gaussian:
        """`[N, D]`."""
        assert batch.history is not None
        states: Gaussian = self.items(batch.history)
        *blocks, last = self.blocks
        for block in blocks:
            states = self._after(states, block(states))
        return self._after(states.read(batch.history), last(states, batch.history))

    def _after(self, states: Gaussian, found: Gaussian) -> Gaussian:
        """What a block made of states."""
        return Gaussian(states.mean, found.covariance) if self.config.as_released else found
