"""The split that the data came with."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.errors import RrecError
from robustbench_rec.raw import PARTS, Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import TRAIN, VALID, Split, by_share, check_shares


@splits.register
class Presplit(Split):
    """The parts as the source has them; where it has no valid part, a random share of each user's train events.

    valid: that share; 0 leaves everything to training, which `rrec train`, as it stops early, refuses. seed: which
    events.
    """

    @dataclass
    class Config:
        valid: float
        seed: int

    config: Config

    def __call__(self, events: pd.DataFrame) -> Array:
        c = self.config
        check_shares(valid=c.valid)
        if "part" not in events:
            raise RrecError(
                "split=presplit needs data that comes split (dataset=adjacency, or recbole with dataset.parts); "
                "for others there are split=ratio, leave_one_out and temporal"
            )
        parts = pd.Categorical(events["part"], categories=PARTS).codes.astype(np.int8)
        train = np.flatnonzero(parts == TRAIN)
        if len(train) and not (parts == VALID).any():
            users = pd.factorize(events["user"].to_numpy()[train])[0]
            order = np.random.default_rng(c.seed).permutation(len(train))
            parts[train] = by_share(users, order, valid=c.valid, test=0.0)
        return parts
