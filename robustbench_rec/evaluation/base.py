"""What every protocol shares: portions of users, the model at a point, attacks on exactly what is judged."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from robustbench_rec.aims import aimed
from robustbench_rec.attack import Attack
from robustbench_rec.batch import Batch, History
from robustbench_rec.config import Judge
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.goal import Goal
from robustbench_rec.histories import Histories
from robustbench_rec.losses import LOSSES, Loss, loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar, streamed
from robustbench_rec.shifted import Shifted

PARTS = ("valid", "test")
CELLS = 2**25  # scores held at once: 128 MiB of float32
SCORES = "scores"
USERS = 1024  # at most at once: what attention over histories holds for each of them is megabytes

Moved = Sequence[tuple[Shifted, Batch] | Tensor]
"""The attacked model and input of each portion, or its scores where a perturbation of each row would not fit."""


@dataclass(frozen=True)
class Shown:
    """The lists that were judged, in the order of the portions.

    users: `[R]`. items: `[R, K]`, best first, -1 where a user has no more candidates. scores, hits: theirs.
    """

    users: Tensor
    items: Tensor
    scores: Tensor
    hits: Tensor


@dataclass(frozen=True)
class Predicted:
    """The single predictions that were judged: all `[N]`."""

    users: Tensor
    items: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Result:
    """metrics: by name, e.g. "ndcg@10". users: indices `[N]`; per_user: metrics that are means over users, `[N]`.

    shown, predicted: what they are metrics of, whichever the protocol has. pairs: of metrics that are means over
    targets of means over users, what they are means of `[N, T]`.
    """

    metrics: dict[str, float]
    users: Tensor
    per_user: dict[str, Tensor]
    shown: Shown | None = None
    predicted: Predicted | None = None
    pairs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Portion:
    """Some rows of a part: users `[B]`, their candidates `[B, C]` (None: the whole catalogue), context `[B, K]`."""

    users: Tensor
    items: Tensor | None
    context: Tensor | None


class Keeper:
    """What stands between an attack and what it asks; this one keeps nothing."""

    def of(self, objective: Scalar) -> Scalar:
        """The same objective, each answer of which may be kept."""
        return objective

    def once(self, question: Tensor, found: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is found, or was before where the question was the same."""
        return found()


P = TypeVar("P", bound=Portion)


