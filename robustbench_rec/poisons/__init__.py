"""Fake users in the training data, one way to make them a module."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.poison import Poison

poisons: "Registry[Poison]" = Registry(__name__)
