"""Cleaning of the training data: steps between the data and a training, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.clean import Clean

cleans: "Registry[Clean]" = Registry(__name__)
