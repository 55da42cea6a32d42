"""rrec attack."""

from dataclasses import replace
from pathlib import Path

from robustbench_rec import checkpoint
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack
from robustbench_rec.evaluation import evaluator
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.progress import Bar
from robustbench_rec.reports.tables import show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.retrain import retrain
from robustbench_rec.tasks.train import keep


def run(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint: as it is, or by training it again on poisoned data."""
    return evade(cfg, out) if cfg.poison["name"] == "none" else retrain(cfg, out)


def evade(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint and judge it before and after, with the true labels of the part (the worst case)."""
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    judging = evaluator(loaded.data, cfg)
    judging.portions(cfg.part)
    goal = goals.build(cfg.goal, loaded.data)
    attack = attacks.build(cfg.attack)
    climbed = judging.climbed(attack.loss(goal) or cfg.loss, goal)
    attack.check(loaded.model)
    at = Shifted(loaded.model.requires_grad_(False).eval())
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    threat = replace(attack.declared, goal=goal.words)
    notes = {"ckpt": cfg.ckpt, "fingerprint": loaded.data.fingerprint, "threat": threat.words()}
    with Run(out, "attack", seeds=seeds, device=device, **notes), autocast(cfg.precision, device):
        clean = judging.evaluate(at, cfg.part)
        with Bar("attack", total=1, steps=attack.passes) as bar:
            passes = iter(bar.each(0, range(attack.passes)))
            worse, budget = judging.attack(
                at, attack, cfg.part, climbed, mark=goal.mark, on_pass=lambda: next(passes, None)
            )
        attacked = judging.evaluate(worse, cfg.part)
        if cfg.per_user:
            keep(clean, loaded.data, out / "per_user-clean.csv")
            keep(attacked, loaded.data, out / "per_user-attacked.csv")
        reached = [goal.measure(judging, *each) for each in ((at, cfg.part, clean), (worse, cfg.part, attacked))]
    before, after = clean.metrics, attacked.metrics
    drop = {name: (value - after[name]) / value if value else float("nan") for name, value in before.items()}
    title = f"{cfg.attack['name']}: {loaded.data.name}, {cfg.part}"
    show(title, ["threat", ""], [list(each) for each in threat.words().items()])
    show("quality", ["metric", "clean", "attacked", "drop"], [[n, before[n], after[n], drop[n]] for n in before])
    sides = {"clean": before, "attacked": after, "drop": drop, "budget": budget}
    first, last = reached
    if first is not None and last is not None:
        rise = {name: last.metrics[name] - value for name, value in first.metrics.items()}
        rows: list[list[str | float | int]] = [[n, v, last.metrics[n], rise[n]] for n, v in first.metrics.items()]
        show("goal", ["metric", "clean", "attacked", "rise"], rows)
        sides = {**sides, "clean": before | first.metrics, "attacked": after | last.metrics, "rise": rise}
    show("budget used", list(budget), [list(budget.values())])
    return {f"{side}/{name}": value for side, values in sides.items() for name, value in values.items()}
