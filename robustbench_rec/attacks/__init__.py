"""Attacks on a trained model, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.attack import Attack

attacks: "Registry[Attack]" = Registry(__name__)
