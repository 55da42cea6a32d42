"""What the tests of distillation share: small teachers, and students that learn from them."""

from dataclasses import replace
from typing import Any

import torch
from conftest import DATA, Fixed, build, configured
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data, Interactions
from robustbench_rec.distillation import Distillation, Lesson
from robustbench_rec.distills import distilled
from robustbench_rec.distills._lists import OverLists
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, innermost, start_epoch
from robustbench_rec.shifted import Shifted
from robustbench_rec.teacher import Taught, Teacher

BPR = Plain(loss("bpr"))
LISTS = ("boundary", "cd", "finest", "listwise", "pointwise", "rrd")
VECTORS = ("contrastive", "crd", "de", "topology")
FEW: dict[str, dict[str, Any]] = {
    "listwise": {"top": 6, "uniform": 4},
    "pointwise": {"top": 6, "uniform": 4},
    "boundary": {"k": 3, "size": 5},
    "cd": {"count": 4, "top": 8},
    "finest": {"top": 4},
    "rrd": {"interesting": 4, "uninteresting": 3, "top": 8},
    "de": {"experts": 2},
    "crd": {"negatives": 7, "dim": 6},
    "contrastive": {"dim": 6},
}
WITHOUT = ("ease", "itemknn", "llm_prompt", "pop")
UNEQUAL = ("lstm_text",)
"""Whose vectors of users have another size than those of items."""
STUDENTS = (
    "mf",
    "biased_mf",
    "neumf",
    "lightgcn",
    "kgat",
    "kgcn",
    "deepcf_mlp",
    "gru4rec",
    "sasrec",
    "text_tower",
    "lstm_text",
    "deepfm",
)
TEACHERS = ("pop", "ease", "mf", "lightgcn", "structure_aware_kgat", "comirec", "stosa", "multi_intent_gaussian")


PERTURBED = ("mf", "lightgcn", "sasrec", "lstm_text", "deepfm", "biased_mf")


def teacher_of(name: str = "mf", data: Data = DATA, *, seed: int = 9, **changes: Any) -> Taught:
    return Taught.of(build(name, data, seed=seed, **changes), data)


def fixed(scores: Tensor, data: Data = DATA) -> Taught:
    return Taught.of(Fixed(scores), data)


def distil(
    name: str = "listwise",
    inner: Objective = BPR,
    teacher: Teacher | None = None,
    student: RecModel | None = None,
    *,
    data: Data = DATA,
    epoch: int = 0,
    epochs: int = 10,
    task: float = 1.0,
    seen: bool = False,
    **changes: Any,
) -> Distillation:
    pupil, alone = student or build("mf", data), innermost(inner).loss
    lesson = Lesson(teacher or teacher_of(data=data), pupil, data, epochs, alone, seen)
    settings = configured("distill", name, **(FEW.get(name, {}) | changes))
    built = distilled(settings, inner, lesson, task=task)
    start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
    return built


def value_of(built: Distillation, student: RecModel, batch: Batch) -> Tensor:
    """The one term, without its weight."""
    found: Tensor = built.terms[0](Shifted(student), batch)
    return found


def lists_of(built: Distillation) -> OverLists:
    term = built.terms[0]
    assert isinstance(term, OverLists)
    return term


def heavy(count: int) -> Data:
    """DATA with a first user who has the first items of the catalogue."""
    kept = (DATA.train.users != 0).nonzero().squeeze(1)
    others = {name: each[kept] for name, each in vars(DATA.train).items() if each is not None}
    first = torch.arange(count)
    own = {"users": torch.zeros_like(first), "items": first, "values": torch.ones(count)}
    train = Interactions(**{name: torch.cat([own[name].to(others[name].dtype), others[name]]) for name in own})
    return replace(DATA, train=train)


def listed(built: Distillation, user: int) -> Tensor:
    """The items of a user that count."""
    term = lists_of(built)
    return term.lists[user] if term.there is None else term.lists[user][term.there[user]]
