"""Adaptations: which parameters of a trained model are trained on, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.adapters import Adapting

adaptations: "Registry[Adapting]" = Registry(__name__)
