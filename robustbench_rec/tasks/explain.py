"""rrec explain."""

import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Explain, Judge
from robustbench_rec.console import line
from robustbench_rec.data import Data
from robustbench_rec.edits import HistoryAttack
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import evaluator
from robustbench_rec.explanation import Edges, Faithfulness, Paths, Units, faithfulness, units
from robustbench_rec.explanation import Path as KgPath
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.metrics.explanation import relation_diversity
from robustbench_rec.model import RecModel
from robustbench_rec.naming import Names
from robustbench_rec.progress import Bar
from robustbench_rec.recommendation import Recommender
from robustbench_rec.reports.tables import show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted

METHODS = ("removal", "gradient")
FORMATS = ("table", "json")


@dataclass(frozen=True)
class Explanation:
    """What an item's score for a user comes from. order: all units, the most important first. told: the shown ones."""

    units: Units
    importance: Tensor
    order: Tensor
    told: Tensor
    measured: Faithfulness


def answer(cfg: Explain) -> None:
    """One explanation, on standard output."""
    _checked(cfg)
    if cfg.user is None:
        raise RrecError("explain needs user=<id> (and item=<id>), or sample=<number of users>")
    if cfg.attack is not None:
        raise RrecError("explain: stability under an attack is measured over users; add sample=<number of users>")
    asked = _asked(cfg)
    names = Names(asked.data)
    users = names.users(cfg.user)
    items = asked.of(users, 1).items[:, 0] if cfg.item is None else names.items(cfg.item)
    if len(users) != 1 or len(items) != 1:
        raise RrecError("explain: one user and one item at a time; sample=<number of users> measures many")
    found = _explained(asked, int(users[0]), int(items[0]), cfg)
    if cfg.format == "json":
        sys.stdout.write(json.dumps(_told(cfg, found), indent=2) + "\n")
    else:
        _show(cfg, found)


def run(cfg: Explain, out: Path) -> dict[str, float]:
    """Explain the first item of many users' lists: how faithful that is, and how stable under an attack."""
    _checked(cfg)
    if cfg.format != "table":
        raise RrecError(f"format={cfg.format}: for one user; sample= writes its numbers to the run directory")
    if cfg.user is not None or cfg.item is not None:
        raise RrecError("sample= draws the users and takes the first item of each: drop user= and item=")
    asked = _asked(cfg)
    data = asked.data
    assert cfg.sample is not None
    if cfg.sample > data.n_genuine:
        raise RrecError(f"sample={cfg.sample}: dataset '{data.name}' has {data.n_genuine} users")
    drawn = torch.randperm(data.n_genuine, generator=torch.Generator().manual_seed(cfg.seed))[: cfg.sample]
    users = drawn.sort().values.to(data.train.users.device)
    items = asked.of(users, 1).items[:, 0]
    first = units(asked, int(users[0]), int(items[0]), cfg.by, hops=cfg.hops)
    seeds = {"seed": cfg.seed, "attack.seed": (cfg.attack or {}).get("seed")}
    notes = {"ckpt": cfg.ckpt, "fingerprint": data.fingerprint, "attack": cfg.attack}
    if cfg.attack is not None:
        attacks.build(cfg.attack)  # what is wrong with it is said before the run begins
    with Run(out, "explain", seeds=seeds, device=data.train.users.device, **notes):
        worse = None if cfg.attack is None else Recommender(_attacked(cfg, asked, first), data, part=cfg.part)
        rows: list[Mapping[str, Any]] = []
        pairs = list(zip(users.tolist(), items.tolist(), strict=True))
        with Bar("explain", total=1, steps=len(pairs)) as bar:
            rows.extend(_row(asked, worse, user, item, cfg) for user, item in bar.each(0, pairs))
        frame = pd.DataFrame(rows)
        write_text(out / "explanations.csv", frame.to_csv(index=False))
        numbers = frame.drop(columns=["user", "item", "score", "rank"])
        told = {str(name): float(value) for name, value in numbers.mean().items()}
        show(
            f"explanations of {len(frame)} users' first items: {data.name}",
            ["", "mean"],
            [[*each] for each in told.items()],
        )
    return {f"explain/{name}": value for name, value in told.items()}


