"""rrec gate."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from robustbench_rec import checkpoint
from robustbench_rec.attacks import attacks
from robustbench_rec.config import LIMITS, Gate
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Evaluator, Result, evaluator
from robustbench_rec.files import write_json, write_text
from robustbench_rec.goals import goals
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.junit import Check, junit, markdown
from robustbench_rec.reports.tables import show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.significance import Estimate, bootstrap, estimate
from robustbench_rec.tasks.beside import beside
from robustbench_rec.tasks.struck import under


@dataclass(frozen=True)
class Side:
    """A model, judged as it is and under the attack (None: there is none)."""

    clean: Result
    attacked: Result | None


class NoVerdictError(RrecError):
    """Nothing could be checked, which is not to be taken for a gate that is shut."""

    status = 2


def run(cfg: Gate, out: Path) -> dict[str, float]:
    """Check a model against limits; RrecError where one is broken, `NoVerdictError` where none could be checked.

    Writes `junit.xml`, `gate.md`, `gate.csv` and `metrics.json` unless nothing could be checked.
    """
    try:
        checks, told = _checked(cfg, out)
    except RrecError as error:
        raise NoVerdictError(str(error)) from error
    broken = [each for each in checks if not each.passed]
    if broken:
        first = broken[0]
        raise RrecError(
            f"the gate is shut: {len(broken)} of {len(checks)} checks failed, first {first.group}: {first.name} "
            f"(wanted {first.wanted}, found {first.found}); see {out / 'gate.md'}"
        )
    return told


def _checked(cfg: Gate, out: Path) -> tuple[list[Check], dict[str, float]]:
    limits = _limits(cfg)
    device, clock = setup(cfg), time.perf_counter()
    named = {name for each in limits.values() for name in each}
    cuts = {int(name.partition("@")[2]) for name in named if name.partition("@")[2].isdecimal()}
    if cfg.protocol in ("full", "sampled"):  # an attack on fewer places than are judged would leave the others alone
        goal = {**cfg.goal, "k": max(cfg.goal["k"], *cuts)} if cuts and cfg.goal["name"] == "untargeted" else cfg.goal
        cfg = replace(cfg, top_k=sorted({*cfg.top_k, *cuts}), goal=goal)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    alone = cfg.attack is not None and attacks.build(cfg.attack).alone
    judging = evaluator(loaded.data, cfg, alone=alone)
    judging.portions(cfg.part)
    models = {"ckpt": (loaded, judging)}
    if cfg.baseline is not None:
        other = checkpoint.load(cfg.baseline, data_dir=cfg.data_dir, device=device, key="baseline")
        models["baseline"] = other, beside(cfg, judging, loaded, other, "baseline")
    for name in sorted(named):
        if name not in judging.names():
            raise unknown("metric", name, judging.names())
    for key in ("max_drop", "max_harm"):
        for name in limits[key]:
            if name.partition("@")[0] in judging.neutral:
                raise RrecError(f"{key}.{name}: neither more nor less of it is better, so none of it can be lost")
    notes: dict[str, Any] = {"ckpt": cfg.ckpt, "baseline": cfg.baseline, "attack": cfg.attack}
    notes |= checkpoint.fingerprints(loaded.data)
    seeds = {"seed": cfg.seed, "attack.seed": (cfg.attack or {}).get("seed")}
    with Run(out, "gate", seeds=seeds, device=device, **notes), autocast(cfg.precision, device):
        sides = {key: _judged(cfg, own, each, named) for key, (each, own) in models.items()}
        checks = list(_checks(cfg, limits, sides, judging.smaller))
        told = _told(sides, named)
        told |= {"gate/checks": float(len(checks)), "gate/failed": float(sum(not each.passed for each in checks))}
        rows = [[f"{c.group}: {c.name}", c.wanted, c.found, "pass" if c.passed else "fail"] for c in checks]
        show(f"gate: {loaded.data.name}, {cfg.part}", ["check", "wanted", "found", ""], rows)
        table = pd.DataFrame(rows, columns=["check", "wanted", "found", "verdict"])
        write_text(out / "gate.csv", table.to_csv(index=False))
        write_text(out / "junit.xml", junit("rrec gate", checks, time.perf_counter() - clock))
        about = [f"{key}: `{value}`" for key, value in (("ckpt", cfg.ckpt), ("baseline", cfg.baseline)) if value]
        about += [f"data: {loaded.data.name}, {cfg.part} part, fingerprint {loaded.data.fingerprint[:12]}"]
        if cfg.attack is not None:
            eps = cfg.attack.get("eps")
            places = f", on the first {cfg.goal['k']} places" if cfg.protocol in ("full", "sampled") else ""
            about.append(f"attack: {cfg.attack['name']}" + ("" if eps is None else f", eps {eps:g}") + places)
        about += ["intervals: 95 %, paired bootstrap over users"]
        write_text(out / "gate.md", markdown("Gate", checks, about))
        write_json(out / "metrics.json", told)
    return checks, told


def _limits(cfg: Gate) -> dict[str, dict[str, float]]:
    """The limits by key and metric; RrecError where they cannot be checked."""
    found: dict[str, dict[str, float]] = {}
    for key in LIMITS:
        said = getattr(cfg, key) or {}
        if not isinstance(said, dict):
            raise RrecError(f"{key}={said}: name the metric, {key}.ndcg@10={said}")
        found[key] = {str(name): _limit(key, str(name), value) for name, value in said.items()}
    if not any(found.values()):
        raise RrecError(
            "gate checks nothing yet: add max_drop.<metric>=5%, max_harm.<metric>=30% or at_least.<metric>=…"
        )
    if found["max_drop"] and cfg.baseline is None:
        raise RrecError("max_drop is against another model: add baseline=<run directory>")
    if found["max_harm"] and cfg.attack is None:
        raise RrecError("max_harm is what an attack takes: add attack=pgd eps=0.1, or another one")
    if cfg.baseline is not None and not found["max_drop"]:
        raise RrecError(f"baseline={cfg.baseline}: nothing is compared with it; add max_drop.<metric>=5%")
    if cfg.attack is not None and not (found["max_drop"] or found["max_harm"]):
        name = cfg.attack["name"]
        raise RrecError(f"attack={name}: nothing is checked under it; add max_harm.<metric>=30% or a baseline")
    return found


def _limit(key: str, name: str, value: Any) -> float:
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = math.nan
    most = math.inf if sign(name) < 0 else 1  # an error can grow to more than twice what it was
    if not (math.isfinite(number) and (key == "at_least" or -1 <= number <= most)):
        raise RrecError(f"{key}.{name}={value}: write {'a number' if key == 'at_least' else 'a share, 5% or 0.05'}")
    return number


def _judged(cfg: Gate, judging: Evaluator[Any], loaded: checkpoint.Loaded, named: set[str]) -> Side:
    at = Shifted(loaded.model.requires_grad_(False).eval())
    clean = judging.evaluate(at, cfg.part)
    if cfg.certain and (single := sorted(named - set(clean.per_user))):
        raise RrecError(f"certain=true: {single[0]} is no mean over users, so it has no interval over them")
    if cfg.attack is None:
        return Side(clean, None)
    goal = goals.build(cfg.goal, judging.data)
    if goal.losses:
        raise RrecError(f"goal={cfg.goal['name']}: a gate is about quality; use goal=untargeted")
    suite = attacks.build(cfg.attack).prepared(loaded.model, loaded.data)  # behind what its own cleaning left
    return Side(clean, under(judging, at, suite, cfg.part, goal, cfg.loss))


def _checks(
    cfg: Gate, limits: Mapping[str, Mapping[str, float]], sides: Mapping[str, Side], smaller: frozenset[str]
) -> list[Check]:
    ours, found = sides["ckpt"], []
    for name, limit in limits["max_drop"].items():
        theirs = sides["baseline"]
        found.append(_dropped("clean", name, theirs.clean, ours.clean, limit, cfg, smaller, "against the baseline"))
        if ours.attacked is not None and theirs.attacked is not None and cfg.attack is not None:
            words = f"against the baseline under {cfg.attack['name']}"
            found.append(_dropped("robust", name, theirs.attacked, ours.attacked, limit, cfg, smaller, words))
    for name, limit in limits["max_harm"].items():
        assert ours.attacked is not None
        assert cfg.attack is not None
        words = f"under {cfg.attack['name']}"
        found.append(_dropped("robust", name, ours.clean, ours.attacked, limit, cfg, smaller, words))
    for name, limit in limits["at_least"].items():
        found.append(_held(name, ours.clean, limit, cfg, smaller))
    return found


def _held(name: str, result: Result, limit: float, cfg: Gate, smaller: frozenset[str]) -> Check:
    """The value of a metric itself, with its interval over users where it is a mean over them."""
    value, below = result.metrics[name], name in smaller
    found, detail = Estimate(value, math.nan, math.nan, math.nan), ""
    if name in result.per_user:
        found = estimate(value, bootstrap(result.per_user[name].double().cpu()[None], seed=cfg.seed)[:, 0])
        detail = f"95 % from {found.low:.4f} to {found.high:.4f}"
    reached = (found.high if below else found.low) if cfg.certain else value
    passed = reached <= limit if below else reached >= limit  # a NaN passes nothing
    wanted = f"{'surely ' if cfg.certain else ''}{'at most' if below else 'at least'} {limit:g}"
    sure = f" ({found.low:.4f} to {found.high:.4f})" if cfg.certain else ""
    return Check("clean", name, wanted, f"{value:.4f}{sure}", passed, detail)


def _dropped(
    group: str,
    name: str,
    before: Result,
    after: Result,
    limit: float,
    cfg: Gate,
    smaller: frozenset[str],
    words: str,
) -> Check:
    """The relative loss of a metric, with its interval over users where it is a mean over them.

    Of 0 there is no share: what is better than 0 passes, and what is not does not.
    """
    way = -1.0 if name in smaller else 1.0
    old, new = before.metrics[name], after.metrics[name]
    value = way * (old - new) / (abs(old) or 1.0)
    drop = Estimate(value, math.nan, math.nan, math.nan)
    if name in before.per_user:
        values = torch.stack([each.per_user[name].double().cpu() for each in (before, after)])
        sampled = bootstrap(values, seed=cfg.seed)  # [R, 2]
        lost = way * (sampled[:, 0] - sampled[:, 1])
        share = lost / sampled[:, 0].abs()
        drop = estimate(value, share[share.isfinite()] if old else lost)
    reached = drop.high if cfg.certain else value
    passed = reached <= limit if old else reached < 0  # a NaN passes nothing
    detail = f"{old:.4f} → {new:.4f}"
    if math.isfinite(drop.high):
        shape = "+.2%" if old else "+.4f"
        detail += f", 95 % from {drop.low:{shape}} to {drop.high:{shape}}, p of no difference {drop.p:.3g}"
    wanted = f"{'surely ' if cfg.certain else ''}at most {limit:.2%} lost"
    shown = f"{value:.2%} lost" if old else f"from 0 to {new:.4f}"
    if cfg.certain and old:
        shown += f" ({drop.low:.2%} to {drop.high:.2%})"
    return Check(group, f"{name} {words}", wanted, shown, passed, detail)


def _told(sides: Mapping[str, Side], named: set[str]) -> dict[str, float]:
    told: dict[str, float] = {}
    for key, side in sides.items():
        for kind, result in (("clean", side.clean), ("attacked", side.attacked)):
            if result is not None:
                told |= {f"{key}/{kind}/{name}": result.metrics[name] for name in sorted(named)}
    return told
