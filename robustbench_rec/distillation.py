"""The objective of a distillation: the student's own and a teacher's knowledge, term by term."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.histories import Histories
from robustbench_rec.largest import largest
from robustbench_rec.losses import Loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted
from robustbench_rec.teacher import CELLS, Average, Teacher, averaged

SCHEDULES = ("constant", "linear", "cosine")


@dataclass
class Weighted:
    """What every term has.

    weight: λ. warmup: share of the steps in which it rises from 0 to λ. schedule: of what comes after: constant, or
    falling to 0 along a line or half a cosine, step by step.
    """

    weight: float
    warmup: float
    schedule: str


@dataclass(frozen=True)
class Lesson:
    """Who learns what from whom.

    epochs: how many there are at most. loss: the student's own, without a teacher. seen: whether training events are
    candidates, as where what a user had is recommended again.
    """

    teacher: Teacher
    student: RecModel
    data: Data
    epochs: int
    loss: Loss
    seen: bool = False

    @cached_property
    def histories(self) -> Histories:
        """Of the student's training events."""
        return Histories(self.data.train.liked(), n_users=self.data.n_users, n_items=self.data.n_items)

    @cached_property
    def taken(self) -> Tensor:
        """User · n_items + item of what is no candidate, sorted.

        That is what a noise took out and, without `seen`, training events.
        """
        train, hidden = self.data.train, self.data.hidden
        parts = [*([] if self.seen else [train]), *([] if hidden is None else [hidden])]
        keys = [each.users * self.data.n_items + each.items for each in parts]
        taken: Tensor = torch.unique(torch.cat([train.users[:0], *keys]))
        return taken

    def portions(self) -> Sequence[Tensor]:
        """All users, so many at a time that scores of the whole catalogue fit."""
        users = torch.arange(self.data.n_users, device=self.taken.device)
        parts: Sequence[Tensor] = users.split(max(1, CELLS // self.data.n_items))
        return parts

    def unseen(self, users: Tensor) -> Tensor:
        """The teacher's scores of consecutive users for the whole catalogue, −∞ for what is no candidate."""
        scores = self.teacher.scores(users, None).clone()
        scores[self._had(users)] = float("-inf")
        return scores

    def _had(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of what is no candidate of consecutive users."""
        n = self.data.n_items
        first, last = torch.searchsorted(self.taken, torch.stack([users[0], users[-1] + 1]) * n).tolist()
        keys = self.taken[first:last]
        return keys // n - users[0], keys % n

    @cached_property
    def most(self) -> int:
        """Candidates that a user has at most."""
        counts = torch.bincount(self.taken // self.data.n_items, minlength=self.data.n_users)
        return self.data.n_items - int(counts.min())

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """The teacher's best candidates of every user, and which are such, both `[n_users, k]`.

        Behind them stands what is no candidate, where a user has fewer.
        """
        items, there = [], []
        for users in self.portions():
            order, candidates = self._order(users)
            items.append(largest(order, min(k, self.data.n_items))[1])
            there.append(candidates.gather(1, items[-1]))
        return torch.cat(items), torch.cat(there)

    def _order(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's scores, those of what is no candidate moved below all others; and what is a candidate."""
        scores = self.teacher.scores(users, None)
        candidates = scores.isfinite()
        candidates[self._had(users)] = False
        lowest = torch.where(candidates, scores, torch.inf).amin(1, keepdim=True)
        highest = torch.where(candidates, -torch.inf, scores).amax(1, keepdim=True)
        moved = scores - (highest - lowest).clamp_min(0).nan_to_num(0) - 1
        return torch.where(candidates, scores, moved), candidates


class Term(Objective):
    """A term of a distillation, constructed as `cls(config, lesson)`; its value comes without its weight."""

    def __init__(self, config: Weighted, lesson: Lesson) -> None:
        super().__init__()
        name = type(self).__module__.rpartition(".")[2]
        if not 0 <= config.weight < math.inf or not 0 <= config.warmup <= 1:
            raise RrecError(
                f"distill '{name}' with weight={config.weight}, warmup={config.warmup}: weight >= 0 and a warmup in "
                "[0, 1] are needed"
            )
        if config.schedule not in SCHEDULES:
            raise unknown(f"schedule of distill '{name}'", config.schedule, SCHEDULES)
        self.name, self.weighted, self.lesson = name, config, lesson
        self.histories = lesson.histories
        """What the student reads of its users, as an epoch shows it."""

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        if self.weighted.weight:
            self.prepare(epoch, generator)

    def prepare(self, epoch: int, generator: torch.Generator) -> None:
        """Called before the batches of an epoch, of a term that counts."""

    @abstractmethod
    def forward(self, at: Shifted, batch: Batch) -> Tensor: ...

    def factor(self, step: int) -> float:
        """What its value counts at a step of the training, counted from 0."""
        whole = self.lesson.epochs * self.batches
        rising = self.weighted.warmup * whole
        if step + 1 < rising:
            return self.weighted.weight * (step + 1) / rising
        gone = max(0.0, step - rising) / max(1.0, whole - rising)
        falling = {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}
        return self.weighted.weight * falling[self.weighted.schedule]


class Distillation(Objective):
    """L = task · L_student + Σ weight · term; tells weight × value of each, and counts nothing that has no weight."""

    def __init__(self, inner: Objective, terms: Sequence[Term], lesson: Lesson, *, task: float = 1.0) -> None:
        super().__init__()
        if not 0 <= task < math.inf:
            raise RrecError(f"task_weight={task}: must not be negative")
        if not task and not any(each.weighted.weight for each in terms):
            raise RrecError("task_weight=0 and no distill term with a weight: there is nothing to learn")
        self.inner, self.task, self.lesson = inner, task, lesson
        self.terms, self.kept = tuple(terms), nn.ModuleList(terms)
        self.average = averaged(lesson.teacher)
        names = [each.name for each in terms]
        self.names = [
            f"{name}{names[:place].count(name) + 1 if name in names[:place] else ''}"
            for place, name in enumerate(names)
        ]
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        """Steps of this epoch."""
        self.first = 0
        """Steps before it."""

    def show(self, data: Data) -> None:
        histories = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
        for each in self.terms:
            each.histories = histories

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.sums, self.count, self.first = {}, 0, epoch * self.batches
        if isinstance(self.lesson.teacher, Average):
            self.lesson.teacher.settle()

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if isinstance(self.lesson.teacher, Average) and torch.is_grad_enabled():
            self.lesson.teacher.follow(at.model)
        step, parts = self.first + self.count, []
        self.count += 1
        if self.task:
            value: Tensor = self.inner(at, batch)
            parts.append(self._noted("task", value if self.task == 1 else self.task * value))
        for name, term in zip(self.names, self.terms, strict=True):
            if factor := term.factor(step):
                parts.append(self._noted(name, factor * term(at, batch)))
        return torch.stack(parts).sum() if len(parts) > 1 else parts[0]

    def told(self) -> dict[str, float]:
        found = dict.fromkeys(("task", *self.names), 0.0) | {
            name: each.item() / self.count for name, each in self.sums.items()
        }
        return {f"term/{name}": value for name, value in found.items()}

    @property
    def formula(self) -> str:
        """What is minimised, in words: with the penalty of the model."""
        parts = [
            (self.task, "task"),
            *((each.weighted.weight, name) for each, name in zip(self.terms, self.names, strict=True)),
            (1.0 if self.lesson.student.penalised else 0.0, "penalty"),
        ]
        return "L = " + " + ".join(name if weight == 1 else f"{weight:g} · {name}" for weight, name in parts if weight)

    def _noted(self, name: str, value: Tensor) -> Tensor:
        kept = value.detach()
        self.sums[name] = self.sums[name] + kept if name in self.sums else kept
        return value


def chain(config: Mapping[str, Any], key: str = "inner") -> list[dict[str, Any]]:
    """The configs of `distill=[a,b]`, the first first: `inner` is the config of the next one."""
    found: list[dict[str, Any]] = []
    rest: Any = config
    while rest is not None:
        if not isinstance(rest, Mapping):
            raise RrecError(f"distill.inner={rest}: the config of another term; several are distill=[listwise,…]")
        found.append({name: each for name, each in rest.items() if name != key})
        rest = rest.get(key)
    return found
