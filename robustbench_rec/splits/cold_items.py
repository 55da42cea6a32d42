"""Items that training never sees."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.raw import Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import TEST, TRAIN, VALID, Split, check_shares


@splits.register
class ColdItems(Split):
    """All events of a random share of the items go to test, those of another share to valid: cold start of items.

    valid, test: shares of the items, rounded down, at least one item where the share is not 0. seed: which items.
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
        items, names = pd.factorize(events["item"])
        n_valid, n_test = (max(int(len(names) * share + 1e-9), share > 0) for share in (c.valid, c.test))
        parts = np.full(len(names), TRAIN, dtype=np.int8)
        order = np.random.default_rng(c.seed).permutation(len(names))
        parts[order[:n_valid]] = VALID
        parts[order[n_valid : n_valid + n_test]] = TEST
        found: Array = parts[items]
        return found
