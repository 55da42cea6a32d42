"""rrec recommend."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.config import Recommend
from robustbench_rec.console import line
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.files import drafted, write_text
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.naming import Names
from robustbench_rec.recommendation import Lists, Recommender
from robustbench_rec.reports.tables import show
from robustbench_rec.shifted import Shifted

FORMATS = ("table", "json", "csv")
SUFFIXES = (".csv", ".json", ".parquet")


@dataclass(frozen=True)
class Answer:
    """A list and whose it is. user: original id, None for a new one. history: indices, in the order of the data."""

    user: str | None
    history: list[int]
    found: Lists
    how: str | None = None


def answer(cfg: Recommend) -> None:
    """Lists of some users, of a new one or of all, on standard output or in a file."""
    suffix = _checked(cfg)
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    names = Names(loaded.data)
    at = Shifted(loaded.model.requires_grad_(False).eval())
    asked = Recommender(at, loaded.data, part=cfg.part, seen=cfg.seen)
    with autocast(cfg.precision, device):
        if cfg.all:
            _write(Path(str(cfg.out)), suffix, (_frame(*each, names) for each in asked.everyone(cfg.k)))
            _tell(cfg, loaded.data.n_genuine)
            return
        answers = [_new(cfg, asked, names)] if cfg.user is None else _known(cfg, asked, names)
    if suffix in (".csv", ".parquet"):
        _write(Path(str(cfg.out)), suffix, iter([_joined(answers, names)]))
        _tell(cfg, len(answers))
    elif suffix == ".json":
        write_text(Path(str(cfg.out)), _json(cfg, answers, names))
        _tell(cfg, len(answers))
    elif cfg.format == "json":
        sys.stdout.write(_json(cfg, answers, names))
    elif cfg.format == "csv":
        sys.stdout.write(_joined(answers, names).to_csv(index=False))
    else:
        for each in answers:
            _show(each, names, ordered=loaded.data.ordered, k=cfg.k)


def _tell(cfg: Recommend, lists: int) -> None:
    line(f"{cfg.out}: {lists:,} lists")


def _checked(cfg: Recommend) -> str | None:
    """The suffix of `out`; RrecError where the question cannot be answered."""
    asked = [
        name
        for name, there in (("user", cfg.user), ("liked", cfg.liked), ("all", cfg.all))
        if there not in (None, False)
    ]
    if len(asked) != 1:
        raise RrecError(
            f"recommend needs one of user=<id>, liked=[<item>,…] and all=true ({' and '.join(asked) or 'none'} given)"
        )
    if cfg.k < 1 or cfg.history < 0:
        raise RrecError(f"k={cfg.k}, history={cfg.history}: k is at least 1, history is not negative")
    if cfg.format not in FORMATS:
        raise unknown("format", cfg.format, FORMATS)
    if cfg.out is None:
        if cfg.all:
            raise RrecError("all=true writes a file: add out=<file>.csv or out=<file>.parquet")
        return None
    suffix, allowed = Path(cfg.out).suffix, SUFFIXES if not cfg.all else (".csv", ".parquet")
    if suffix not in allowed:
        raise RrecError(f"out={cfg.out}: the name of the file ends with {', '.join(allowed[:-1])} or {allowed[-1]}")
    return suffix


def _known(cfg: Recommend, asked: Recommender, names: Names) -> list[Answer]:
    users = names.users(cfg.user)
    if not len(users):
        raise RrecError("user=[]: name at least one user")
    found = asked.of(users, cfg.k)
    history = asked.histories.of(users, cfg.history)
    latest = [row[:n] for row, n in zip(history.items.tolist(), history.lengths.tolist(), strict=True)]
    ids = [asked.data.user_ids[user] for user in users.tolist()]
    return [Answer(name, latest[row], _row(found, row)) for row, name in enumerate(ids)]


def _new(cfg: Recommend, asked: Recommender, names: Names) -> Answer:
    liked = names.items(cfg.liked)
    if not len(liked):
        raise RrecError("liked=[]: name at least one item")
    found, how = asked.new(liked, cfg.k)
    return Answer(None, liked[-cfg.history :].tolist() if cfg.history else [], found, how)


def _row(found: Lists, row: int) -> Lists:
    deviation = None if found.deviation is None else found.deviation[[row]]
    return Lists(found.items[[row]], found.scores[[row]], deviation)


def _frame(users: Tensor | str, found: Lists, names: Names) -> pd.DataFrame:
    """A row for each recommended item. users: indices `[B]`, or the name of the only one."""
    items, scores = found.items.cpu(), found.scores.float().cpu()
    there = scores.isfinite()
    row, place = there.nonzero().unbind(1)
    item = items[there].numpy()
    ids = [users] if isinstance(users, str) else [names.data.user_ids[each] for each in users.tolist()]
    columns: dict[str, Any] = {
        "user": pd.Series(ids, dtype="str").to_numpy()[row.numpy()],
        "rank": place.numpy() + 1,
        "item": pd.Series(names.data.item_ids, dtype="str").to_numpy()[item],
    }
    if names.titles is not None:
        columns["title"] = pd.Series(names.titles, dtype="str").to_numpy()[item]
    columns["score"] = scores[there].numpy()
    if found.deviation is not None:
        columns["uncertainty"] = found.deviation.float().cpu()[there].numpy()
    return pd.DataFrame(columns)


def _joined(answers: Sequence[Answer], names: Names) -> pd.DataFrame:
    return pd.concat([_frame(each.user or "", each.found, names) for each in answers], ignore_index=True)


def _write(path: Path, suffix: str | None, frames: Iterator[pd.DataFrame]) -> None:
    """One file, from one frame after the other."""
    with drafted(path) as draft:
        if suffix == ".parquet":
            _parquet(draft, frames)
        else:
            with open(draft, "w", encoding="utf-8", newline="") as file:
                for number, frame in enumerate(frames):
                    frame.to_csv(file, index=False, header=number == 0)
                file.flush()
                os.fsync(file.fileno())


def _parquet(draft: Path, frames: Iterator[pd.DataFrame]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    first = pa.Table.from_pandas(next(frames), preserve_index=False)
    with parquet.ParquetWriter(draft, first.schema) as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(pa.Table.from_pandas(frame, schema=first.schema, preserve_index=False))


def _json(cfg: Recommend, answers: Sequence[Answer], names: Names) -> str:
    """One object; `lists` has an entry for each user in the order in which they were named."""
    lists = []
    for each in answers:
        frame = _frame(each.user or "", each.found, names).drop(columns="user")
        told = {
            "user": each.user,
            "history": [_told(item, names) for item in each.history],
            "items": json.loads(frame.to_json(orient="records", double_precision=8)),
        }
        lists.append(told if each.how is None else {**told, "how": each.how})
    return json.dumps({"ckpt": cfg.ckpt, "dataset": names.data.name, "k": cfg.k, "lists": lists}, indent=2) + "\n"


def _told(item: int, names: Names) -> dict[str, str]:
    told = {"item": names.data.item_ids[item]}
    return told if names.titles is None else {**told, "title": names.titles[item]}


def _show(each: Answer, names: Names, *, ordered: bool, k: int) -> None:
    if each.history:
        title = "latest of user {}, the latest last" if ordered else "some of user {}"
        title = title.format(each.user) if each.user is not None else "liked"
        columns = ["item", *(["title"] if names.titles is not None else [])]
        show(title, columns, [list(_told(item, names).values()) for item in each.history])
    frame = _frame(each.user or "", each.found, names).drop(columns="user")
    about = f"for user {each.user}" if each.user is not None else f"for a new user ({each.how})"
    left = f", all {len(frame)} that are left" if len(frame) < k else ""
    show(f"recommended {about}{left}", frame.columns.tolist(), frame.to_numpy().tolist())
