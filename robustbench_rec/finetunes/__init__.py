"""Ways to tune a trained model again, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.finetuning import Finetuning

finetunes: "Registry[Finetuning]" = Registry(__name__)
