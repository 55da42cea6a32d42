"""Shares of each user's events."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustbench_rec.errors import unknown
from robustbench_rec.raw import Array
from robustbench_rec.splits import splits
from robustbench_rec.splits._shares import Split, by_share, check_shares, in_time


@splits.register
class Ratio(Split):
    """A share of each user's events, drawn at random or the latest: 8:1:1 as in RecBole by default.

    order: random (by `seed`) or time (the latest go to test, those before to valid; without times, as in the file).
    """

    @dataclass
    class Config:
        valid: float
        test: float
        order: str
        seed: int

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.by_order, self.at_random = config.order == "time", config.order == "random"

    def __call__(self, events: pd.DataFrame) -> Array:
        c = self.config
        check_shares(valid=c.valid, test=c.test)
        if c.order == "random":
            order = np.random.default_rng(c.seed).permutation(len(events))
        elif c.order == "time":
            order = in_time(events)
        else:
            raise unknown("order of split 'ratio'", c.order, ["random", "time"])
        return by_share(pd.factorize(events["user"])[0], order, valid=c.valid, test=c.test)
