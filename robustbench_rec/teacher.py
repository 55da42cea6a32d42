"""Teachers: what a student is to learn from, as scores of any user and item and, where there are some, vectors."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_rec.adapters import sizes
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.files import file_digest
from robustbench_rec.histories import Histories
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted

CELLS = 2**25
"""Scores held at once: 128 MiB of float32."""


class Teacher(ABC):
    """Scores that a student is to learn; nothing of it is trained.

    moving: whether it says something else in the next epoch. parameters: how many numbers it has learnt. loss: the one
    that it learnt by, a name of `robustbench_rec.losses`, which says what its scores are; None for any other scores.
    """

    moving: bool = False
    parameters: int = 0
    loss: str | None = None

    @abstractmethod
    def scores(self, users: Tensor, items: Tensor | None) -> Tensor:
        """Of users `[B]` and items `[B, C]`, None for all: float32 `[B, C]`."""

    def asked(self) -> "Teacher":
        """Who computes the scores, where these are kept ones."""
        return self

    def users(self, users: Tensor) -> Tensor:
        """Vectors of users, `[B, D]`; RrecError where it has none."""
        raise RrecError(f"{self} has no vectors of users and items, only scores: teach by runs")

    def items(self, items: Tensor) -> Tensor:
        """Vectors of items, `[B, D]`; RrecError where it has none."""
        raise RrecError(f"{self} has no vectors of users and items, only scores: teach by runs")


@dataclass
class Taught(Teacher):
    """A model, asked about users whose events are known."""

    at: Shifted
    histories: Histories

    def __post_init__(self) -> None:
        self.parameters, self.loss = sizes(self.at.model)[1], self.at.model.loss

    @classmethod
    def of(cls, model: RecModel, data: Data) -> "Taught":
        """A trained model and the data that it was trained on."""
        known = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
        return cls(Shifted(model.requires_grad_(False).eval()), known)

    @torch.no_grad()
    def scores(self, users: Tensor, items: Tensor | None) -> Tensor:
        question = self.histories.question(users, items, self.at.model.window)
        return self.at(question).scores.float()

    @torch.no_grad()
    def users(self, users: Tensor) -> Tensor:
        return self.at.user_states(self.histories.question(users, None, self.at.model.window)).float()

    @torch.no_grad()
    def items(self, items: Tensor) -> Tensor:
        return self.at.item_states(items).float()


class Average(Taught):
    """The exponential moving average of the student's own parameters (mean teacher, Tarvainen & Valpola, NeurIPS 2017).

    model: what moves, at each step; what the teacher says changes when it settles, which it does as an epoch begins.
    """

    moving = True

    def __init__(self, student: RecModel, data: Data, decay: float, loss: str) -> None:
        if not 0 <= decay < 1:
            raise RrecError(f"ema={decay}: the share that the average keeps at each step, in [0, 1), is needed")
        copied = deepcopy(student)
        copied.fit(data)  # what the student is about to be fitted to: a mean rating is no parameter
        made = Taught.of(copied, data)
        super().__init__(made.at, made.histories)
        self.model, self.decay, self.loss = deepcopy(copied), decay, loss

    @torch.no_grad()
    def follow(self, student: RecModel) -> None:
        """A step towards the student."""
        own = dict(self.model.named_parameters())
        for name, each in student.named_parameters():
            own[name].lerp_(each.detach(), 1 - self.decay)

    @torch.no_grad()
    def settle(self) -> None:
        """Say from now on what the average says."""
        for own, moved in zip(self.at.model.parameters(), self.model.parameters(), strict=True):
            own.copy_(moved)
        self.at.model.refresh()
        self.at = Shifted(self.at.model)


class Ensemble(Teacher):
    """The mean of several teachers, of ratings where all learnt such; else their scores are standardised.

    That is over the catalogue, user by user. Its vectors are those of all of them side by side, each normalised.
    """

    def __init__(self, members: Sequence[Teacher], data: Data) -> None:
        self.members, self.data = list(members), data
        self.parameters = sum(each.parameters for each in members)
        self.loss = "mse" if {each.loss for each in members} == {"mse"} else None

    @cached_property
    def moments(self) -> list[Tensor]:
        """Mean and spread of what each member says of each user `[n_users, 2]`."""
        users = torch.arange(self.data.n_users, device=self.data.train.users.device)
        parts = users.split(max(1, CELLS // self.data.n_items))
        return [torch.cat([_moments(each.scores(part, None)) for part in parts]) for each in self.members]

    def scores(self, users: Tensor, items: Tensor | None) -> Tensor:
        found = [each.scores(users, items) for each in self.members]
        if self.loss is None:
            moments = [each[users].split(1, 1) for each in self.moments]
            found = [(each - mean) / spread for each, (mean, spread) in zip(found, moments, strict=True)]
        return torch.stack(found).mean(0)

    def users(self, users: Tensor) -> Tensor:
        return torch.cat([F.normalize(each.users(users), dim=1) for each in self.members], 1)

    def items(self, items: Tensor) -> Tensor:
        return torch.cat([F.normalize(each.items(items), dim=1) for each in self.members], 1)


class Matrix(Teacher):
    """Scores that were computed elsewhere, memory-mapped: rows for users, columns for items, in places of their own.

    rows: `[n_users]`, columns: `[n_items]`, where each is in the matrix.
    """

    def __init__(self, matrix: NDArray[np.floating], rows: Tensor, columns: Tensor) -> None:
        self.matrix, self.rows, self.columns = matrix, rows.cpu().numpy(), columns.cpu().numpy()

    @staticmethod
    def files(path: Path) -> list[Path]:
        """All that is read: the matrix, the ids of its rows and those of its columns."""
        return [path, path.with_suffix(".users.txt"), path.with_suffix(".items.txt")]

    @classmethod
    def digest(cls, path: Path) -> str:
        """Of all that is read; RrecError where a file is missing."""
        _mapped(path)
        for each in cls.files(path)[1:]:
            _lines(each, path)
        return "".join(file_digest(each, "teacher") for each in cls.files(path))

    @classmethod
    def read(cls, path: Path, data: Data) -> "Matrix":
        """`….npy` with the ids of its rows and columns beside it, a line each in `….users.txt` and `….items.txt`."""
        found = _mapped(path)
        places = []
        sides = zip(("users", "items"), cls.files(path)[1:], (data.user_ids, data.item_ids), found.shape, strict=True)
        for kind, names, wanted, size in sides:
            ids = _lines(names, path)
            if len(ids) != size or len(set(ids)) != size:
                raise RrecError(f"teacher={path}: {size} {kind}, but {len(set(ids))} different ids of them beside it")
            at = {name: place for place, name in enumerate(ids)}
            missing = [name for name in wanted if str(name) not in at]
            if missing:
                raise RrecError(
                    f"teacher={path}: no scores for {len(missing)} of {len(wanted)} {kind}, e.g. '{missing[0]}'"
                )
            places.append(torch.tensor([at[str(name)] for name in wanted]))
        return cls(found, *places)

    def scores(self, users: Tensor, items: Tensor | None) -> Tensor:
        row = self.rows[users.cpu().numpy()][:, None]  # [B, 1]
        column = self.columns[None] if items is None else self.columns[items.cpu().numpy()]
        found = torch.from_numpy(np.asarray(self.matrix[row, column], dtype=np.float32)).to(users.device)
        if not bool(found.isfinite().all()):
            raise RrecError("a score of the teacher's matrix is NaN or infinite")
        return found

    def __str__(self) -> str:
        return "a matrix"


class Kept(Matrix):
    """Another teacher, its scores of all pairs and its vectors in files, memory-mapped, of the directory of the data.

    What is not there is computed: the scores at once, vectors when they are first asked for. key: a hash of what makes
    the teacher say what it says. RrecError where there is no room, or where a file is not what belongs there.
    """

    def __init__(self, teacher: Teacher, data: Data, key: str) -> None:
        if teacher.moving:
            raise RrecError("cache=true: teacher=ema says something else in every epoch; leave cache out")
        if data.place is None:
            raise RrecError("cache=true: these data have no directory to keep scores in")
        self.teacher, self.data, self.path = teacher, data, data.place / "teachers" / f"{key}.npy"
        self.parameters, self.loss = teacher.parameters, teacher.loss
        scores = self._kept("scores", lambda users: teacher.scores(users, None), data.n_users, data.n_items)
        super().__init__(scores, torch.arange(data.n_users), torch.arange(data.n_items))

    def asked(self) -> Teacher:
        return self.teacher

    def users(self, users: Tensor) -> Tensor:
        return _rows(self._users, users)

    def items(self, items: Tensor) -> Tensor:
        return _rows(self._items, items)

    @cached_property
    def _users(self) -> NDArray[np.floating]:
        return self._vectors("users", self.teacher.users, self.data.n_users)

    @cached_property
    def _items(self) -> NDArray[np.floating]:
        return self._vectors("items", self.teacher.items, self.data.n_items)

    def _vectors(self, kind: str, ask: Callable[[Tensor], Tensor], count: int) -> NDArray[np.floating]:
        first = ask(torch.zeros(1, dtype=torch.long, device=self.data.train.users.device))
        return self._kept(kind, ask, count, first.shape[1])

    def _kept(self, kind: str, ask: Callable[[Tensor], Tensor], count: int, width: int) -> NDArray[np.floating]:
        """`[count, width]`, of a file of its own; computed, so many rows at a time, where there is none."""
        path = self.path if kind == "scores" else self.path.with_suffix(f".{kind}.npy")
        if not path.is_file():
            self._write(path, kind, ask, (count, width))
        try:
            found = _mapped(path)
        except RrecError as error:
            raise RrecError(f"cache=true: {path} cannot be read; remove it, and it is computed anew") from error
        if found.shape != (count, width):
            raise RrecError(f"{path}: {found.shape} {kind} where {(count, width)} belong; remove it")
        return found

    def _write(self, path: Path, kind: str, ask: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> None:
        draft = path.with_name(f".{path.stem}.{os.getpid()}.draft.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(path.parent).free
            if needed > free // 2:
                raise RrecError(
                    f"cache=true: {kind} of a teacher, {shape[0]} × {shape[1]} numbers, take {needed / 2**30:.1f} GiB, "
                    f"more than half of what is free in {path.parent} ({free / 2**30:.1f} GiB); leave cache out"
                )
            written = np.lib.format.open_memmap(draft, "w+", np.float32, shape)
            for rows in torch.arange(shape[0]).split(max(1, CELLS // max(shape[1], 1024))):
                written[rows.numpy()] = ask(rows.to(self.data.train.users.device)).cpu().numpy()
            written.flush()
            del written
            os.replace(draft, path)
        except OSError as error:
            raise RrecError(
                f"cache=true: cannot write {path} ({error.strerror}); leave cache out, or name another data_dir"
            ) from error


def averaged(teacher: Teacher) -> nn.Module | None:
    """The state of a teacher that a run which goes on needs."""
    return teacher.model if isinstance(teacher, Average) else None


def _rows(vectors: NDArray[np.floating], index: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(vectors[index.cpu().numpy()], dtype=np.float32)).to(index.device)


def _moments(scores: Tensor) -> Tensor:
    return torch.stack([scores.mean(1), scores.std(1).clamp_min(1e-6)], 1)


def _mapped(path: Path) -> NDArray[np.floating]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RrecError(f"teacher={path} cannot be read as an array of numbers ({error})") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        raise RrecError(f"teacher={path}: a matrix of floating point scores, users × items, is needed")
    return found


def _lines(path: Path, matrix: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise RrecError(f"teacher={matrix}: {path.name} with the ids, a line each, is needed beside it") from error
