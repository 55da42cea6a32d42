from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.factors import Adam, Factors, misfit, start
from robustbench_rec.poison import View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import Search, Searching


@poisons.register
class RevAdv(Searching):
    """Bi-level poisoning through the unrolled last steps of a surrogate's training (Tang, Wen & Wang, RecSys 2020).

    The surrogate is weighted matrix factorisation, trained anew in every outer step by `sweeps` steps of Adam over the
    whole matrix with rate `surrogate_lr`, the last `unroll` of them with a graph. The loss is the cross-entropy of the
    targets among all items, over the known users who lack one. The released code binarises the profiles by a threshold
    and goes on from there, keeps the best profiles by a measure of the step before, and begins every surrogate from one
    seed; here z goes on, the measure is that of the same profiles, and every outer step has a start of its own.
    """

    @dataclass
    class Config(Search):
        surrogate_lr: float

    config: Config

    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        c, data = self.config, view.data
        generator = torch.Generator().manual_seed(self.shill.seed + 1_000_003 * step)
        users, items = start(data.n_users + view.n, data.n_items, c, generator, view.device)
        factors: Factors = (users.requires_grad_(), items.requires_grad_())
        known, adam = torch.cat([view.clicks, fakes.detach()]), Adam(c.surrogate_lr)
        for _ in range(c.sweeps - c.unroll):
            factors = adam.step(factors, misfit(known, factors, c))
        return self.unrolled(view, fakes, factors, adam)

    def unrolled(self, view: View, fakes: Tensor, factors: Factors, adam: Adam) -> Tensor:
        """The loss after the last steps of the surrogate, from where it stands."""
        clicks = torch.cat([view.clicks.to(fakes.dtype), fakes])
        for _ in range(self.config.unroll):
            factors = adam.step(factors, misfit(clicks, factors, self.config), differentiable=True)
        return self.outer(view, *factors)

    def outer(self, view: View, users: Tensor, items: Tensor) -> Tensor:
        """How far the targets are from what the known users are shown."""
        scores = users[: view.data.n_users] @ items.T  # [U, n_items]
        wanted = 1 - view.clicks[:, view.pushed].to(scores.dtype)
        told = scores[:, view.pushed] - scores.logsumexp(1, keepdim=True)
        return -(told * wanted).sum() / wanted.sum().clamp_min(1)
