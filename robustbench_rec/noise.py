"""What every noise is, on data or on what a model reads, and how it draws."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@dataclass
class Level:
    """What every noise has. level: its strength, a share where the noise does not say otherwise; 0 changes nothing."""

    level: float
    seed: int


class Noise(ABC):
    """Maps data to noisy data, the same for the same seed; constructed as `cls(config)`.

    Ids and sizes stay, and every user keeps a training event, one with label 1 where there is one. Events that are
    taken out of train are `hidden`: known to nobody, and still no candidates, so that rankings can be compared.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What the dataset must have, of `Data.has`."""
    most: ClassVar[float] = 1.0
    """The highest level."""
    finished: ClassVar[bool] = True
    """Whether a model that is trained can be judged with it; else it is there for what an epoch shows alone."""
    of_test: ClassVar[bool] = False
    """Whether it is about what the test part asks, so that a model judged on another part says nothing of it."""

    def __init__(self, config: Level) -> None:
        if not 0 <= config.level <= self.most:
            known = f"between 0 and {self.most:g}" if self.most < float("inf") else "at least 0"
            raise RrecError(f"noise.level={config.level}: noise '{self.name}' has levels {known}")
        self.level, self.seed = config.level, config.seed
        self.described = asdict(config)

    @property
    def only(self) -> frozenset[str]:
        """Of `needs`, what nothing but changes: a model that does not read it is as it was."""
        return self.needs

    @property
    def name(self) -> str:
        """Of its module."""
        return type(self).__module__.rpartition(".")[2]

    def __call__(self, data: Data) -> Data:
        if not self.level:
            return data
        if missing := sorted(self.needs - data.has):
            raise RrecError(
                f"noise '{self.name}' needs {', '.join(missing)}, which dataset '{data.name}' does not have"
            )
        changed = self.change(data, torch.Generator().manual_seed(self.seed))
        if changed is data:
            return data
        uncleaned = data.uncleaned_fingerprint
        return replace(
            changed,
            hidden=_hidden(data, changed),
            fingerprint=self._fingerprint(data.fingerprint),
            uncleaned_fingerprint=None if uncleaned is None else self._fingerprint(uncleaned),
        )

    def _fingerprint(self, before: str) -> str:
        described = json.dumps([before, self.name, self.described], sort_keys=True)
        return sha256(described.encode()).hexdigest()

    @abstractmethod
    def change(self, data: Data, generator: torch.Generator) -> Data:
        """The data at a level above 0."""

    def shown(self, data: Data, generator: torch.Generator) -> Data:
        """What an epoch of a training shows in the place of the data, of a noise that is drawn in each."""
        return data

    def delta(self, model: RecModel, generator: torch.Generator) -> dict[str, Tensor]:
        """What comes on top of tensors of a model, by name: anew for each step of a training, once for a finished one.

        Nothing, for a noise on data.
        """
        return {}

    def count(self, n: int) -> int:
        """The level as a share of n."""
        return round(self.level * n)


def drawn(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Places `[K]` drawn without replacement in proportion to their weights, at most those whose weight is not 0."""
    # Efraimidis & Spirakis, 2006: the largest of u^(1/w)
    keys = torch.rand(len(weights), dtype=torch.double, generator=generator).log() / weights.double()
    count = min(count, int((weights > 0).sum()))
    return keys.topk(count).indices


def cycle(count: int, generator: torch.Generator) -> Tensor:
    """A permutation of 0 … count-1 in one random cycle, in which nothing stays (unless it is alone) `[count]`."""
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(-1))


def repeated(keys: Tensor, known: Tensor) -> Tensor:
    """Which keys are among `known` ones or came before, bool `[N]`."""
    order = keys.argsort(stable=True)
    again = torch.zeros_like(keys, dtype=torch.bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return again | torch.isin(keys, known)


def pairs(part: Interactions, data: Data) -> Tensor:
    """A key for the user and the item of each event `[N]`."""
    return part.users * data.n_items + part.items


def _hidden(old: Data, new: Data) -> Interactions | None:
    gone = ~torch.isin(pairs(old.train, old), pairs(new.train, new))
    if not bool(gone.any()):
        return old.hidden
    users, items, values = (getattr(old.train, name)[gone] for name in ("users", "items", "values"))
    if old.hidden is not None:
        users, items, values = (
            torch.cat([getattr(old.hidden, name), each])
            for name, each in (("users", users), ("items", items), ("values", values))
        )
    return Interactions(users, items, values)