def _checked(cfg: Explain) -> None:
    for what, name, choices in (("method", cfg.method, METHODS), ("format", cfg.format, FORMATS)):
        if name not in choices:
            raise unknown(what, name, choices)
    sizes = {"top": cfg.top, "hops": cfg.hops, "k": cfg.k, "sample": 1 if cfg.sample is None else cfg.sample}
    if min(sizes.values()) < 1 or cfg.draws < 0:
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise RrecError(f"explain with {told}, draws={cfg.draws}: draws is not negative, the others are at least 1")


def _asked(cfg: Explain) -> Recommender:
    device = setup(cfg)
    if cfg.precision != "fp32":
        raise RrecError(f"precision={cfg.precision}: explanations are small differences of scores; use fp32")
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    return Recommender(Shifted(loaded.model.requires_grad_(False).eval()), loaded.data, part=cfg.part)


def _explained(asked: Recommender, user: int, item: int, cfg: Explain) -> Explanation:
    found = units(asked, user, item, cfg.by, hops=cfg.hops)
    importance = found.importance(cfg.method)
    if importance is None:
        raise RrecError(f"method=gradient: this model has no gradient in {found.kind}; use method=removal")
    order = importance.argsort(descending=True, stable=True)
    told = found.explained(order, cfg.top)
    measured = faithfulness(found, order, told, k=cfg.k, draws=cfg.draws, seed=cfg.seed)
    return Explanation(found, importance, order, told, measured)


def _row(asked: Recommender, worse: Recommender | None, user: int, item: int, cfg: Explain) -> dict[str, Any]:
    """What is measured of one explanation."""
    found = _explained(asked, user, item, cfg)
    data = asked.data
    there = float(len(found.units) > 0)
    row: dict[str, Any] = {"user": data.user_ids[user], "item": data.item_ids[item], "coverage": there}
    measured = asdict(found.measured)
    if not there:  # nothing is told, so there is nothing to be faithful
        measured |= dict.fromkeys(set(measured) - {"score", "rank", "units"}, float("nan"))
    row |= measured
    if isinstance(found.units, Paths):
        best = found.units.best(cfg.top)
        row["paths"] = float(len(found.units.values))
        row["length"] = sum(len(each.relations) for each in best) / len(best) if best else float("nan")
        row["relation_diversity"] = relation_diversity(_relations(best, data), _kinds(data)).item()
    if worse is not None:
        after = units(worse, user, item, cfg.by, hops=cfg.hops)
        importance = after.importance(cfg.method)
        assert importance is not None
        order = importance.argsort(descending=True, stable=True)
        row["jaccard"] = _jaccard(_keys(found.units, found.order, cfg.top), _keys(after, order, cfg.top))
        if max(_count(found.units), _count(after)) <= cfg.top:  # both tell everything, whatever counts most
            row["jaccard"] = float("nan")
    return row


def _count(found: Units) -> int:
    """Of what may be told."""
    return len(found.order) if isinstance(found, Paths) else len(found)


def _keys(found: Units, order: Tensor, top: int) -> set[Any]:
    """What is told, as things that can be compared between two models."""
    if isinstance(found, Paths):
        return {each.nodes + each.relations for each in found.best(top)}
    return set(order[:top].tolist())


def _jaccard(one: set[Any], two: set[Any]) -> float:
    return len(one & two) / len(one | two) if one | two else float("nan")


def _relations(best: Sequence[KgPath], data: Data) -> Tensor:
    """Those of all paths, `[1, N]`."""
    codes = {name: code for code, name in enumerate(data.kg.relation_ids if data.kg else ())}
    return torch.tensor([[codes[name] for each in best for name in each.relations]], dtype=torch.long).view(1, -1)


def _kinds(data: Data) -> int:
    return 0 if data.kg is None else data.kg.n_relations


