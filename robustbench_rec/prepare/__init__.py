"""From what a source delivers to what a model sees: `load(recipe, data_dir)` is the one door."""

from robustbench_rec.prepare.pipeline import load, prepare

__all__ = ["load", "prepare"]
