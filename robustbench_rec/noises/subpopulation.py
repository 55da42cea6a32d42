from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import with_test


@noises.register
class Subpopulation(Noise):
    """A test on some users, or on some items, alone.

    level: share of the other test events that go, at random; at 1 only those of the subpopulation are left. among:
    users or items, with the fewest training events; or a column of the user table. share: of the users with a test
    event, or of the items, that are the coldest. value: in the column. Train and valid stay.
    """

    @dataclass
    class Config(Level):
        among: str
        share: float
        value: str | None

    of_test: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not 0 < config.share <= 1:
            raise RrecError(f"noise.share={config.share}: a share above 0 and at most 1")
        self.among, self.share, self.value = config.among, config.share, config.value

    def change(self, data: Data, generator: torch.Generator) -> Data:
        kept = self._members(data)
        others = (~kept).float()
        gone = drawn(others, self.count(int(others.sum())), generator)
        left = torch.ones_like(kept)
        left[gone] = False
        told = "of such items" if self.among == "items" else "of such users"
        return with_test(data, left, told)

    def _members(self, data: Data) -> Tensor:
        """Which test events are of the subpopulation, bool `[N]`."""
        if self.among == "users":
            return self._coldest(data.train.users, torch.unique(data.test.users), data.n_users)[data.test.users]
        if self.among == "items":
            return self._coldest(data.train.items, torch.arange(data.n_items), data.n_items)[data.test.items]
        columns = [] if data.user_table is None else list(map(str, data.user_table.columns))
        if self.among not in columns:
            raise unknown("noise.among", self.among, ["users", "items", *columns])
        assert data.user_table is not None
        column = data.user_table[self.among]
        known = column.dropna().astype(str).unique()
        if self.value not in known:
            raise unknown(f"noise.value in column '{self.among}'", str(self.value), known)
        return torch.tensor((column.notna() & (column.astype(str) == self.value)).to_numpy())[data.test.users]

    def _coldest(self, owners: Tensor, among: Tensor, n: int) -> Tensor:
        """The share of `among` with the fewest training events, bool `[n]`."""
        counts = torch.bincount(owners, minlength=n)[among]
        cold = torch.zeros(n, dtype=torch.bool)
        cold[among[counts.argsort(stable=True)[: max(1, round(self.share * len(among)))]]] = True
        return cold
