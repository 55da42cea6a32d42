"""rrec attack."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attack import Member
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Evaluator, Result, evaluator
from robustbench_rec.evaluation.masking import masking
from robustbench_rec.evaluation.worst import attacked, judged, members, winners, worst
from robustbench_rec.files import write_text
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.progress import Bar
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.rewording import Reworded
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.retrain import retrain
from robustbench_rec.tasks.train import keep

LABELS = ("true", "own")
Trial = tuple[Result, dict[str, float]]  # what an attack left, and its budget


def run(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint: as it is, or by training it again on poisoned data."""
    if cfg.poison["name"] != "none":
        return retrain(cfg, out)
    if cfg.clean["name"] != "none":
        raise RrecError(f"clean={cfg.clean['name']} is for a training: name a poison too, or use rrec train")
    return evade(cfg, out)


def evade(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint and judge it before and after, with the true labels of the part unless told otherwise."""
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    if cfg.labels not in LABELS:
        raise unknown("labels", cfg.labels, LABELS)
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
        found = trials.run(chosen)
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


@dataclass
class Trials:
    """Runs the members of an attack one after the other; what is done is kept in `out/resume` until all are."""

    cfg: Attack
    out: Path
    judging: Evaluator[Any]
    at: Shifted
    goal: Goal
    about: str

    def run(self, chosen: Sequence[Member]) -> list[Trial]:
        found = []
        with Bar("attack", total=len(chosen), steps=max(each.attack.passes for each in chosen)) as bar:
            for number, member in enumerate(chosen):
                path = self.out / "resume" / f"{member.name or 'attack'}.safetensors"
                trial = self._kept(path) or self._tried(number, member, bar)
                if len(chosen) > 1:
                    self._keep(path, trial)
                    name, value = next(iter(trial[0].metrics.items()))
                    bar.note(number, f"{member.name}: {name} {value:.4f}")
                found.append(trial)
        return found

    def finish(self) -> None:
        """Drop what was kept."""
        folder = self.out / "resume"
        for each in folder.glob("*"):
            each.unlink()
        if folder.is_dir():
            folder.rmdir()

    def _tried(self, number: int, member: Member, bar: Bar) -> Trial:
        passes = iter(bar.each(number, range(member.attack.passes)))
        moved, budget = attacked(
            self.judging,
            self.at,
            member,
            self.cfg.part,
            self.goal,
            self.cfg.loss,
            own_labels=self.cfg.labels == "own",
            on_pass=lambda: next(passes, None),
        )
        point = None if isinstance(moved[0], Tensor) else moved[0][0]
        if isinstance(point, Reworded):
            write_text(self.out / "texts.csv", point.frame.to_csv(index=False))
        return judged(self.judging, moved, self.cfg.part, self.goal), budget

    def _keep(self, path: Path, trial: Trial) -> None:
        path.parent.mkdir(exist_ok=True)
        result, budget = trial
        told = {"metrics": result.metrics, "names": list(result.per_user), "budget": budget}
        notes = {"identity": self._identity(), "told": json.dumps(told)}
        checkpoint.save_state(path, {"users": result.users, **result.per_user}, notes)

    def _kept(self, path: Path) -> Trial | None:
        if not path.is_file():
            return None
        tensors, notes = checkpoint.load_state(path, self.judging.data.train.users.device)
        if notes.get("identity") != self._identity():
            return None
        told = json.loads(notes["told"])
        per_user = {name: tensors[name] for name in told["names"]}
        return Result(told["metrics"], tensors["users"], per_user), told["budget"]

    def _identity(self) -> str:
        return sha256(self.about.encode()).hexdigest()


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
