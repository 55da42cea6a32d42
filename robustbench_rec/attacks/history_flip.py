from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch, History
from robustbench_rec.edits import HistoryAttack, known, latest, read, vectors
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat

OPS = ("insert", "replace")
CELLS = 2**25  # gains held at once: 128 MiB of float32


@attacks.register
class HistoryFlip(HistoryAttack):
    """Events replaced along the gradient, each edit confirmed by forward passes (HotFlip: Ebrahimi et al., ACL 2018).

    op: replace an event by another item, no event twice; or insert an item after the latest event, for which the oldest
    goes where the window is full. edits: how many, one after the other. candidates: the pairs of place and item with
    the largest first-order gain (e_b − e_a)·∇ at the vectors that the model reads, summed over its tables; each is
    scored, and the best is kept where it raises the objective of the row. Items that the goal is about are none of
    them: what is in a history is not recommended again. All rows at once. HotFlip edits characters, with a beam in the
    place of the forward passes.
    """

    @dataclass
    class Config:
        op: str
        edits: int
        candidates: int

    threat: ClassVar[Threat] = Threat(
        surface="history",
        knowledge="white-box",
        scope="each user",
        budget="a number of events",
    )

    def __init__(self, config: Config) -> None:
        if config.op not in OPS:
            raise unknown("op of attack 'history_flip'", config.op, OPS)
        if config.edits < 0 or config.candidates < 1:
            told = f"attack.edits={config.edits}, attack.candidates={config.candidates}"
            raise RrecError(f"{told}: edits >= 0 and candidates >= 1 are needed")
        self.config = config

    @property
    def passes(self) -> int:
        return 1 + self.config.edits * (1 + self.config.candidates)

    @property
    def declared(self) -> Threat:
        return replace(self.threat, budget=f"{self.config.op} {self.config.edits} events")

    def check(self, model: RecModel) -> None:
        super().check(model)
        vectors(model)

    def check_training(self, model: RecModel) -> None:
        super().check_training(model)
        raise RrecError(
            "defense.attack=history_flip weighs each edit by the loss of its own user, and a training has one loss for "
            "a batch; take defense.attack=history, or an attack with a surface, such as pgd"
        )

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        best = known(batch)
        with torch.no_grad():
            value = objective(at, batch)  # [B]
        replaced = torch.zeros_like(best.items, dtype=torch.bool)
        for _ in range(self.config.edits):
            if self.config.op == "insert":
                base = self._appended(best)
                best = replace(
                    best, items=F.pad(best.items, (0, base.items.shape[1] - best.items.shape[1]), value=self.n_items)
                )
                places, free = base.lengths[:, None] - 1, torch.ones_like(base.lengths[:, None], dtype=torch.bool)
            else:
                base = best
                places = torch.arange(base.items.shape[1], device=value.device).expand_as(base.items)
                free = base.real & ~replaced
            there, items, worth = self._candidates(at, replace(batch, history=base), objective, places, free)
            edited = torch.full_like(base.lengths, -1)
            for place, item, possible in zip(there.T, items.T, worth.T, strict=True):
                tried = replace(base, items=base.items.scatter(1, place[:, None], item[:, None]))
                with torch.no_grad():
                    found = objective(at, replace(batch, history=tried))
                wins = possible & (found > value)
                value, edited = torch.where(wins, found, value), torch.where(wins, place, edited)
                kept = torch.where(wins[:, None], tried.items, best.items)
                best = replace(best, items=kept, lengths=torch.where(wins, tried.lengths, best.lengths))
            if self.config.op == "replace":
                replaced = replaced | (places == edited[:, None])
        return at, replace(batch, history=best)

    def _appended(self, history: History) -> History:
        """With the latest event once more, in the place of an event that is to be chosen."""
        last = history.items.gather(1, (history.lengths - 1).clamp_min(0)[:, None]).clamp_max(self.n_items - 1)
        wide = F.pad(history.items, (0, 1), value=self.n_items).scatter(1, history.lengths[:, None], last)
        return latest(History(wide, history.lengths + 1), self.window)

    def _candidates(
        self, at: Shifted, batch: Batch, objective: Scalar, places: Tensor, free: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Places, items, and whether there is such an edit `[B, C]`, of the largest gains at some places `[B, P]`."""
        with torch.enable_grad(), read(at.model) as seen:
            total = objective(at, batch).sum()
            found = torch.autograd.grad(total, [each.rows for each in seen], allow_unused=True)
        along = [(each, gradient) for each, gradient in zip(seen, found, strict=True) if gradient is not None]
        if not along:
            raise RrecError("the events of the histories do not reach the scores: nothing to climb")
        own, count = known(batch).items.gather(1, places), min(self.config.candidates, places.shape[1] * self.n_items)
        best, chosen = [], []
        for rows in torch.arange(len(own), device=own.device).split(max(1, CELLS // (places.shape[1] * self.n_items))):
            gains = own.new_zeros((), dtype=torch.float)
            for each, gradient in along:
                there = places[rows, :, None].expand(-1, -1, gradient.shape[2])
                slope, row = gradient[rows].gather(1, there), each.rows.detach()[rows].gather(1, there)  # [b, P, D]
                gains = gains + slope @ each.table.T - (slope * row).sum(2, keepdim=True)  # [b, P, n_items]
            gains = gains.masked_fill(~free[rows, :, None], -torch.inf)
            if batch.aimed is not None:
                gains[:, :, batch.aimed] = -torch.inf
            if self.config.op == "replace":
                gains.scatter_(2, own[rows, :, None].clamp_max(self.n_items - 1), -torch.inf)
            top = gains.flatten(1).topk(count, 1)
            best.append(top.values)
            chosen.append(top.indices)
        places = places.gather(1, torch.cat(chosen) // self.n_items)
        return places, torch.cat(chosen) % self.n_items, torch.cat(best) > -torch.inf
