"""Signs that an attack was weak rather than a model strong: gradients that are hidden, vanish or are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.ascent import Perturbation, climb, zeros
from robustbench_rec.attack import Member
from robustbench_rec.batch import Batch
from robustbench_rec.evaluation.base import Evaluator, Result
from robustbench_rec.evaluation.worst import leading, marking
from robustbench_rec.goal import Goal
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted

SATURATED = 1e-6  # a cross-entropy below this has no gradient left in single precision


def masking(
    judging: Evaluator[Any],
    at: Shifted,
    members: Sequence[Member],
    results: Sequence[Result],
    clean: Result,
    part: str,
    goal: Goal,
    *,
    own_labels: bool = False,
) -> dict[str, float]:
    """Flags of an ensemble, each 0 where nothing is suspicious.

    zero_gradients: share of the attacked tensors that the scores depend on (of the users, where each has a perturbation
    of its own) whose gradient is all zero. saturated: share of the users whose loss is too small to have a gradient.
    random: 1 where judging the same model twice gives two results. black_box: share of the users whom an attack that
    sees scores alone harmed more than every attack that sees gradients. own_labels: the attacks did not know labels.
    """
    first = members[0]
    assert isinstance(first.attack, Perturbation)
    probe = Probe(surface=first.attack.surface, modules=first.attack.modules, ball=first.attack.ball)
    climbed = judging.climbed(first.loss, goal, part=part)
    mark = marking(at, goal, own_labels=own_labels)
    _, found = judging.attack(at, probe, part, climbed, mark=mark)
    with torch.no_grad():
        losses = [climbed(at(batch), batch) for batch in map(mark, judging.batches(at.model, part))]
    again = judging.evaluate(at, part).metrics
    flags = {
        "zero_gradients": found["zero"],
        "saturated": (torch.cat(losses).abs() < SATURATED).float().mean().item(),
        "random": float(any(value != clean.metrics[name] for name, value in again.items() if value == value)),
    }
    name = leading(results[0], goal)
    if name not in results[0].per_user:
        return flags
    sign = goal.serves(name, smaller=name in judging.smaller)
    values: Mapping[bool, list[Tensor]] = {True: [], False: []}
    for member, result in zip(members, results, strict=True):
        values[member.attack.threat.knowledge == "white-box"].append(sign * result.per_user[name])
    if values[True] and values[False]:
        seen, unseen = (torch.stack(values[each]).amax(0) for each in (True, False))
        flags["black_box"] = (unseen > seen).float().mean().item()
    return flags


class Probe(Perturbation):
    """Moves nothing and tells where the gradient is zero."""

    @property
    def passes(self) -> int:
        return 1

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        return at, batch

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        base = self.base(at, batch)
        value, gradients = climb(at, batch, objective, zeros(base))
        if value.ndim:
            flat = [each.flatten(1) for each in gradients.values() if each is not None]
            return {"zero": (torch.cat(flat, 1) == 0).all(1).double()}
        zero = {name: each is None or not bool(each.any()) for name, each in gradients.items()}
        counted = [each for name, each in zero.items() if not each or _matters(at, batch, name, base[name])]
        return {"zero": torch.tensor(counted or [False]).double()}

    def summary(self, spent: Mapping[str, Tensor]) -> dict[str, float]:
        return {"zero": spent["zero"].mean().item()}


@torch.no_grad()
def _matters(at: Shifted, batch: Batch, name: str, tensor: Tensor) -> bool:
    """Whether scores change with a tensor at all: noise as large as it is."""
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor)
    noise = drawn * tensor.square().mean().sqrt().clamp_min(1e-3)
    return not torch.equal(at.shift({name: noise})(batch).scores, at(batch).scores)
