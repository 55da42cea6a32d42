"""rrec attack."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustbench_rec import checkpoint
from robustbench_rec.attack import Member
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Result, evaluator
from robustbench_rec.evaluation.masking import masking
from robustbench_rec.evaluation.worst import judged, members, winners, worst
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.progress import Bar
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.frontier import frontier
from robustbench_rec.tasks.retrain import retrain
from robustbench_rec.tasks.train import keep
from robustbench_rec.tasks.trials import Trial, Trials, labelled


def run(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint: as it is, in all states that its run has kept, or by training it again on poisoned data."""
    if cfg.poison["name"] != "none":
        if cfg.frontier is not None:
            raise RrecError("frontier and poison: a poison trains anew, no state is attacked; leave one of them out")
        return retrain(cfg, out)
    if cfg.clean["name"] != "none":
        raise RrecError(f"clean={cfg.clean['name']} is for a training: name a poison too, or use rrec train")
    return evade(cfg, out) if cfg.frontier is None else frontier(cfg, out)


def evade(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint and judge it before and after, with the true labels of the part unless told otherwise."""
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    labelled(cfg)
    suite = attacks.build(cfg.attack).prepared(loaded.model, loaded.data)
    judging = evaluator(loaded.data, cfg, alone=suite.alone)
    judging.portions(cfg.part)
    goal = goals.build(cfg.goal, loaded.data)
    chosen = members(judging, suite, goal)
    for each in chosen:
        if each.rival is None:
            judging.climbed(each.loss or cfg.loss, goal)
    at = Shifted(loaded.model.requires_grad_(False).eval())
    threat = replace(suite.declared, goal=goal.words).words()
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    notes = {"ckpt": cfg.ckpt, "fingerprint": loaded.data.fingerprint, "labels": cfg.labels, "threat": threat}
    with Run(out, "attack", seeds=seeds, device=device, **notes), autocast(cfg.precision, device):
        clean = judged(judging, at, cfg.part, goal)
        trials = Trials(cfg, out, judging, at, goal, json.dumps([notes, cfg.attack, cfg.goal], default=str))
        with Bar("attack", total=len(chosen), steps=max(each.attack.passes for each in chosen)) as bar:
            found = trials.run(chosen, bar)
        left = [result for result, _ in found]
        after = worst(left, goal, judging.smaller)
        show(f"{cfg.attack['name']}: {loaded.data.name}, {cfg.part}", ["threat", ""], [list(e) for e in threat.items()])
        told = _compared(clean, after)
        if len(chosen) > 1:
            told |= _shared(chosen, found, clean, goal, judging)
            flags = masking(judging, at, chosen, left, clean, cfg.part, goal)
            show("signs of a weak attack (0: none)", list(flags), [list(flags.values())])
            told |= {f"flag/{name}": value for name, value in flags.items()}
        else:
            budget = found[0][1]
            show("budget used", ["", ""], [[name, value] for name, value in budget.items()])
            told |= {f"budget/{name}": value for name, value in budget.items()}
        if cfg.per_user:
            keep(clean, loaded.data, out / "per_user-clean.csv")
            keep(after, loaded.data, out / "per_user-attacked.csv")
        trials.finish()
    return told


def _compared(clean: Result, after: Result) -> dict[str, float]:
    """Clean, attacked and the relative drop, shown; absolute differences for what is no quality."""
    rows: list[Row] = []
    told: dict[str, float] = {}
    for name, value in clean.metrics.items():
        other = after.metrics[name]
        told |= {f"clean/{name}": value, f"attacked/{name}": other}
        if name.startswith(("t_", "gap_")):
            told[f"rise/{name}"] = other - value
            rows.append([name, value, other, "", other - value])
        else:
            drop = (value - other) / value if value else float("nan")
            told[f"drop/{name}"] = drop
            rows.append([name, value, other, drop, ""])
    show("before and after", ["metric", "clean", "attacked", "drop (share)", "rise"], rows)
    return told


def _shared(
    chosen: Sequence[Member], found: Sequence[Trial], clean: Result, goal: Goal, judging: Evaluator[Any]
) -> dict[str, float]:
    """What each member left by itself, and the share of the users to whom it was the worst."""
    results = [result for result, _ in found]
    name = next(iter(results[0].per_user), next(iter(results[0].metrics)))
    won: Mapping[int, float] = {}
    if name in results[0].per_user:
        index = winners(clean, results, goal, name, judging.smaller)
        won = {number: (index == number).float().mean().item() for number in range(-1, len(chosen))}
    rows: list[Row] = []
    told: dict[str, float] = {}
    for number, (member, result) in enumerate(zip(chosen, results, strict=True)):
        rows.append([member.name, result.metrics[name], won.get(number, float("nan"))])
        told[f"member/{member.name}/{name}"] = result.metrics[name]
        told[f"won/{member.name}"] = won.get(number, float("nan"))
    show("members", ["attack", name, "won"], rows)
    return told
