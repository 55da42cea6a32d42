"""The lists of some users before and after an attack that has been run."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Attack, typed_attack
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result, evaluator
from robustbench_rec.evaluation.base import Moved
from robustbench_rec.evaluation.worst import attacked, judged, members
from robustbench_rec.goals import goals
from robustbench_rec.hardware import setup
from robustbench_rec.histories import Histories
from robustbench_rec.naming import Names
from robustbench_rec.reports.page import Before, Listed
from robustbench_rec.reports.reading import Found
from robustbench_rec.shifted import Shifted

K = 10
HISTORY = 8
"""Items of a history that are named."""
CLOSE = 1e-6
"""Between what the run found and what it finds now."""


def lists(run: Found, source: Found, label: str, *, n: int, data_dir: str | None) -> Before:
    """Run a single attack again for the users who lost most, in the middle and least; RrecError where it cannot be.

    Every list is of a full ranking. A different result than the one of the run is refused too: these would be the lists
    of another attack.
    """
    cfg = _config(run, source, data_dir)
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    suite = attacks.build(cfg.attack).prepared(loaded.model, loaded.data)
    judging, goal = evaluator(loaded.data, cfg, alone=suite.alone), goals.build(cfg.goal, loaded.data)
    chosen = members(judging, suite, goal)
    if not isinstance(judging, Full) or len(chosen) != 1:
        raise RrecError("lists are shown for a full ranking and a single attack")
    at = Shifted(loaded.model.requires_grad_(False).eval())
    clean = judged(judging, at, cfg.part, goal)
    moved, _ = attacked(judging, at, chosen[0], cfg.part, goal, cfg.loss, own_labels=cfg.labels == "own")
    after = judged(judging, moved, cfg.part, goal)
    for side, result in (("clean", clean), ("attacked", after)):
        for name, value in result.metrics.items():
            told = (run.metrics or {}).get(f"{side}/{name}", float("nan"))
            if abs(told - value) > CLOSE:
                raise RrecError(f"run again, {side}/{name} is {value:.6f}, not {told:.6f}")
    users, why = _chosen(judging.watched(None), clean, after, n)
    names, data = Names(loaded.data), loaded.data
    before, later = (_tops(judging, point, cfg.part, users) for point in (at, moved))
    wanted = _pairs(data, cfg.part, users)
    return Before(
        label,
        [
            Listed(
                name=data.user_ids[user],
                why=why[place],
                place=place + 1,
                history=_history(data, cfg.part, names, user),
                before=[(names.item(item), (user, item) in wanted) for item in before[user]],
                after=[(names.item(item), (user, item) in wanted) for item in later[user]],
            )
            for place, user in enumerate(users.tolist())
        ],
    )


def _config(run: Found, source: Found, data_dir: str | None) -> Attack:
    """As the run had it, of the checkpoint where it lies now."""
    values = dict(run.config) | {"ckpt": str(source.path)}
    if data_dir is not None:
        values["data_dir"] = data_dir
    if "${" in json.dumps(values, default=str):
        raise RrecError(f"{run.path}: its configuration refers to what is not in it")
    try:
        return typed_attack(values)
    except (ValueError, OverflowError) as error:
        raise RrecError(f"{run.path}: its configuration cannot be read ({error})") from error


def _chosen(metric: str, clean: Result, after: Result, n: int) -> tuple[Tensor, list[str]]:
    """Users `[n]` at even places in the order of what they lost, among those with something to lose."""
    before = clean.per_user[metric]
    lost = (before - after.per_user[metric]).masked_fill(before == 0, float("nan"))
    order = lost.nan_to_num(-float("inf")).argsort(descending=True, stable=True)[: int((before > 0).sum())]
    places = torch.linspace(0, max(len(order) - 1, 0), min(n, len(order))).round().long()
    picked = order[places.to(order.device)]
    words = [
        f"{metric} {was:.3f} → {now:.3f}, place {place + 1} of {len(order)} by loss"
        for place, was, now in zip(
            places.tolist(), before[picked].tolist(), after.per_user[metric][picked].tolist(), strict=True
        )
    ]
    return clean.users[picked], words


@torch.no_grad()
def _tops(judging: Full, at: Shifted | Moved, part: str, users: Tensor) -> dict[int, Sequence[int]]:
    """The first K candidates of each of a few users."""
    found: dict[int, Sequence[int]] = {}
    with judging.judged(at, part) as scores:
        for chunk, each in zip(judging.portions(part), scores, strict=True):
            each[chunk.excluded] = float("-inf")
            for row in torch.isin(chunk.users, users).nonzero()[:, 0].tolist():
                there = int(each[row].isfinite().sum())
                found[int(chunk.users[row])] = each[row].topk(min(K, there)).indices.tolist()
    return found


def _pairs(data: Data, part: str, users: Tensor) -> set[tuple[int, int]]:
    liked = data.part(part).liked()
    kept = liked.where(torch.isin(liked.users, users))
    return set(zip(kept.users.tolist(), kept.items.tolist(), strict=True))


def _history(data: Data, part: str, names: Names, user: Any) -> list[str]:
    """The latest of what is known of a user before a part, or what stands last in the data."""
    parts = [data.train.liked(), *([data.valid.liked()] if part == "test" else [])]
    latest = Histories(*parts, n_users=data.n_users, n_items=data.n_items).of(
        data.train.users.new_tensor([int(user)]), HISTORY
    )
    return [names.item(item) for item in latest.items[0, : int(latest.lengths[0])].tolist()]
