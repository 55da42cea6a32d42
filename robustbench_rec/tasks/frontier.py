"""rrec attack over the states that a run has kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attack import Suite
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Result, evaluator
from robustbench_rec.evaluation.frontier import BEST, Trace, advantage, sentence
from robustbench_rec.evaluation.worst import judged, members, worst
from robustbench_rec.files import write_text
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.progress import Bar
from robustbench_rec.reports import plots
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.significance import Spread
from robustbench_rec.tasks.beside import beside
from robustbench_rec.tasks.struck import threat_of
from robustbench_rec.tasks.trials import Trials, labelled
from robustbench_rec.tasks.undefended import check_undefended, victim

SHOWN = 24
"""Rows of the table, about; the file has all."""


@dataclass(frozen=True)
class Side:
    """A run, what it is judged with, and the epochs of it that are attacked, beside its checkpoint."""

    key: str
    path: str
    loaded: checkpoint.Loaded
    judging: Evaluator[Any]
    epochs: list[int]


def frontier(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack every state that a run has kept, and compare the checkpoint with an undefended run stopped early.

    A defence that only slows training down is no better than an undefended model that stops earlier. So the checkpoint,
    and its own trajectory if it has one, are held against the best that the undefended trajectory reaches under the
    same attack with no less clean quality (`evaluation.frontier`). frontier=true shows the trajectory of the checkpoint
    alone.
    """
    device = setup(cfg)
    labelled(cfg)
    suite = attacks.build(cfg.attack)
    sides = _sides(cfg, device, alone=suite.alone)
    data, judging = sides[0].loaded.data, sides[0].judging
    goal = goals.build(cfg.goal, data)
    if goal.losses:
        raise RrecError(f"goal={cfg.goal['name']}: the frontier is about quality; use goal=untargeted")
    threat = threat_of(suite.prepared(sides[0].loaded.model, data), goal, judging, cfg.part)
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    notes: dict[str, Any] = {side.key: side.path for side in sides}
    notes |= {**checkpoint.fingerprints(data), "labels": cfg.labels, "threat": threat}
    states = States(cfg, out, judging, suite, goal, [each.loaded.digest for each in sides], notes)
    with Run(out, "attack", seeds=seeds, device=device, **notes):
        with autocast(cfg.precision, device):
            traces = states.run(sides)
        show(f"{cfg.attack['name']}: {data.name}, {cfg.part}", ["threat", ""], [list(e) for e in threat.items()])
        told = _told(traces, states.metric, out)
        states.finish()
    return told


def _sides(cfg: Attack, device: torch.device, *, alone: bool) -> list[Side]:
    """The checkpoint, then the undefended run if there is one."""
    first = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    judging = evaluator(first.data, cfg, alone=alone)
    judging.portions(cfg.part)
    side = Side("ckpt", cfg.ckpt, first, judging, checkpoint.epochs(cfg.ckpt))
    if str(cfg.frontier).lower() == "true":
        return [_kept(side)]
    path = str(cfg.frontier)
    other = checkpoint.load(path, data_dir=cfg.data_dir, device=device, key="frontier")
    own = beside(cfg, judging, first, other, "frontier")
    check_undefended(victim(first), victim(other), "frontier", path, cfg.ckpt)
    return [side, _kept(Side("frontier", path, other, own, checkpoint.epochs(path)))]


def _kept(side: Side) -> Side:
    """The same; RrecError where it kept no epochs, as it must have."""
    if not side.epochs:
        raise RrecError(f"{side.key}={side.path} kept no epochs; train it with trajectory=1 to keep every one")
    return side


