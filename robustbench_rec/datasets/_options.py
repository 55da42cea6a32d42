"""Options that several datasets have."""

from pathlib import Path

from robustbench_rec.errors import RrecError
from robustbench_rec.sheet import locate


def folder_of(path: str) -> Path:
    """`locate` for a folder; RrecError where there is none."""
    folder = locate(path)
    if not folder.is_dir():
        raise RrecError(f"dataset.path={path} is {'a file, not a folder' if folder.exists() else 'no folder here'}")
    return folder


def scale_of(bounds: list[float] | None) -> tuple[float, float] | None:
    """The rating scale of a config, smallest and largest."""
    if bounds is None:
        return None
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise RrecError(f"dataset.scale must be [smallest, largest], got {bounds}")
    return bounds[0], bounds[1]
