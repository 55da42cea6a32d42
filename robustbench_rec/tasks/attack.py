"""rrec attack."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustbench_rec import checkpoint
from robustbench_rec.attack import Member, Suite
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Result, by_user, evaluator
from robustbench_rec.evaluation.alike import alike as alike_to
from robustbench_rec.evaluation.masking import masking
from robustbench_rec.evaluation.slices import check, sliced
from robustbench_rec.evaluation.worst import judged, leading, members, winners, worst
from robustbench_rec.goal import Goal
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.progress import Bar
from robustbench_rec.reports.slices import show_slices
from robustbench_rec.reports.tables import Row, by_metric, show
from robustbench_rec.rewording import Rewording
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.frontier import frontier
from robustbench_rec.tasks.retrain import retrain
from robustbench_rec.tasks.struck import compared, threat_of
from robustbench_rec.tasks.train import cleaning, keep
from robustbench_rec.tasks.trials import Trial, Trials, labelled
from robustbench_rec.tasks.undefended import evaded, repaired, victim

UNREAD = {"poison": ("slices",), "frontier": ("slices", "baseline", "per_user")}
"""What only the attack of one checkpoint tells."""
USUAL = {"attack": "pgd", "goal": "untargeted", "eps": 0.1, "loss": None, "labels": "true"}
"""What nobody reads where a model is trained again on fake users, as it is where nobody asks for it."""


def run(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint: as it is, in all states that its run has kept, or by training it again on poisoned data."""
    other = "poison" if cfg.poison["name"] != "none" else "frontier" if cfg.frontier is not None else None
    unread = [name for name in UNREAD.get(other or "", ()) if getattr(cfg, name)]
    if unread:
        raise RrecError(f"{unread[0]} says nothing with {other}: leave one of the two out")
    if cfg.poison["name"] != "none":
        for key, usual in USUAL.items():
            asked = getattr(cfg, key)
            asked = asked["name"] if isinstance(asked, Mapping) else asked
            if asked != usual:
                raise RrecError(
                    f"{key}={asked} says nothing with a poison: the model is trained again, and its fake "
                    "users say what for (poison.direction, poison.items); leave it out"
                )
        if cfg.frontier is not None:
            raise RrecError("frontier and poison: a poison trains anew, no state is attacked; leave one of them out")
        return retrain(cfg, out)
    if steps := cleaning(cfg.clean):
        raise RrecError(f"clean={steps[0].name} is for a training: name a poison too, or use rrec train")
    check_eps(cfg)
    return evade(cfg, out) if cfg.frontier is None else frontier(cfg, out)


def check_eps(cfg: Attack) -> None:
    """RrecError for a budget that somebody asked for and the attack does not have."""
    if cfg.eps != USUAL["eps"] and "eps" not in cfg.attack:
        name, own = cfg.attack["name"], ", ".join(f"attack.{key}" for key in cfg.attack if key not in ("name", "seed"))
        raise RrecError(f"eps={cfg.eps} says nothing to attack={name}, whose keys are {own}; leave it out")


