"""Defences: training objectives around another objective, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.objective import Objective

defenses: "Registry[Objective]" = Registry(__name__)
