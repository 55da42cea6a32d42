from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import Search, Searching, reach, trained


@poisons.register
class CLeaR(Searching):
    """Targets up and the vectors of the surrogate spread, for contrastive recommenders (Wang et al., KDD 2024).

    The loss is the gap of the targets to the k-th item of those who lack them, and weight times the mean absolute
    difference between the vectors H and H − H r rᵀ / ‖r‖², r = HᵀH r₀ with a random r₀, as released: a spectrum
    without a peak has less of it. Differences: the released code trains the user and item vectors of the victim itself
    down this loss and takes as profiles what they then score highest; here the profiles are searched for, through a
    surrogate that knows no contrast.
    """

    @dataclass
    class Config(Search):
        weight: float
        k: int

    config: Config

    def __init__(self, config: Config) -> None:
        if config.k < 1 or config.weight < 0:
            raise RrecError(
                f"poison=clear with k={config.k}, weight={config.weight}: k >= 1 and weight >= 0 are needed"
            )
        super().__init__(config)

    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        draw = torch.Generator().manual_seed(self.shill.seed)
        users, items = trained(view, fakes, self.config, draw)
        h = torch.cat([users, items])  # [U + n_items, D]
        r = h.T @ (h @ torch.randn(h.shape[1], generator=draw).to(h))
        peak = torch.outer(h @ r, r) / r.square().sum().clamp_min(1e-12)
        return reach(view, users, items, self.config.k, least=float("-inf")) + self.config.weight * peak.abs().mean()
