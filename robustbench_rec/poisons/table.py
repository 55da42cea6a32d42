from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch

from robustbench_rec.data import Data, Interactions, Profiles
from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Poison
from robustbench_rec.poisons import poisons
from robustbench_rec.profiles import inject
from robustbench_rec.sheet import File, locate, read
from robustbench_rec.targets import targets
from robustbench_rec.threat import Threat


@poisons.register
class Table(Poison):
    """The fake users of a table, made by whatever else: a row an event, in the order in which they happen.

    path: a CSV, TSV or Parquet file with the columns `user` (names, which mean nothing outside), `item` (original ids)
    and, where the data has ratings, `rating`; else that column is not read. items: the targets, original ids. Where the
    data has times, the events of a fake user are spread evenly over them. RrecError for what the data cannot take, as
    an item that it does not have, or a rating beside its scale.
    """

    @dataclass
    class Config:
        path: str | None
        items: list[str] | None

    threat: ClassVar[Threat] = Threat(
        surface="training data", knowledge="transfer", scope="all users at once", budget="as in the table"
    )

    def __init__(self, config: Config) -> None:
        if config.path is None or not config.items:
            raise RrecError("poison=table needs poison.path=<table with user,item> and poison.items=[<target>,…]")
        self.path, self.items, self.described = locate(config.path), config.items, asdict(config)

    def __call__(self, data: Data) -> Data:
        return inject(data, self.profiles(data))

    def profiles(self, data: Data) -> Profiles:
        """The fake users."""
        frame, aims = self._read("rating" in data.has), targets(data, self.items, stratum="unpopular", count=0, seed=0)
        if data.train.context is not None:
            raise RrecError(f"poison=table: dataset '{data.name}' has context columns, which a table cannot tell")
        if "rating" not in frame and "rating" in data.has:
            raise RrecError(f"{self.path}: dataset '{data.name}' has ratings, so a column rating is needed")
        frame = frame.assign(rating=_ratings(frame, data, self.path) if "rating" in data.has else 1.0)
        places = pd.Index(data.item_ids).get_indexer(pd.Index(frame["item"]))
        if (places < 0).any():
            raise RrecError(f"{self.path}: dataset '{data.name}' has no item '{frame['item'][places < 0].iloc[0]}'")
        owner, names = pd.factorize(frame["user"])
        frame = frame.assign(owner=owner, place=places).sort_values("owner", kind="stable")
        if (twice := frame.duplicated(["owner", "place"])).any():
            user, item = frame[twice][["user", "item"]].iloc[0]
            raise RrecError(f"{self.path}: user '{user}' has item '{item}' twice")
        longest = int(frame["owner"].value_counts().max())
        threat = Threat(
            surface="training data",
            knowledge=self.threat.knowledge,
            scope=self.threat.scope,
            budget=f"{len(names)} fake users ({len(names) / data.n_users:.1%}), {longest} events each, at most",
            goal=f"promote {', '.join(self.items)}",
        )
        about = {
            "config": {"name": "table", **self.described},
            "targets": self.items,
            "length": longest,
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "threat": threat.words(),
        }
        return Profiles(_events(frame, data), len(names), aims.cpu(), about)

    def _read(self, rated: bool) -> pd.DataFrame:
        sheet = read(File(str(self.path), separator=None, quote='"', header=True, encoding="utf-8"), self.path)
        frame = sheet.columns({"user": "user", "item": "item"})
        return frame.assign(rating=sheet.ratings("rating")) if rated and "rating" in sheet.frame else frame


def _events(frame: pd.DataFrame, data: Data) -> Interactions:
    """frame: by fake user, each in order."""
    times = None
    if data.train.times is not None:
        first, last = int(data.train.times.min()), int(data.train.times.max())
        sizes = frame.groupby("owner")["place"].transform("size")
        share = (frame.groupby("owner").cumcount() + 1) / (sizes + 1)
        times = torch.tensor((first + share * (last - first)).round().astype("int64").to_numpy())
    users, items = (torch.tensor(frame[name].to_numpy("int64")) for name in ("owner", "place"))
    return Interactions(users, items, torch.tensor(frame["rating"].to_numpy("float32")), times)


def _ratings(frame: pd.DataFrame, data: Data, path: Path) -> pd.Series:
    """The ratings; RrecError for one that no genuine user could give."""
    given, known = frame["rating"], torch.unique(data.train.values).tolist()
    labels = set(known) <= {0.0, 1.0}
    kept = given.astype("float32")  # in the precision of the data
    wrong = ~kept.isin([0, 1]) if labels else ~kept.between(known[0], known[-1])
    if wrong.any():
        scale = "are labels, 0 or 1" if labels else f"go from {known[0]:g} to {known[-1]:g}"
        user, rating = frame[wrong][["user", "rating"]].iloc[0]
        raise RrecError(f"{path}: user '{user}' has rating {rating:g}; those of dataset '{data.name}' {scale}")
    return given
