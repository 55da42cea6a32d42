"""How many events of each user go into which part."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Array

TRAIN, VALID, TEST = 0, 1, 2  # positions in raw.PARTS


class Split(ABC):
    """A split component; `splits.build(config)` makes one."""

    Config: ClassVar[type]
    by_order: bool = False
    """Whether it goes by the order in which a user's events happened."""
    at_random: bool = False
    """Whether what it holds out is drawn, wherever in a history that is."""

    def __init__(self, config: Any) -> None:
        if getattr(config, "seed", 0) < 0:
            raise RrecError(f"split.seed={config.seed}: must not be negative")
        self.config = config

    @abstractmethod
    def __call__(self, events: pd.DataFrame) -> Array:
        """The part of each event, int8 `[N]`: 0 train, 1 valid, 2 test. events: the columns of `Raw.events`."""


def check_shares(**shares: float) -> None:
    """RrecError unless every share is in [0, 1) and together they leave something to train on."""
    wrong = [f"split.{name}={share:g}" for name, share in shares.items() if not 0 <= share < 1]
    if wrong or sum(shares.values()) >= 1:
        named = wrong or [f"split.{name}={share:g}" for name, share in shares.items()]
        raise RrecError(f"{' and '.join(named)}: shares are at least 0 and add up to less than 1")


def in_time(events: pd.DataFrame) -> Array:
    """Rows from the oldest to the latest, as a permutation `[N]`; ties, or all without times, as in the file."""
    return np.argsort(events["time"].to_numpy(), kind="stable") if "time" in events else np.arange(len(events))


def rank_in_group(groups: Array, order: Array) -> Array:
    """Place of each row within its group, from 0, when `order` (a permutation of the rows) is gone through `[N]`."""
    sorted_rows = order[np.argsort(groups[order], kind="stable")]
    counts = np.bincount(groups)
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[sorted_rows] = np.arange(len(groups)) - starts[groups[sorted_rows]]
    return ranks


def by_share(users: Array, order: Array, *, valid: float, test: float) -> Array:
    """Parts, int8 `[N]`: of each user's events, gone through in `order`, the first are train, then valid, then test.

    Valid and test are rounded down. A user whose share comes to less than one event still gives one to test, then one
    to valid, as long as train keeps one. These are the counts of RecBole 1.2.1 (ratio split grouped by user).
    """
    counts = np.bincount(users)
    n_valid, n_test = (np.floor(counts * share + 1e-9).astype(np.int64) for share in (valid, test))
    n_train = counts - n_valid - n_test
    for part, share in ((n_test, test), (n_valid, valid)):
        lend = (n_train > 1) & (part == 0) & (share > 0)
        part += lend
        n_train -= lend
    ranks = rank_in_group(users, order)
    parts: Array = (ranks >= n_train[users]).astype(np.int8) + (ranks >= (n_train + n_valid)[users])
    return parts
