"""What the terms share that compare scores over a list of items for each user."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.distillation import Lesson, Term, Weighted
from robustbench_rec.errors import RrecError
from robustbench_rec.shifted import Shifted
from robustbench_rec.teacher import CELLS


class OverLists(Term):
    """A term over a list for each user of the batch; lists and what the teacher says of them are new every epoch."""

    lists: Tensor
    """`[n_users, L]`."""
    taught: Tensor
    """The teacher's scores, `[n_users, L]`."""
    there: Tensor | None
    """Which places of the lists count, bool `[n_users, L]`; None for all of them."""

    def __init__(self, config: Weighted, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        self.ranked: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The lists of an epoch, and which of their places count, both `[n_users, L]`."""

    @abstractmethod
    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        """The value, from the scores of both `[U, L]` and what counts in these lists."""

    def prepare(self, epoch: int, generator: torch.Generator) -> None:
        self.lists, there = self.draw(generator)
        self.there = None if bool(there.all()) else there
        rows = torch.arange(len(self.lists), device=self.lists.device).split(max(1, CELLS // self.lists.shape[1]))
        self.taught = torch.cat([self.lesson.teacher.scores(each, self.lists[each]) for each in rows])

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        users = torch.unique(batch.users)
        question = self.histories.question(users, self.lists[users], at.model.window)
        there = None if self.there is None else self.there[users]
        return self.compare(at(question).scores.float(), self.taught[users], there)

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """`Lesson.best`, ranked once unless the teacher moves."""
        if self.ranked is None or self.lesson.teacher.moving:
            self.ranked = self.lesson.best(k)
        return self.ranked

    def uniform(self, count: int, generator: torch.Generator) -> Tensor:
        """Items drawn from the catalogue, `[n_users, count]`."""
        drawn = torch.randint(self.lesson.data.n_items, (self.lesson.data.n_users, count), generator=generator)
        return drawn.to(self.lesson.taken.device)


@dataclass
class Mixture(Weighted):
    """temperature: T. top, uniform: how many of the teacher's best items and of draws of others make a list.

    standardise: z-score each list of scores first; null for true, unless the scores of both are of one scale that the
    term is about.
    """

    temperature: float
    top: int
    uniform: int
    standardise: bool | None


class OverMixtures(OverLists):
    """A term over the teacher's `top` candidates (fewer where a user has fewer) and up to `uniform` random others."""

    def __init__(self, config: Mixture, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.temperature <= 0 or config.top < 0 or config.uniform < 0 or config.top + config.uniform < 2:
            raise RrecError(
                f"distill with temperature={config.temperature}, top={config.top}, uniform={config.uniform}: "
                "temperature > 0, top, uniform >= 0 and a list of at least two are needed"
            )
        self.config = config
        self.standardise = not self.comparable if config.standardise is None else config.standardise

    @property
    def comparable(self) -> bool:
        """Whether scores of teacher and student are of the scale that the term is about."""
        return False

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        lists, n = self.uniform(self.config.uniform, generator), self.lesson.data.n_items
        users = torch.arange(len(lists), device=lists.device)[:, None]
        there = ~among(users * n + lists, self.lesson.taken)
        if self.config.top:
            best, ranked = self.best(self.config.top)
            lists, there = torch.cat([best, lists], 1), torch.cat([ranked, there], 1)
        return lists, there & ~repeated(lists)

    def compare(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        if self.standardise:
            student, taught = standardised(student, there), standardised(taught, there)
        temperature = self.config.temperature
        return temperature**2 * self.apart(student / temperature, taught / temperature, there)

    @abstractmethod
    def apart(self, student: Tensor, taught: Tensor, there: Tensor | None) -> Tensor:
        """How far the logits `[U, L]` are apart, where they count."""


def among(keys: Tensor, barred: Tensor) -> Tensor:
    """Which keys are in a sorted list."""
    if not len(barred):
        return torch.zeros_like(keys, dtype=torch.bool)
    return barred[torch.searchsorted(barred, keys).clamp_max(len(barred) - 1)] == keys


def repeated(lists: Tensor) -> Tensor:
    """Which places of lists `[n, L]` have an item that stands further ahead, too."""
    items, places = lists.sort(dim=1, stable=True)
    again = F.pad(items[:, 1:] == items[:, :-1], (1, 0))
    return torch.zeros_like(again).scatter(1, places, again)


def mean(values: Tensor, there: Tensor | None) -> Tensor:
    """Of all places that count in lists `[U, L]`."""
    return values.mean() if there is None else (values * there).sum() / there.sum().clamp_min(1)


def standardised(scores: Tensor, counts: Tensor | None = None) -> Tensor:
    """Z-scores within each list, of what counts in it: the scale of dot products is arbitrary."""
    if counts is None:
        return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp_min(1e-6)
    n = counts.sum(1, keepdim=True).clamp_min(1)
    apart = (scores - (scores * counts).sum(1, keepdim=True) / n) * counts
    variance = apart.square().sum(1, keepdim=True) / (n - 1).clamp_min(1)
    return apart / variance.clamp_min(1e-12).sqrt()  # clamped inside: a root has no slope at 0


def divergence(student: Tensor, taught: Tensor, counts: Tensor | None = None) -> Tensor:
    """KL(teacher ‖ student) of the softmaxes of logits `[U, L]`, over what counts, averaged over the lists."""
    if counts is not None:
        lowest = torch.finfo(student.dtype).min
        student, taught = (each.masked_fill(~counts, lowest) for each in (student, taught))
    q, p = student.log_softmax(1), taught.log_softmax(1)
    each = p.exp() * (p - q)
    return (each if counts is None else each.masked_fill(~counts, 0.0)).sum(1).mean()


def by_rank(there: Tensor, count: int, decay: float, generator: torch.Generator) -> Tensor:
    """Different places in lists, ascending, `[n, count]`, with probabilities ∝ exp(−place / decay).

    there: which places count, the first ones of each list, bool `[n, L]`; others are drawn where these are too few.
    """
    drawn = torch.rand(there.shape, generator=generator).clamp_min(torch.finfo(torch.float32).tiny)
    keys = -(-drawn.log()).log() - torch.arange(there.shape[1]) / decay  # the largest are such a sample (Gumbel top-k)
    keys = keys.to(there.device).masked_fill(~there, -torch.inf)
    return keys.topk(min(count, there.shape[1]), 1).indices.sort(1).values
