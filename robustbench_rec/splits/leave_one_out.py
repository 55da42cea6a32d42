"""The next-item protocol."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.raw import Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import TEST, TRAIN, VALID, Split, in_time, rank_in_group


@splits.register
class LeaveOneOut(Split):
    """Each user's last event goes to test, the one before to valid; users with fewer than three stay in train.

    Last by time; without times, or at equal ones, last in the file.
    """

    @dataclass
    class Config:
        pass

    by_order = True

    def __call__(self, events: pd.DataFrame) -> Array:
        users = pd.factorize(events["user"])[0]
        counts = np.bincount(users)[users]
        left = counts - rank_in_group(users, in_time(events))
        parts = np.select([(left == 1) & (counts > 2), (left == 2) & (counts > 2)], [TEST, VALID], TRAIN)
        return parts.astype(np.int8)
