"""Distillation: objectives that add a teacher's knowledge to another objective, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.objective import Objective

distills: "Registry[Objective]" = Registry(__name__)
