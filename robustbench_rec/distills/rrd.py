import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.distillation import Lesson, Weighted
from robustbench_rec.distills import distills
from robustbench_rec.distills._lists import OverLists, among, by_rank
from robustbench_rec.errors import RrecError

log = logging.getLogger(__name__)

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
        self.config, self.warned = config, False

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        (ranked, candidates), config = self.best(self.config.top), self.config
        self.first = min(config.interesting, ranked.shape[1])
        places = torch.arange(self.first, device=ranked.device).expand(len(ranked), -1)
        if config.sampled:
            places = by_rank(candidates, self.first, config.decay, generator)
        others, there = self._others(ranked, generator)
        if config.uninteresting and not self.warned and not bool(there.any()):
            log.warning(
                "distill 'rrd': nobody has an uninteresting item, since top=%d and the training events are all %d "
                "items; lower distill.top",
                config.top,
                self.lesson.data.n_items,
            )
            self.warned = True
        lists = torch.cat([ranked.gather(1, places), others], 1)
        return lists, torch.cat([candidates.gather(1, places), there], 1)

    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        if there is None:
            return plackett_luce(student[:, : self.first], student[:, self.first :]).mean()
        student = student.masked_fill(~there, torch.finfo(student.dtype).min)
        return plackett_luce(student[:, : self.first], student[:, self.first :], there[:, : self.first]).mean()

    def _others(self, ranked: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uninteresting items, `[n_users, count]`, and which of them really are: some users may have too few."""
        n, device = self.lesson.data.n_items, ranked.device
        users = torch.arange(len(ranked), device=device)[:, None]
        barred = torch.unique(torch.cat([self.lesson.taken, (users * n + ranked).flatten()]))
        drawn = self.uniform(self.config.uninteresting, generator)
        wrong = among(users * n + drawn, barred)
        for _ in range(TRIES):
            if not bool(wrong.any()):
                break
            again = self.uniform(self.config.uninteresting, generator)
            drawn = torch.where(wrong, again, drawn)
            wrong = among(users * n + drawn, barred)
        return drawn, ~wrong


def plackett_luce(ordered: Tensor, tail: Tensor, there: Tensor | None = None) -> Tensor:
    """Negative log-likelihood `[B]` of an order `[B, K]`, the first the best, all above a tail `[B, L]` without one.

    What is not there, bool `[B, K]`, the last of an order, has the lowest of scores and is not counted.
    """
    scores = torch.cat([ordered, tail.logsumexp(1, keepdim=True)], 1) if tail.shape[1] else ordered
    rest = scores.flip(1).logcumsumexp(1).flip(1)[:, : ordered.shape[1]]  # of each and all behind it
    each = rest - ordered
    return (each if there is None else each.masked_fill(~there, 0.0)).sum(1)
