"""Noise and shift of data, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.noise import Noise

noises: "Registry[Noise]" = Registry(__name__)