class Evaluator(ABC, Generic[P]):
    """A protocol of evaluation over the valid and the test part. alone: every portion is a single row of scores."""

    metrics: ClassVar[tuple[str, ...]]
    """What is reported where the config names nothing."""
    monitor: ClassVar[str]
    """What early stopping looks at where the config names nothing."""
    smaller: ClassVar[frozenset[str]] = frozenset()
    """Metrics of which less is better."""
    neutral: ClassVar[frozenset[str]] = frozenset()
    """Metrics, without their @K, of which neither is."""
    losses: ClassVar[tuple[str, ...]]
    """What an attack may climb on these candidates, the default first."""
    ensemble: ClassVar[tuple[str, ...]]
    """What an ensemble of attacks climbs."""
    draws: ClassVar[bool] = False
    """Whether candidates are drawn, `n_negatives` of them."""

    def __init__(self, data: Data, judge: Judge, *, seed: int = 0, alone: bool = False) -> None:
        self.data, self.judge, self.seed, self.alone = data, judge, seed, alone
        self._parts: dict[str, list[P]] = {}
        self._histories: dict[str, Histories] = {}

    @abstractmethod
    def names(self) -> list[str]:
        """Every metric of the config, by its name in results."""

    @abstractmethod
    def label(self, portion: P, batch: Batch) -> Batch:
        """`batch` with the labels and the mask of a portion, as losses want them."""

    @abstractmethod
    def split(self, part: str) -> Iterator[P]:
        """The rows of a part in portions that fit into memory."""

    @abstractmethod
    def measure(self, scores: Iterator[Tensor], portions: list[P], names: list[str]) -> Result:
        """The metrics; scores: `[B, C]` of one portion after the other, to write into."""

    @classmethod
    def main(cls, names: Sequence[str]) -> str:
        """The one of some metrics that results are told by: it says how good a model is, if any of them does."""
        known = [name for name in names if name.partition("@")[0] not in cls.neutral]
        return cls.monitor if cls.monitor in known else (known or names)[0]

    def watched(self, monitor: str | None) -> str:
        """The metric that results are told by; RrecError when it is not among those that are computed."""
        if monitor is None:
            return self.main(self.names())
        names = [name for name in self.names() if name.partition("@")[0] not in self.neutral]
        if monitor not in names:
            raise unknown("monitor", monitor, names)
        return monitor

    def monitored(self, monitor: str | None) -> str:
        """The metric that early stopping looks at; RrecError where none tells which of two models is better."""
        name = self.watched(monitor)
        if name.partition("@")[0] in self.neutral:
            told = ",".join(self.judge.metrics or ())
            wanted = self.monitor.partition("@")[0]
            raise RrecError(f"metrics=[{told}]: none tells which of two models is better; add one, such as {wanted}")
        return name

    def climbed(self, name: str | None, goal: Goal | None = None, *, part: str = "test") -> Loss:
        """The loss that an attack on a part climbs, None for the goal's own; RrecError when it leads nowhere here."""
        losses = self.losses if goal is None else goal.losses or self.losses
        if name is not None and name not in losses:
            raise unknown("loss of an attack", name, losses)
        chosen = name or losses[0]
        if goal is None:
            return loss(chosen)
        users = torch.cat([each.users for each in self.portions(part)])
        return goal.weigh(loss(chosen, k=goal.k) if chosen in LOSSES else aimed(chosen, k=goal.k), users)

    def portions(self, part: str) -> list[P]:
        """The same, built once; RrecError where the part is unknown or empty."""
        if part not in self._parts:
            if part not in PARTS:
                raise unknown("part", part, PARTS)
            if not len(self.data.part(part)):
                raise RrecError(f"dataset '{self.data.name}' has no {part} events after the split: nothing to evaluate")
            self._parts[part] = list(self.split(part))
        return self._parts[part]

    def asks_as(self, other: "Evaluator[Any]", part: str) -> bool:
        """Whether another one asks the same: of the same users, on the same candidates, the same of them relevant."""
        return _equal([vars(each) for each in self.portions(part)], [vars(each) for each in other.portions(part)])

    def inputs(self, model: RecModel, part: str) -> Iterator[Batch]:
        """What the model is asked, a batch a portion; a history ends where the part begins."""
        for each in self.portions(part):
            yield Batch.unlabelled(
                each.users, each.items, context=each.context, history=self.history(each.users, model.window, part)
            )

    def batches(self, model: RecModel, part: str) -> Iterator[Batch]:
        """The same with labels and mask, for attacks."""
        for each, batch in zip(self.portions(part), self.inputs(model, part), strict=True):
            yield self.label(each, batch)

    @torch.no_grad()
    def evaluate(self, at: Shifted | Moved, part: str, *, metrics: list[str] | None = None) -> Result:
        """Judge the model at one point, or as `attack` left it, in evaluation mode.

        metrics: names as in the result ("ndcg@10", "auc"); None for all of the config. RrecError when a score is not
        finite.
        """
        names, portions = metrics or self.names(), self.portions(part)
        with self.judged(at, part) as scores:
            return self.measure(scores, portions, names)

    @contextmanager
    def judged(self, at: Shifted | Moved, part: str) -> Iterator[Iterator[Tensor]]:
        """The scores `[B, C]` of one portion after the other, in evaluation mode, to write into."""
        if isinstance(at, Shifted):
            point = Shifted(at.model, at.delta)
            moved: Moved = [(point, batch) for batch in self.inputs(at.model, part)]
        else:
            moved = at
        models = {each[0].model for each in moved if not isinstance(each, Tensor)}
        with ExitStack() as stack:
            for each in models:
                stack.enter_context(_judged(each))
            yield (each.clone() if isinstance(each, Tensor) else each[0](each[1]).scores.float() for each in moved)

    def attack(
        self,
        at: Shifted,
        attack: Attack,
        part: str,
        climbed: Loss,
        *,
        mark: Callable[[Batch], Batch] = lambda batch: batch,
        on_pass: Callable[[], object] = lambda: None,
        keeper: Keeper | None = None,
    ) -> tuple[Moved, dict[str, float]]:
        """Attack everyone in the part, climbing a loss on exactly the candidates that are judged.

        A perturbation that does not belong to the rows of a batch is one for all, found over the whole part; one that
        does (an activation, a history) is found for every row by itself, portion by portion. mark: adds to a labelled
        batch what the attacker is about. on_pass: called `passes` times at most. keeper: of what the attack is told,
        or of what is found where every row is a portion. Returns the attacked portions and the budget spent.
        """
        keeper = keeper or Keeper()
        with _judged(at.model):
            start, inputs = Shifted(at.model, at.delta, sparing=self.alone), list(self.inputs(at.model, part))
            first = mark(self.label(self.portions(part)[0], inputs[0]))
            scope = attack.scope(start, first)
            if scope == "all":
                whole = keeper.of(lambda at, _: streamed(at, map(mark, self.batches(at.model, part)), climbed))

                def objective(at: Shifted, batch: Batch) -> Tensor:
                    on_pass()
                    return whole(at, batch)

                worse, _ = attack(start, first, objective)
                used = attack.spent(start, worse, first, first, objective)
                return [(worse, batch) for batch in inputs], attack.summary(used)

            calls = count(1)

            def own(at: Shifted, batch: Batch) -> Tensor:
                values = climbed(at(batch), batch)
                return values if scope == "row" else values.mean()

            each_pass = 1 if self.alone else len(inputs)
            answered = own if self.alone else keeper.of(own)

            def local(at: Shifted, batch: Batch) -> Tensor:
                if next(calls) % each_pass == 0:
                    on_pass()
                return answered(at, batch)

            def alone(labelled: Batch) -> dict[str, Tensor]:
                worse, changed = attack(start, labelled, local)
                with torch.no_grad():
                    scores = worse(changed.question()).scores.float()
                return {SCORES: scores, **attack.spent(start, worse, labelled, changed, local)}

            moved: list[tuple[Shifted, Batch] | Tensor] = []
            spent: list[dict[str, Tensor]] = []
            for portion, batch in zip(self.portions(part), inputs, strict=True):
                labelled = mark(self.label(portion, batch))
                if self.alone:
                    found = keeper.once(labelled.users, partial(alone, labelled))
                    moved.append(found[SCORES])
                    spent.append({name: each for name, each in found.items() if name != SCORES})
                    continue
                worse, changed = attack(start, labelled, local)
                moved.append((worse, changed.question()))
                spent.append(attack.spent(start, worse, labelled, changed, local))
            joined = {name: torch.cat([each[name] for each in spent]) for name in spent[0]}
            return moved, attack.summary(joined)

    def passes(self, attack: Attack, part: str) -> int:
        """How often `attack` calls `on_pass`: at each evaluation of the part, or of each row that is a portion."""
        return attack.passes * (len(self.portions(part)) if self.alone else 1)

    def history(self, users: Tensor, window: int, part: str) -> History | None:
        if not window:
            return None
        if part not in self._histories:
            parts = [self.data.part(each).liked() for each in ("train", "valid")[: 1 + (part == "test")]]
            self._histories[part] = Histories(*parts, n_users=self.data.n_users, n_items=self.data.n_items)
        return self._histories[part].of(users, window)


def together(n_items: int) -> int:
    """How many users are asked about a whole catalogue at once."""
    return max(1, min(USERS, CELLS // n_items))


def _equal(one: Any, other: Any) -> bool:
    """Whether nested sequences and mappings hold equal tensors."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(each, other[key]) for key, each in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is None and other is None


@contextmanager
def _judged(model: RecModel) -> Iterator[None]:
    """Evaluation mode, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
