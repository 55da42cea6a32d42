"""One moment for everybody."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import Split, check_shares


@splits.register
class Temporal(Split):
    """Two moments cut all events: before the first is train, between them valid, after the second test.

    valid, test: shares of the events; the cuts are quantiles of the times, and one second is never in two parts.
    Nothing of the future leaks into training, unlike with a split per user.
    """

    @dataclass
    class Config:
        valid: float
        test: float

    config: Config

    def __call__(self, events: pd.DataFrame) -> Array:
        c = self.config
        check_shares(valid=c.valid, test=c.test)
        if "time" not in events:
            raise RrecError(
                "split=temporal needs times, which this dataset has none of (split=ratio, leave_one_out do not)"
            )
        times: Array = np.floor(events["time"].to_numpy())
        ends = np.array([1 - c.valid - c.test, 1 - c.test]) - 1e-9  # 1 - 0.1 - 0.3 is above 0.6
        cuts = np.quantile(times, ends, method="inverted_cdf")
        parts: Array = np.searchsorted(cuts, times, side="left").astype(np.int8)
        return parts
