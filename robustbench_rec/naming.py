"""Original ids and titles, as people say them."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError

TITLES = ("title", "name")
"""The last word of the name of the column with the titles of items; `title` itself comes before all others."""


class Names:
    """Users and items of a dataset by what people call them."""

    def __init__(self, data: Data) -> None:
        self.data = data
        columns = [each for each in data.text_columns if _last_word(each) in TITLES]
        columns.sort(key=lambda each: each.lower() != TITLES[0])
        self.titles: list[str] | None = None
        if columns and data.item_table is not None:
            column = data.item_table[columns[0]]
            self.titles = column.astype("object").where(column.notna(), "").astype("str").tolist()

    def users(self, said: Any) -> Tensor:
        """Indices `[n]` of one user or several; RrecError with the near misses for one that is not there."""
        found = []
        for each in _several(said):
            if each not in self._users:
                raise _unknown("user", each, self._users, self.data, f"{self.data.n_genuine} users")
            found.append(self._users[each])
        return self._index(found)

    def items(self, said: Any) -> Tensor:
        """The same of items, by id or by a title that one item alone has, in whatever case."""
        found = []
        for each in _several(said):
            if each in self._items:
                found.append(self._items[each])
                continue
            named = self._titled.get(each.casefold(), [])
            if len(named) > 1:
                ids = ", ".join(self.data.item_ids[item] for item in named[:5])
                raise RrecError(f"{len(named)} items have the title '{each}': name one by its id ({ids})")
            if not named:
                known = [*self._items, *(self.titles or ())]
                raise _unknown("item", each, known, self.data, f"{self.data.n_items} items")
            found.append(named[0])
        return self._index(found)

    def title(self, item: int) -> str:
        """Of an item; empty where there is none."""
        return "" if self.titles is None else self.titles[item]

    def item(self, item: int) -> str:
        """Title and id, or the id alone."""
        title = self.title(item)
        return f"{title} [{self.data.item_ids[item]}]" if title else self.data.item_ids[item]

    @cached_property
    def _users(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.data.user_ids[: self.data.n_genuine])}

    @cached_property
    def _items(self) -> Mapping[str, int]:
        return {name: index for index, name in enumerate(self.data.item_ids)}

    @cached_property
    def _titled(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for index, title in enumerate(self.titles or ()):
            found.setdefault(title.casefold(), []).append(index)
        return found

    def _index(self, found: list[int]) -> Tensor:
        return torch.tensor(found, dtype=torch.long, device=self.data.train.users.device)


def _last_word(name: str) -> str:
    """Of movie_title, movieTitle, Book-Title: title."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W_a-zA-Z]+", name)
    return words[-1].lower() if words else ""


def _several(said: Any) -> list[str]:
    return [str(each) for each in said] if isinstance(said, (list, tuple)) else [str(said)]


def _unknown(what: str, name: str, known: Iterable[str], data: Data, count: str) -> RrecError:
    folded = {each.casefold(): each for each in known if each}
    near = [folded[each] for each in get_close_matches(name.casefold(), folded, n=3)]
    hint = f"; near: {', '.join(repr(each) for each in near)}" if near else ""
    return RrecError(f"dataset '{data.name}' has no {what} '{name}'{hint} (of {count})")
