from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.distillation import Lesson, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import OverLists, by_rank
from robustbench_rec.errors import RrecError

TRIES = 20
"""Draws of an uninteresting item before it is left out."""


@distills.register
class RRD(OverLists):
    """Relaxed ranking distillation: interesting items in order, all above uninteresting ones (Kang et al., CIKM 2020).

    −Σ_k [s_k − log(Σ_{j ≥ k} exp s_j + Σ_l exp s_l)], the Plackett–Luce likelihood of the teacher's order with an
    unordered tail, summed over the interesting items and averaged over the users of the batch, where the paper sums.
    interesting: the teacher's best candidates, or as many drawn out of its first `top` with probabilities ∝
    exp(−rank / decay) and put in order again (sampled, as in the paper; its authors later found plain ones better).
    uninteresting: uniform among what is neither in the first `top` nor a training item. Both are new every epoch.
    """

    @dataclass
    class Config(Weighted):
        interesting: int
        uninteresting: int
        top: int
        sampled: bool
        decay: float

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if not 1 <= config.interesting <= config.top or config.uninteresting < 0 or config.decay <= 0:
            raise RrecError(
                f"distill with interesting={config.interesting}, top={config.top}, uninteresting="
                f"{config.uninteresting}, decay={config.decay}: 1 <= interesting <= top, uninteresting >= 0 and "
                "decay > 0 are needed"
            )
        self.config = config

    def draw(self, generator: torch.Generator) -> Tensor:
        ranked, config = self.best(self.config.top), self.config
        self.first = min(config.interesting, ranked.shape[1])
        chosen = ranked[:, : self.first]
        if config.sampled:
            chosen = ranked.gather(1, by_rank(ranked, self.first, config.decay, generator))
        others, self.counts = self._others(ranked, generator)
        return torch.cat([chosen, others], 1)

    def compare(self, student: Tensor, taught: Tensor, users: Tensor) -> Tensor:
        tail = student[:, self.first :].masked_fill(~self.counts[users], torch.finfo(student.dtype).min)
        return plackett_luce(student[:, : self.first], tail).mean()

    def _others(self, ranked: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uninteresting items, `[n_users, count]`, and which of them really are: some users may have too few."""
        n, device = self.lesson.data.n_items, ranked.device
        users = torch.arange(len(ranked), device=device)[:, None]
        barred = torch.unique(torch.cat([self.lesson.taken, (users * n + ranked).flatten()]))
        drawn = self.uniform(self.config.uninteresting, generator)
        wrong = _among(users * n + drawn, barred)
        for _ in range(TRIES):
            if not bool(wrong.any()):
                break
            again = self.uniform(self.config.uninteresting, generator)
            drawn = torch.where(wrong, again, drawn)
            wrong = _among(users * n + drawn, barred)
        return drawn, ~wrong


def plackett_luce(ordered: Tensor, tail: Tensor) -> Tensor:
    """Negative log-likelihood `[B]` of an order `[B, K]`, the first the best, all above a tail `[B, L]` without one."""
    scores = torch.cat([ordered, tail.logsumexp(1, keepdim=True)], 1) if tail.shape[1] else ordered
    rest = scores.flip(1).logcumsumexp(1).flip(1)[:, : ordered.shape[1]]  # of each and all behind it
    return (rest - ordered).sum(1)


def _among(keys: Tensor, barred: Tensor) -> Tensor:
    """Which keys are in a sorted list."""
    if not len(barred):
        return torch.zeros_like(keys, dtype=torch.bool)
    return barred[torch.searchsorted(barred, keys).clamp_max(len(barred) - 1)] == keys
