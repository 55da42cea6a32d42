from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import spared, with_test, without


@noises.register
class UnseenCategory(Noise):
    """A test on items of a category that train does not show.

    level: share of the category's items, drawn at random, that train loses and test alone has; a user with nothing else
    keeps one event. column: of the item table, null for the one with the fewest different words (without a value, of
    those that have one of at most half of the items). value: a word there, null for that of most items, but of at most
    half of them. Valid stays.
    """

    @dataclass
    class Config(Level):
        column: str | None
        value: str | None

    of_test: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.column, self.value = config.column, config.value

    def change(self, data: Data, generator: torch.Generator) -> Data:
        if data.item_table is None or data.item_table.empty:
            raise RrecError(f"noise '{self.name}' needs an item table, which dataset '{data.name}' does not have")
        words, value = self._chosen(data, data.item_table)
        members = torch.zeros(data.n_items)
        members[torch.tensor(words.index[words == value].to_numpy())] = 1
        unseen = torch.zeros(data.n_items, dtype=torch.bool)
        unseen[drawn(members, max(1, self.count(int(members.sum()))), generator)] = True
        kept = spared(data, generator) & ~_others(data, unseen)
        train = without(data, (unseen[data.train.items] & ~kept).nonzero().squeeze(1))
        return with_test(train, unseen[data.test.items], f"on items with '{value}'")

    def _chosen(self, data: Data, table: pd.DataFrame) -> tuple["pd.Series[str]", str]:
        """The different words of each item in a column, by the item's index, and the one of the category."""
        if self.column is not None and self.column not in table.columns:
            raise unknown("noise.column", self.column, map(str, table.columns))
        columns = [self.column] if self.column is not None else list(table.columns)
        split = [table[name].dropna().astype(str).str.split().map(set).explode().dropna() for name in columns]
        found, told = [each for each in split if len(each)], ", ".join(map(str, columns))
        if not found:
            raise RrecError(f"noise '{self.name}': no item of dataset '{data.name}' has a word in {told}")
        found.sort(key=lambda each: each.nunique())
        if self.value is not None:
            if self.value not in set(found[0]):
                raise unknown("noise.value", self.value, map(str, found[0].value_counts().index))
            return found[0], self.value
        for words in found:
            counts = words.value_counts()
            common = counts[counts <= data.n_items / 2]
            if len(common):
                return words, common.index[0]
        choices = ", ".join(map(str, found[0].value_counts().index))
        raise RrecError(
            f"noise '{self.name}': in {told} every word is that of more than half of the items; "
            f"name one as noise.value (choices: {choices})"
        )


def _others(data: Data, unseen: torch.Tensor) -> torch.Tensor:
    """Of which training events the user has another one on an item that stays, a liked one if it is, bool `[N]`."""
    users, liked = data.train.users, data.train.values != 0
    stays = ~unseen[data.train.items]
    rest, best = (torch.bincount(users[each], minlength=data.n_users)[users] > 0 for each in (stays, stays & liked))
    return torch.where(liked, best, rest)
