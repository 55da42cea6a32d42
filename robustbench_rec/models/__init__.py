"""Recommenders, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.model import RecModel

models: "Registry[RecModel]" = Registry(__name__)
