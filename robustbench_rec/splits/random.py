"""Shares of all events."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.raw import Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import TEST, TRAIN, VALID, Split, check_shares


@splits.register
class Random(Split):
    """A share of all events, drawn at random, whoever's they are: 6:2:2 as in KGCN by default (Wang et al., WWW 2019).

    A user may have all events in one part; who has none in train is left out. Shares are rounded down.
    """

    @dataclass
    class Config:
        valid: float
        test: float
        seed: int

    config: Config
    at_random = True

    def __call__(self, events: pd.DataFrame) -> Array:
        c = self.config
        check_shares(valid=c.valid, test=c.test)
        order = np.random.default_rng(c.seed).permutation(len(events))
        n_valid, n_test = (int(len(events) * share + 1e-9) for share in (c.valid, c.test))
        parts = np.full(len(events), TRAIN, dtype=np.int8)
        parts[order[:n_valid]] = VALID
        parts[order[n_valid : n_valid + n_test]] = TEST
        return parts
