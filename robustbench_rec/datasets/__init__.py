"""Datasets: `datasets.build(config)` gives the source of raw data that a config names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_dir

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.raw import Source

datasets: "Registry[Source]" = Registry(__name__)


def root(data_dir: str | None) -> Path:
    """Where datasets are fetched to and cached: `data_dir`, else $RREC_DATA, else the user's cache directory."""
    return Path(data_dir or os.environ.get("RREC_DATA") or user_cache_dir("robustbench_rec")).expanduser()
