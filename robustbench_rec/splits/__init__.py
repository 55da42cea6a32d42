"""Splits: `splits.build(config)` says for each event whether it belongs to train, valid or test."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.splits._shares import Split

splits: "Registry[Split]" = Registry(__name__)