def _attacked(cfg: Explain, asked: Recommender, first: Units) -> Shifted:
    """The attacked model, with what it derives from its parameters computed again. first: units of one explanation."""
    assert cfg.attack is not None
    part = cfg.part or "test"
    judge = Judge(protocol="full", seen=False, n_negatives=None, metrics=["ndcg"], top_k=[cfg.k], per_user=False)
    suite = attacks.build(cfg.attack).prepared(asked.model, asked.data)
    if isinstance(suite, HistoryAttack) or not isinstance(suite, Attack) or suite.aimed:
        raise RrecError(
            f"attack={cfg.attack['name']}: explanations are compared with those of one attacked model; take an attack "
            "on what all users share, such as pgd"
        )
    judging = evaluator(asked.data, judge, alone=suite.alone)
    (member,) = suite.members(judging.losses[:1], None)
    moved, _ = judging.attack(asked.at, member.attack, part, judging.climbed(member.loss))
    points = {id(each[0]): each[0] for each in moved if not isinstance(each, Tensor)}
    if len(points) != 1:
        raise RrecError(f"attack={cfg.attack['name']}: explanations are compared under one perturbation for all users")
    (point,) = points.values()
    names = dict(point.model.named_parameters()) | dict(point.model.named_buffers())
    if sites := [name for name in point.delta if name.endswith(".shift")] or [n for n in point.delta if n not in names]:
        raise RrecError(f"attack={cfg.attack['name']}: it moves {sites[0]}; choose embedding, weight or feature")
    if isinstance(first, Edges) and point.delta.keys() & asked.model.weighed(torch.ones(asked.model.n_edges)).keys():
        raise RrecError(f"attack={cfg.attack['name']} changes the edges that by=events weighs; take another attack")
    return Shifted(_materialised(point))


def _materialised(point: Shifted) -> RecModel:
    copy = deepcopy(point.model)
    parameters = dict(copy.named_parameters())
    with torch.no_grad():
        for name in point.delta.keys() & parameters.keys():
            parameters[name].add_(point.delta[name])
        copy.refresh()  # before what an attack has done to buffers, which may be derived
        for name in point.delta.keys() - parameters.keys():
            owner, _, leaf = name.rpartition(".")
            buffer = copy.get_buffer(name)
            setattr(copy.get_submodule(owner), leaf, buffer + point.delta[name])
    return copy


def _lines(found: Explanation, top: int) -> list[dict[str, Any]]:
    """What is told of units: importance by both methods where there are both; removal is always scored again."""
    chosen = found.order[:top]
    removal = found.units.removal(chosen).tolist()
    slopes = found.units.slopes()
    rows = []
    for place, unit in enumerate(chosen.tolist()):
        row = {found.units.kind.removesuffix("s"): found.units.said[unit], "removal": removal[place]}
        rows.append(row if slopes is None else {**row, "gradient": slopes[unit].item()})
    return rows


def _told(cfg: Explain, found: Explanation) -> dict[str, Any]:
    """As JSON can hold it."""
    data: Data = found.units.asked.data
    item = found.units.item
    told: dict[str, Any] = {
        "ckpt": cfg.ckpt,
        "dataset": data.name,
        "user": data.user_ids[found.units.user],
        "item": data.item_ids[item],
        "title": found.units.names.title(item) or None,
        "kind": found.units.kind,
        "method": cfg.method,
        "note": found.units.note,
    }
    if isinstance(found.units, Paths):
        best = found.units.best(cfg.top)
        told["method"] = "attention"
        told["paths"] = [
            {
                "path": each.said,
                "score": each.score,
                "parallel": each.parallel,
                "relations": list(each.relations),
                "nodes": list(each.nodes),
            }
            for each in best
        ]
    else:
        told["units"] = _lines(found, cfg.top)
    measured = asdict(found.measured)
    told["faithfulness"] = {name: None if value != value else value for name, value in measured.items()}
    return told


def _show(cfg: Explain, found: Explanation) -> None:
    told = _told(cfg, found)
    about = f"{found.units.names.item(found.units.item)} for user {told['user']}"
    if found.units.note:
        line(found.units.note)
    if not len(found.units):
        line(f"{about}: there are no {found.units.kind}")
        return
    if isinstance(found.units, Paths):
        count = len(found.units.order)
        line(f"{about}: {len(told['paths'])} of {count} paths of at most {cfg.hops} triples, attention first")
        for each in told["paths"]:
            more = f"  (and by {each['parallel']} more ways through the same)" if each["parallel"] else ""
            line(f"  {each['score']:.3g}  {each['path']}{more}")
    else:
        lines: Sequence[dict[str, Any]] = told["units"]
        title = f"{about}: {len(lines)} of {len(found.units)} {found.units.kind}"
        show(title, list(lines[0]), [list(each.values()) for each in lines])
    measured = asdict(found.measured)
    show("how faithful that is, scored again", ["", ""], [[*each] for each in measured.items()])
