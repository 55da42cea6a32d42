"""What an attack, or the worst of several, leaves of a model."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.aims import aimed
from robustbench_rec.attack import Member
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.base import Evaluator, Keeper, Moved, Result
from robustbench_rec.evaluation.ranking import Full, over_targets
from robustbench_rec.goal import Goal
from robustbench_rec.largest import largest
from robustbench_rec.metrics.ranking import neutral
from robustbench_rec.shifted import Shifted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """Quality after an attack, and how far its goal was reached (metrics of one kind in one `Result`)."""

    result: Result
    budget: dict[str, float]


def members(judging: Evaluator[Any], attack: Any, goal: Goal, loss: str | None = None) -> list[Member]:
    """The members of an attack that a goal and a protocol allow; RrecError where they climb another loss than asked."""
    if attack.aimed and goal.aims(torch.zeros(1, dtype=torch.long)) is None:
        name = type(attack).__module__.rpartition(".")[2]
        raise RrecError(f"{name} edits the texts of given items: goal=promote or goal=demote, and protocol=full")
    known = goal.losses or judging.losses
    chosen = attack.members(goal.ensemble or judging.ensemble, goal.hinge if goal.hinge in known else None)
    own = sorted({each.loss for each in chosen if each.loss is not None})
    if loss is not None and own not in ([], [loss]):
        raise RrecError(f"loss={loss}: this attack climbs {', '.join(own)} whatever is asked; leave loss out")
    if loss is not None and not any(each.attack.passes for each in chosen):
        log.warning("loss=%s says nothing here: this attack climbs none", loss)
    rivals = isinstance(judging, Full)  # elsewhere the lists of candidates are drawn, and have no common items
    return [each for each in chosen if each.rival is None or rivals]


def judged(judging: Evaluator[Any], at: Shifted | Moved, part: str, goal: Goal) -> Result:
    """Quality and what the goal measures, as one."""
    quality = judging.evaluate(at, part)
    own = goal.measure(judging, at, part, quality)
    if own is None:
        return quality
    metrics, per_user = quality.metrics | own.metrics, quality.per_user | own.per_user
    return replace(quality, metrics=metrics, per_user=per_user, pairs=own.pairs)


def attacked(
    judging: Evaluator[Any],
    at: Shifted,
    member: Member,
    part: str,
    goal: Goal,
    loss: str | None,
    *,
    own_labels: bool = False,
    on_pass: Callable[[], object] = lambda: None,
    keeper: Keeper | None = None,
) -> tuple[Moved, dict[str, float]]:
    """What one member makes of the model, and its budget.

    own_labels: the attacker does not know the labels and takes for them what the clean model scores above 0. on_pass,
    keeper: see `Evaluator.attack`.
    """
    if member.rival is None:
        climbed = judging.climbed(member.loss or loss, goal, part=part)
        mark = marking(at, goal, own_labels=own_labels)
        return judging.attack(at, member.attack, part, climbed, mark=mark, on_pass=on_pass, keeper=keeper)
    rivals = _rivals(judging, at, part, goal.k, member.rival, own_labels=own_labels)
    climbed = aimed("promote", k=goal.k)
    return judging.attack(at, member.attack, part, climbed, mark=rivals, on_pass=on_pass, keeper=keeper)


def marking(at: Shifted, goal: Goal, *, own_labels: bool) -> Callable[[Batch], Batch]:
    """What the attacker sees of a batch: own_labels as in `attacked`, and the goal's marks."""

    def mark(batch: Batch) -> Batch:
        return goal.mark(_decided(batch, _scored(at, batch)) if own_labels else batch)

    return mark


def leading(result: Result, goal: Goal) -> str:
    """The metric that attacks are compared by: the first that says how far the goal was reached, else of quality.

    One that users have, where there is such.
    """
    names = [name for name in result.metrics if goal.told and name.startswith(goal.told)]
    names = names or [name for name in result.metrics if not neutral(name)] or list(result.metrics)
    return next((name for name in names if name in result.per_user), names[0])


def worst(results: Sequence[Result], goal: Goal, smaller: frozenset[str]) -> Result:
    """For every metric and user the value that serves the attacker most; a metric without users as a whole.

    What is no quality, as popularity, and the lists are those of the result that serves most in `leading`.
    """
    first = results[0]
    main = leading(first, goal)
    sign = goal.serves(main, smaller=main in smaller)
    chief = max(results, key=lambda each: sign * each.metrics[main])
    per_user, pairs = {}, {}
    for name in first.per_user:
        if neutral(name):
            per_user[name] = chief.per_user[name]
            continue
        sign = goal.serves(name, smaller=name in smaller)
        values = torch.stack([each.per_user[name] for each in results])  # [members, N]
        member = (sign * values).nan_to_num(float("-inf")).argmax(0, keepdim=True)  # [1, N]
        per_user[name] = values.gather(0, member)[0]
        if name in first.pairs:
            every = torch.stack([each.pairs[name] for each in results])  # [members, N, T]
            pairs[name] = every.gather(0, member[:, :, None].expand(1, *every.shape[1:]))[0]
    metrics = {}
    for name in first.metrics:
        if neutral(name):
            metrics[name] = chief.metrics[name]
            continue
        sign = goal.serves(name, smaller=name in smaller)
        known = [each.metrics[name] for each in results if each.metrics[name] == each.metrics[name]]
        whole = sign * max((sign * each for each in known), default=float("nan"))
        if name in pairs:
            metrics[name] = over_targets(pairs[name])
        else:
            metrics[name] = per_user[name].nanmean().item() if name in per_user else whole
    return replace(chief, metrics=metrics, per_user=per_user, pairs=pairs)


def winners(clean: Result, results: Sequence[Result], goal: Goal, metric: str, smaller: frozenset[str]) -> Tensor:
    """Which member did most harm to each user `[N]`, the first among equals; -1 where none did any."""
    sign = goal.serves(metric, smaller=metric in smaller)
    values = (sign * torch.stack([each.per_user[metric] for each in results])).nan_to_num(float("-inf"))
    best, index = values.max(0)
    return torch.where(best > sign * clean.per_user[metric], index, -1)


@torch.no_grad()
def _scored(at: Shifted, batch: Batch) -> Tensor:
    return at(batch).scores


def _decided(batch: Batch, scores: Tensor) -> Batch:
    """The batch with the model's own decisions among the candidates for labels."""
    decided = scores > 0
    return replace(batch, labels=(decided if batch.mask is None else decided & batch.mask).float())


def _rivals(
    judging: Evaluator[Any], at: Shifted, part: str, k: int, place: int, *, own_labels: bool
) -> Callable[[Batch], Batch]:
    """Marks the `place`-th of each user's irrelevant candidates that are not in the clean list of k."""
    table = torch.zeros(judging.data.n_users, 1, dtype=torch.long, device=judging.data.train.users.device)
    with torch.no_grad(), judging.judged(at, part) as scores:
        for batch, found in zip(judging.batches(at.model, part), scores, strict=True):
            assert batch.mask is not None
            relevant = (_decided(batch, found) if own_labels else batch).labels > 0
            own = found.masked_fill(~batch.mask, float("-inf"))
            listed = largest(own, min(k, own.shape[1]))[1]
            others = own.masked_fill(relevant, float("-inf")).scatter(1, listed, float("-inf"))
            table[batch.users] = largest(others, min(place, others.shape[1]))[1][:, -1:]
    return lambda batch: replace(batch, aims=table[batch.users])