def evade(cfg: Attack, out: Path) -> dict[str, float]:
    """Attack a checkpoint and judge it before and after, with the true labels of the part unless told otherwise."""
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    labelled(cfg)
    suite = attacks.build(cfg.attack).prepared(loaded.model, loaded.data)
    judging = evaluator(loaded.data, cfg, alone=suite.alone)
    judging.portions(cfg.part)
    goal = goals.build(cfg.goal, loaded.uncleaned)  # targets and groups are those of the undefended model
    chosen = members(judging, suite, goal, cfg.loss)
    for each in chosen:
        if each.rival is None:
            judging.climbed(each.loss or cfg.loss, goal, part=cfg.part)
    at = Shifted(loaded.model.requires_grad_(False).eval())
    threat = threat_of(suite, goal, judging, cfg.part)
    undefended = evaded(cfg, loaded, judging, threat)
    check(loaded.data, cfg.slices, cfg.anonymity)
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    notes = {"ckpt": cfg.ckpt, **checkpoint.fingerprints(loaded.data), "labels": cfg.labels, "threat": threat}
    notes |= {"victim": victim(loaded)}
    with Run(out, "attack", seeds=seeds, device=device, **notes), autocast(cfg.precision, device):
        clean = judged(judging, at, cfg.part, goal)
        trials = Trials(cfg, out, judging, at, goal, [loaded.digest], notes)
        steps = max(judging.passes(each.attack, cfg.part) for each in chosen)
        with Bar("attack", total=len(chosen), steps=steps) as bar:
            found = trials.run(chosen, bar)
        left = [result for result, _ in found]
        after = worst(left, goal, judging.smaller)
        told_threat = [list(each) for each in [*threat.items(), *_places(cfg, goal), *_behind(suite)]]
        show(f"{cfg.attack['name']}: {loaded.data.name}, {cfg.part}", ["threat", ""], told_threat)
        told = compared(clean, after, judging)
        alike = [each for each in (alike_to(clean, result, cfg.top_k) for result in left) if each is not None]
        if alike:
            kept = worst(alike, goal, frozenset())
            by_metric("lists before and after (1: the same)", {"alike": kept.metrics})
            told |= {f"stability/{name}": value for name, value in kept.metrics.items()}
        if cfg.slices:
            told |= _sliced(judging, cfg, clean, after, out)
        if undefended is not None:
            told |= repaired(clean.metrics, after.metrics, undefended, judging, side="attacked")
        if len(chosen) > 1:
            told |= _shared(chosen, found, clean, goal, judging)
            own = cfg.labels == "own"
            flags = masking(judging, at, chosen, left, clean, cfg.part, goal, own_labels=own)
            show("signs of a weak attack (0: none)", list(flags), [list(flags.values())])
            told |= {f"flag/{name}": value for name, value in flags.items()}
        else:
            budget = found[0][1]
            show("budget used", ["", ""], [[name, value] for name, value in budget.items()])
            told |= {f"budget/{name}": value for name, value in budget.items()}
        by_user.write(out, judging, {"clean": clean, "attacked": after})
        if cfg.per_user:
            keep(clean, loaded.data, out / "per_user-clean.csv")
            keep(after, loaded.data, out / "per_user-attacked.csv")
        trials.finish()
    return told


def _places(cfg: Attack, goal: Goal) -> list[tuple[str, str]]:
    """The places of a list that the attack is about, where lists are judged."""
    if cfg.protocol not in ("full", "sampled"):
        return []
    longest = max(cfg.top_k, default=0)
    more = f"; goal.k={longest} for all that are judged" if longest > goal.k else ""
    return [("places", f"the first {goal.k}{more}")]


def _behind(suite: Suite) -> list[tuple[str, str]]:
    """What an attack on texts has to pass before the model reads them."""
    if not (isinstance(suite, Rewording) and suite.ready.ruled):
        return []
    return [("texts", f"{suite.ready.name} is read behind clean=sanitise; budgets are of the texts as written")]


def _sliced(judging: Evaluator[Any], cfg: Attack, clean: Result, after: Result, out: Path) -> dict[str, float]:
    """Slices before and after, shown and in `slices.csv`."""
    sides = {
        name: sliced(judging, cfg.part, each, cfg.slices, anonymity=cfg.anonymity)
        for name, each in (("clean", clean), ("attacked", after))
    }
    show_slices(sides, judging.watched(None), out / "slices.csv")
    return {f"{side}/{name}": value for side, each in sides.items() for name, value in each.metrics.items()}


def _shared(
    chosen: Sequence[Member], found: Sequence[Trial], clean: Result, goal: Goal, judging: Evaluator[Any]
) -> dict[str, float]:
    """What each member left by itself, and the share of the users to whom it was the worst."""
    results = [result for result, _ in found]
    name = leading(results[0], goal)
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
