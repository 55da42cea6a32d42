"""What the terms share that compare vectors of users and items."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.distillation import Lesson, Term, Weighted
from robustbench_rec.errors import RrecError
from robustbench_rec.shifted import Shifted
from robustbench_rec.teacher import CELLS

KINDS = ("user", "item")


@dataclass
class Sampled(Weighted):
    """most: users, and items, of a batch that are compared at most."""

    most: int


@dataclass(frozen=True)
class Entities:
    """Users or items of a batch, each once: who they are `[n]`, and their vectors `[n, D]`, `[n, D_teacher]`."""

    kind: str
    index: Tensor
    student: Tensor
    teacher: Tensor


class OverVectors(Term):
    """A term over the vectors of the users and items that a batch names; the teacher's are new only if it moves.

    sizes: of the student's and the teacher's vectors, by kind.
    """

    def __init__(self, config: Sampled, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.most < 2:
            raise RrecError(f"distill '{self.name}' with most={config.most}: at least two are needed to compare")
        self.most, self.known = config.most, False
        self.taught: dict[str, Tensor] = {}
        one = torch.zeros(1, dtype=torch.long, device=lesson.taken.device)
        with torch.no_grad():
            student = Shifted(lesson.student)
            question = lesson.histories.question(one, one[None], lesson.student.window)
            own, theirs = (
                (student.user_states(question), student.item_states(one)),
                (lesson.teacher.users(one), lesson.teacher.items(one)),
            )
        self.sizes = {kind: (own[i].shape[1], theirs[i].shape[1]) for i, kind in enumerate(KINDS)}

    def prepare(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator
        if not self.taught or self.lesson.teacher.moving:
            data, teacher = self.lesson.data, self.lesson.teacher
            for kind, n, ask in (("user", data.n_users, teacher.users), ("item", data.n_items, teacher.items)):
                parts = torch.arange(n, device=self.lesson.taken.device).split(max(1, CELLS // 1024))
                self.taught[kind] = torch.cat([ask(part) for part in parts])

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        entities = list(self._entities(at, batch))
        with torch.autocast(batch.users.device.type, enabled=False):
            return self.compare(entities)

    @abstractmethod
    def compare(self, entities: list[Entities]) -> Tensor:
        """The value for the users and the items of a batch."""

    def _entities(self, at: Shifted, batch: Batch) -> Iterator[Entities]:
        users, items = self._some(batch.users), self._some(batch.targets if batch.items is None else batch.items)
        question = self.histories.question(users, None, at.model.window)
        yield Entities("user", users, at.user_states(question).float(), self.taught["user"][users])
        yield Entities("item", items, at.item_states(items).float(), self.taught["item"][items])

    def _some(self, index: Tensor | None) -> Tensor:
        assert index is not None
        named: Tensor = torch.unique(index)
        if len(named) <= self.most:
            return named
        chosen = torch.randperm(len(named), generator=self.generator)[: self.most].sort().values
        return named[chosen.to(named.device)]
