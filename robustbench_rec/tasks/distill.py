"""rrec distill."""

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.adapters import sizes
from robustbench_rec.config import Distill
from robustbench_rec.data import Data
from robustbench_rec.distillation import Distillation, Lesson
from robustbench_rec.distills import distilled
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator
from robustbench_rec.largest import largest
from robustbench_rec.metrics.agreement import kendall, overlap
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, innermost
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.tasks.train import Wrap, train
from robustbench_rec.teacher import Average, Ensemble, Kept, Matrix, Taught, Teacher
from robustbench_rec.trainer import Trainer

FIRST = 50
"""How many of the teacher's best items Kendall's τ is about."""
TIMED = 256
"""Users who are scored to measure latency."""
MATRIX = ".npy"
"""Of the name of a file of scores."""


def run(cfg: Distill, out: Path) -> dict[str, float]:
    """Train a student with a defence and the knowledge of a frozen teacher, both on the same data.

    The teacher may have seen the data without their noise: users, items and split must be the same.
    """
    return train(cfg, out, "distill", taught(cfg), about(cfg), partial(_compare, cfg))


def about(cfg: Distill) -> dict[str, Any]:
    """What a run that goes on must have alike, beside what every training has: also what the teachers are."""
    settings = {name: getattr(cfg, name) for name in ("distill", "teacher", "task_weight", "ema", "seen")}
    return settings | {"teachers": [_digest(each) for each in members(cfg) if each != "ema"]}


def taught(cfg: Distill) -> Wrap:
    """What puts the terms of a distillation around the student's own objective."""

    def wrap(objective: Objective, model: RecModel, data: Data) -> Objective:
        if not model.trainable:
            raise RrecError(f"model={cfg.model['name']} is computed, not trained: no teacher can change it")
        if not cfg.task_weight and cfg.defense["name"] != "none":
            raise RrecError(f"defense={cfg.defense['name']} is about the task, which task_weight=0 leaves out")
        teacher = teacher_of(cfg, model, data)
        lesson = Lesson(teacher, model, data, cfg.epochs, innermost(objective).loss, cfg.seen)
        return distilled(cfg.distill, objective, lesson, task=cfg.task_weight)

    return wrap


def teacher_of(cfg: Distill, student: RecModel, data: Data) -> Teacher:
    """The teacher that `teacher=` names."""
    named = members(cfg)
    if named == ["ema"]:
        teacher: Teacher = Average(student, data, cfg.ema, cfg.loss or student.loss)
        return Kept(teacher, data, "") if cfg.cache else teacher
    made = [_member(cfg, each, data) for each in named]
    teacher = made[0][0] if len(made) == 1 else Ensemble([each for each, _ in made], data)
    if cfg.cache:
        key = sha256(json.dumps([[each for _, each in made], data.user_ids, data.item_ids]).encode()).hexdigest()
        return Kept(teacher, data, key[:32])
    return teacher


def members(cfg: Distill) -> list[str]:
    """The words of `teacher=`; RrecError where they are none."""
    named = cfg.teacher if isinstance(cfg.teacher, list) else [cfg.teacher]
    if not named or not all(isinstance(each, str) for each in named):
        raise RrecError(f"teacher={cfg.teacher}: a run directory, a list of them, a file of scores or ema is needed")
    if len(named) > 1 and "ema" in named:
        raise RrecError("teacher=[…, ema]: the average of the student is no member of an ensemble")
    return named


def _digest(path: str) -> str:
    """A hash of all that makes a teacher what it is, but for the data of a run."""
    if path.endswith(MATRIX):
        return Matrix.digest(Path(path))
    return checkpoint.digest(path, "teacher")


def _member(cfg: Distill, path: str, data: Data) -> tuple[Teacher, str]:
    """A teacher, and a hash of all that makes it what it is."""
    if path.endswith(MATRIX):
        return Matrix.read(Path(path), data), _digest(path) if cfg.cache else ""
    loaded = checkpoint.load(path, data_dir=cfg.data_dir, device=data.train.users.device, key="teacher")
    checkpoint.same_source(loaded, cfg, data, "teacher", path)
    found = Taught.of(loaded.model, loaded.data)
    found.loss = loaded.learnt.get("loss") or found.loss
    return found, loaded.digest + loaded.data.fingerprint


@torch.no_grad()
def _compare(cfg: Distill, trainer: Trainer, judging: Evaluator[Any], cost: dict[str, float]) -> dict[str, float]:
    """How far student and teacher agree on what they would recommend, and what each of them costs."""
    objective = trainer.objective
    assert isinstance(objective, Distillation)
    lesson, names = objective.lesson, [f"overlap@{k}" for k in cfg.top_k]
    if isinstance(lesson.teacher, Average):
        lesson.teacher.settle()  # also where a run that goes on has no epoch left
    trained, total = sizes(trainer.model)
    student = Taught.of(trainer.model, lesson.data)
    sums: dict[str, list[Tensor]] = {name: [] for name in (*names, "kendall")}
    for portion in lesson.portions():
        users = portion[portion < lesson.data.n_genuine]
        if not len(users):
            break
        theirs = lesson.unseen(users)
        own = student.scores(users, None).masked_fill(theirs.isinf(), float("-inf"))
        for name, k in zip(names, cfg.top_k, strict=True):
            enough = theirs.isfinite().sum(1) >= k
            sums[name].append(overlap(own, theirs, k).where(enough, torch.nan))
        first = largest(theirs, min(FIRST, theirs.shape[1]))[1]
        lists = (each.gather(1, first).masked_fill(each.gather(1, first).isinf(), torch.nan) for each in (own, theirs))
        sums["kendall"] += [kendall(*pair) for pair in _pieces(*lists)]
    found = {f"agreement/{name}": torch.cat(each).nanmean().item() for name, each in sums.items()}
    parameters = [student.parameters, lesson.teacher.parameters]
    found |= {
        "size/student": float(parameters[0]),
        "size/teacher": float(parameters[1]),
        "size/trained_share": trained / max(1, total),
    }
    users = torch.arange(min(TIMED, lesson.data.n_genuine), device=lesson.data.train.users.device)
    speeds = [_speed(each, users) for each in (student, lesson.teacher.asked())]
    cost |= dict(zip(("users_per_second/student", "users_per_second/teacher"), speeds, strict=True))
    _show(cfg, objective, trainer, found, speeds)
    return found


def _speed(teacher: Teacher, users: Tensor) -> float:
    """Users a second whose scores of the whole catalogue are computed, once it has been done before."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        teacher.scores(users, None).sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - start)
    return len(users) / max(seconds[-1], 1e-9)


def _pieces(one: Tensor, two: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The same rows, some at a time: all pairs of a list are looked at."""
    return list(zip(one.split(1024), two.split(1024), strict=True))


def _show(
    cfg: Distill,
    objective: Distillation,
    trainer: Trainer,
    found: Mapping[str, float],
    speeds: Sequence[float],
) -> None:
    terms = [key for key in (trainer.history[0] if trainer.history else {}) if key.startswith("term/")]
    rows: list[Row] = [[key.removeprefix("term/"), *(trainer.history[at][key] for at in (0, -1))] for key in terms]
    show(f"{objective.formula} (weight × value, epoch by epoch in history.csv)", ["term", "first", "last"], rows)
    shown = {name: value for name, value in found.items() if name.startswith("agreement/")}
    show("agreement of student and teacher", list(shown), [list(shown.values())])
    size: list[Row] = [["parameters", int(found["size/student"]), int(found["size/teacher"])]]
    size.append(["users a second", *(round(each) for each in speeds)])
    show("size and speed", ["", "student", "teacher"], size)