class States:
    """Judges the states of the sides, clean and attacked."""

    def __init__(
        self,
        cfg: Attack,
        out: Path,
        judging: Evaluator[Any],
        suite: Suite,
        goal: Goal,
        digests: Sequence[str],
        about: Mapping[str, Any],
    ) -> None:
        self.cfg, self.out, self.judging, self.suite, self.goal = cfg, out, judging, suite, goal
        self.digests, self.about = digests, about
        self.metric, self.done = judging.monitored(None), 0

    def run(self, sides: Sequence[Side]) -> list[Trace]:
        chosen = members(self.judging, self.suite, self.goal)
        total = len(chosen) * sum(len(side.epochs) + 1 for side in sides)
        steps = max(self.judging.passes(each.attack, self.cfg.part) for each in chosen)
        with Bar("attack", total=total, steps=steps) as bar:
            return [self.trace(side, bar) for side in sides]

    def finish(self) -> None:
        """Drop what was kept."""
        self._trials(self.judging, Shifted(self.model), "").finish()

    def trace(self, side: Side, bar: Bar) -> Trace:
        """The checkpoint first, then its epochs."""
        self.model = side.loaded.model.requires_grad_(False).eval()
        found = {BEST: self._state(side, BEST, bar)}
        for epoch in side.epochs:
            checkpoint.at_epoch(side.path, side.loaded, epoch, side.key)
            found[str(epoch)] = self._state(side, str(epoch), bar)
        clean, attacked = (torch.stack([pair[index] for pair in found.values()]) for index in range(2))
        return Trace(list(found), clean, attacked)

    def _state(self, side: Side, name: str, bar: Bar) -> tuple[Tensor, Tensor]:
        at = Shifted(self.model)
        clean = judged(side.judging, at, self.cfg.part, self.goal)
        suite = self.suite.prepared(self.model, side.loaded.data)
        chosen = members(side.judging, suite, self.goal, self.cfg.loss)
        trials = self._trials(side.judging, at, f"{side.key}-{name}-")
        after = worst([result for result, _ in trials.run(chosen, bar)], self.goal, self.judging.smaller)
        self.done += len(chosen)
        pair = self._values(clean), self._values(after)
        words = f"{side.key} {name}: {self.metric} {pair[0].nanmean().abs():.4f} -> {pair[1].nanmean().abs():.4f}"
        bar.note(self.done - 1, words)
        return pair

    def _trials(self, judging: Evaluator[Any], at: Shifted, state: str) -> Trials:
        return Trials(self.cfg, self.out, judging, at, self.goal, self.digests, self.about, state, self.done)

    def _values(self, result: Result) -> Tensor:
        """The watched metric of every user, or that of the whole, the more the better."""
        value = result.per_user.get(self.metric, torch.tensor([result.metrics[self.metric]]))
        return (-value if self.metric in self.judging.smaller else value).double().cpu()


def _told(traces: Sequence[Trace], metric: str, out: Path) -> dict[str, float]:
    """Show the curves and what they are worth; write `frontier.csv` and `frontier.png`."""
    run, base = traces[0], traces[-1]
    names = dict(zip(("this run", "undefended"), traces, strict=False))
    frame = pd.concat(
        pd.DataFrame({"run": name, "state": each.names, "clean": _means(each.clean), "attacked": _means(each.attacked)})
        for name, each in names.items()
    )
    write_text(out / "frontier.csv", frame.to_csv(index=False))
    plots.tradeoff(frame, metric, out / "frontier.png")
    shown = frame[(frame["state"] == BEST) | (frame.groupby("run").cumcount() % (1 + len(frame) // SHOWN) == 0)]
    show(f"{metric}, clean and attacked", frame.columns.tolist(), shown.to_numpy().tolist())
    told = {f"{name}/{metric}": float(frame[name].iloc[0]) for name in ("clean", "attacked")}
    if len(traces) == 1:
        return told
    compared = {"gap": ("the checkpoint", advantage(run.only(0), base))}
    if len(run.names) > 1:
        compared["area"] = ("mean over its trajectory", advantage(run, base))
    columns = [f"{metric} under attack", "beyond the frontier", "95 % from", "to", "p"]
    rows: list[Row] = [[words, each.value, each.low, each.high, each.p] for words, each in compared.values()]
    gap = compared["gap"][1]
    show(sentence("it", Spread(gap.value, float("nan"), 1), gap.low, gap.high), columns, rows)
    for name, (_, each) in compared.items():
        values = {"": each.value, "/low": each.low, "/high": each.high, "/p": each.p}
        told |= {f"frontier/{name}{key}": value for key, value in values.items()}
    return told


def _means(values: Tensor) -> list[float]:
    found: list[float] = values.nanmean(1).abs().tolist()  # what is better when smaller was negated
    return found
