"""What a dataset component delivers, before cleaning, splitting and indexing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Raw:
    """Tables as a source has them; every id is text, rows stand in the order of the source.

    events: `user`, `item`, and where known `rating` (float64), `time` (seconds since 1970, int64, or float64 with
    fractions, which order events and are then dropped), `part` (one of PARTS, for data that comes split). context:
    names of text columns of `events` that tell the circumstances of each event.
    ordered: each user's rows stand in the order in which they happened; with times that is so anyway. items, users:
    first column `item` / `user`, then features. kg: `head`, `relation`, `tail`. links: `item`, `entity`; without links
    an item is the entity that carries its id. scale: smallest and largest rating. repeats: the same item can come back
    to a user (sequences), so that repeated pairs are no defect. truth: planted ground truth, named `event/…`, `user/…`
    or `item/…`; row i belongs to row i of that table.
    """

    events: pd.DataFrame
    items: pd.DataFrame | None = None
    users: pd.DataFrame | None = None
    kg: pd.DataFrame | None = None
    links: pd.DataFrame | None = None
    scale: tuple[float, float] | None = None
    context: tuple[str, ...] = ()
    ordered: bool = False
    repeats: bool = False
    truth: Mapping[str, Array] = field(default_factory=dict)


def one_to_one(links: pd.DataFrame) -> Array:
    """The links that stay where an item or an entity has several, each time the first, bool `[N]`."""
    kept = ~(links["item"].duplicated() | links["entity"].duplicated()).to_numpy()
    if kept.all():
        return kept
    items: set[str] = set()
    entities: set[str] = set()
    for row, (item, entity) in enumerate(zip(links["item"], links["entity"], strict=True)):
        kept[row] = item not in items and entity not in entities
        if kept[row]:
            items.add(item)
            entities.add(entity)
    return kept


class Source(ABC):
    """A dataset component: where raw data comes from; `datasets.build(config)` makes one."""

    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        self.config = config

    def fetch(self, root: Path) -> None:  # noqa: B027  most sources read files that are there already
        """Bring what is published elsewhere into the data directory `root`; at once done where it is already there."""

    @abstractmethod
    def files(self, root: Path) -> list[Path]:
        """Every file that `load` will read; their content decides whether a prepared copy is still good."""

    @abstractmethod
    def load(self, root: Path) -> Raw:
        """Read and check the source; RrecError names the file, line and column of the first mistake."""
