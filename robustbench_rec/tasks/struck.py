"""What an attack takes from a model, and how it is told."""

from dataclasses import replace
from typing import Any

import torch

from robustbench_rec.attack import Member, Suite
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Train
from robustbench_rec.data import Data
from robustbench_rec.evaluation import Evaluator, Ranking, Result, evaluator
from robustbench_rec.evaluation.worst import attacked, judged, members, worst
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.metrics.robustness import drop, offset
from robustbench_rec.model import RecModel
from robustbench_rec.progress import Bar
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.shifted import Shifted

PLACES = 10
PART = "test"
"""Where a model that was just trained is attacked."""


class Strike:
    """The attack that a training ends with: on quality, and on as many places as `rrec attack` looks at unasked,
    fewer where the lists are shorter.

    RrecError where the model has nothing for it to move, which shows before the training.
    """

    def __init__(self, cfg: Train, model: RecModel, data: Data) -> None:
        self.cfg, self.model, self.data = cfg, model, data
        self.suite = attacks.build(cfg.attack or {})
        self.judging = evaluator(data, cfg, alone=self.suite.alone)
        self.judging.portions(PART)
        places = min(PLACES, self.judging.n_candidates - 1) if isinstance(self.judging, Ranking) else PLACES
        self.goal = goals.build({"name": "untargeted", "k": places}, data)
        for each in members(self.judging, self.suite.prepared(model, data), self.goal):
            if each.rival is None:
                self.judging.climbed(each.loss, self.goal, part=PART)

    def __call__(self) -> dict[str, float]:
        """Attacked and lost quality of the trained model, shown."""
        at = Shifted(self.model.requires_grad_(False).eval())
        clean = judged(self.judging, at, PART, self.goal)
        suite = self.suite.prepared(self.model, self.data)
        told = compared(clean, under(self.judging, at, suite, PART, self.goal, None), self.judging)
        return {name: value for name, value in told.items() if not name.startswith("clean/")}


def threat_of(suite: Suite, goal: Goal, judging: Evaluator[Any], part: str) -> dict[str, str]:
    """What the attacker may do, as it is told; who is judged alone is an event where a user has several."""
    declared = replace(suite.declared, goal=goal.words)
    if suite.alone:
        users = torch.cat([each.users for each in judging.portions(part)])
        if len(torch.unique(users)) < len(users):
            declared = replace(declared, scope=declared.scope.replace("each user", "each event"))
    return declared.words()


def under(judging: Evaluator[Any], at: Shifted, suite: Suite, part: str, goal: Goal, loss: str | None) -> Result:
    """Quality under the worst of the members of an attack that was prepared for the model."""
    chosen = members(judging, suite, goal, loss)
    with Bar("attack", total=len(chosen), steps=max(each.attack.passes for each in chosen)) as bar:

        def left(number: int, member: Member) -> Result:
            passes = iter(bar.each(number, range(member.attack.passes)))
            moved, _ = attacked(judging, at, member, part, goal, loss, on_pass=lambda: next(passes, None))
            return judged(judging, moved, part, goal)

        results = [left(number, member) for number, member in enumerate(chosen)]
    return worst(results, goal, judging.smaller)


def is_quality(name: str, judging: Evaluator[Any]) -> bool:
    """Whether a metric says how good a model is, and not whom it serves or what an attack is after."""
    return not name.startswith(("t_", "gap_")) and name.partition("@")[0] not in judging.neutral


def compared(clean: Result, after: Result, judging: Evaluator[Any]) -> dict[str, float]:
    """Clean, attacked and the relative drop, shown; absolute differences for what is no quality; the offset, told.

    What is about target items, the aim of such an attack, stands first.
    """
    rows: list[Row] = []
    told: dict[str, float] = {}
    apart: dict[str, float] = {}
    for name, value in sorted(clean.metrics.items(), key=lambda each: not each[0].startswith("t_")):
        other = after.metrics[name]
        told |= {f"clean/{name}": value, f"attacked/{name}": other}
        if not is_quality(name, judging):
            told[f"rise/{name}"] = other - value
            rows.append([name, value, other, "", other - value])
        else:
            sides = torch.tensor([value, other], dtype=torch.double)
            lost = drop(*sides).item()
            told[f"drop/{name}"] = lost
            apart[f"offset/{name}"] = offset(*sides).item()
            rows.append([name, value, other, lost, ""])
    show("before and after", ["metric", "clean", "attacked", "drop (share)", "rise"], rows)
    return told | apart
