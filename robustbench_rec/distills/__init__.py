"""Distillation: terms that add a teacher's knowledge to an objective, one module each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.distillation import Distillation, Lesson, Term
    from robustbench_rec.objective import Objective

distills: "Registry[Term]" = Registry(__name__)


def distilled(config: Mapping[str, Any], inner: "Objective", lesson: "Lesson", *, task: float = 1.0) -> "Distillation":
    """An objective beside the terms of a config, one or several."""
    from robustbench_rec.distillation import Distillation, chain  # imports torch, which listing the names does not need

    return Distillation(inner, [distills.build(each, lesson) for each in chain(config)], lesson, task=task)
