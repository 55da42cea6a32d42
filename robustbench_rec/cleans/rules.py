import time
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import rated
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError

DAY = 86_400


@cleans.register
class Rules(Clean):
    """Simple rules, each counted: near-duplicates, impossible times, bots, constant raters.

    repeat: seconds after an event within which the same user with the same item is a near-duplicate; the first stays.
    rate: a user with more events in any 60 seconds is a bot. longest: so is one whose number of events lies above this
    quantile of all users. constant: so many ratings or more, all the same, make a constant rater. null leaves a rule
    out; those about times or ratings say nothing where the data has none. Impossible times are before 1970 or more than
    a day ahead, as in `prepare`, which does not see fake users; the other rules about times pass them over. Of bots and
    constant raters all events go.
    """

    @dataclass
    class Config:
        repeat: int | None
        rate: int | None
        longest: float | None
        constant: int | None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        whole = (config.repeat, config.rate, config.constant)
        if any(each is not None and each < 1 for each in whole) or not (
            config.longest is None or 0 < config.longest <= 1
        ):
            raise RrecError(
                f"clean.repeat={config.repeat}, clean.rate={config.rate}, clean.constant={config.constant}, "
                f"clean.longest={config.longest}: numbers are at least 1, longest is a quantile in (0, 1]"
            )

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        c, train = self.config, data.train
        removed = torch.zeros(len(train), dtype=torch.bool)
        flagged, counts = torch.zeros(data.n_users, dtype=torch.bool), dict[str, int]()
        if train.times is not None:
            removed = (train.times < 1) | (train.times > int(time.time()) + DAY)
            counts["impossible_times"] = int(removed.sum())
            timed = train.where(~removed)
            assert timed.times is not None
            if c.repeat is not None:
                again = _again(timed.users * data.n_items + timed.items, timed.times, c.repeat)
                counts["near_duplicates"] = int(again.sum())
                removed = removed.masked_scatter(~removed, again)
            if c.rate is not None:
                fast = _busiest(timed.users, timed.times, data.n_users) > c.rate
                counts["bots_by_rate"] = int(fast.sum())
                flagged |= fast
        length = torch.bincount(train.users, minlength=data.n_users)
        if c.longest is not None:
            long = length > length[length > 0].double().quantile(c.longest)
            counts["bots_by_length"] = int(long.sum())
            flagged |= long
        if c.constant is not None and rated(data):
            low = torch.full((data.n_users,), float("inf")).scatter_reduce(0, train.users, train.values, "amin")
            high = torch.full((data.n_users,), float("-inf")).scatter_reduce(0, train.users, train.values, "amax")
            constant = (low == high) & (length >= c.constant)
            counts["constant_raters"] = int(constant.sum())
            flagged |= constant
        scores = torch.where(length > 0, flagged.double(), float("nan"))
        return Finding(removed | flagged[train.users], counts, flagged, scores)


def _again(pairs: Tensor, times: Tensor, within: int) -> Tensor:
    """Which events come at most so many seconds after another one of the same pair, bool `[N]`."""
    order = times.argsort(stable=True)
    order = order[pairs[order].argsort(stable=True)]
    close = (pairs[order].diff() == 0) & (times[order].diff() <= within)
    return torch.zeros(len(pairs), dtype=torch.bool).index_fill(0, order[1:][close], True)


def _busiest(users: Tensor, times: Tensor, n: int) -> Tensor:
    """The most events that each of n users has in any 60 seconds `[n]`."""
    if not len(users):
        return torch.zeros(n, dtype=torch.long)
    base = times - times.min()
    line = users * (int(base.max()) + 61) + base  # users one after the other, further apart than a minute
    line = line.sort().values
    inside = torch.arange(1, len(line) + 1) - torch.searchsorted(line, line - 59)
    owner = torch.div(line, int(base.max()) + 61, rounding_mode="floor")
    return torch.zeros(n, dtype=torch.long).scatter_reduce(0, owner, inside, "amax")
