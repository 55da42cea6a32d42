"""Training batches: shuffled events with what they are compared with, an epoch at a time."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.histories import Histories
from robustbench_rec.losses import CLICKED, POINTWISE
from robustbench_rec.model import RecModel
from robustbench_rec.negatives import Negatives


class Sampler(ABC):
    """Every training event once an epoch; all randomness comes from the generator that an epoch is asked with.

    batch_size: events in a batch. Where clicks have labels, an event with label 0 is an example of `Labelled` alone.
    """

    def __init__(self, data: Data, *, batch_size: int) -> None:
        if not 1 <= batch_size < 2**31:
            raise RrecError(f"batch_size={batch_size}: must be at least 1, and below 2**31")
        self.data, self.batch_size = data, batch_size

    @property
    def device(self) -> torch.device:
        return self.data.train.users.device

    @abstractmethod
    def over(self, data: Data) -> "Sampler":
        """The same of other data."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        """The batches of an epoch."""


def sampler(data: Data, model: RecModel, *, loss: str, batch_size: int, negatives: int | None) -> Sampler:
    """How a model is shown its training events.

    negatives: sampled items beside each positive (None: as many as the model asks for). 0 is the whole catalogue for
    loss=softmax, and the events with their own labels for losses of single events. A causal model of histories learns
    from all steps of a history at once, another one from the history before each event.
    """
    count = model.negatives if negatives is None else negatives
    if count < 0:
        raise RrecError(f"negatives={count}: must not be negative")
    if not len(data.train.liked()):
        raise RrecError(f"dataset '{data.name}' has no training event with label 1: nothing to learn from")
    if count == 0 and loss in POINTWISE:
        values = data.train.values
        if loss in CLICKED and not bool(((values == 0) | (values == 1)).all()):
            raise RrecError(
                f"loss={loss} with negatives=0 learns from clicks, and dataset '{data.name}' has ratings; "
                "prepare.label=<rating> makes clicks of them, loss=mse learns them"
            )
        if loss in CLICKED and bool((values == 1).all()):
            raise RrecError(
                f"loss={loss} with negatives=0 learns from labels, and in dataset '{data.name}' all are 1; negatives=1 "
                "draws others, loss=softmax compares with the whole catalogue"
            )
        return Labelled(data, batch_size=batch_size, window=model.window)
    if count == 0 and loss != "softmax":
        raise RrecError(f"negatives=0: loss={loss} compares an item with others; negatives >= 1 or loss=softmax")
    if model.window and model.causal:
        return Steps(data, batch_size=batch_size, negatives=count, window=model.window)
    return Events(data, batch_size=batch_size, negatives=count, window=model.window)


class Events(Sampler):
    """Each event as column 0, beside `negatives` items that the user has no training event with.

    negatives: 0 is the whole catalogue, the event is the target. window: events before it that a model reads; with a
    window, the first event of a user is no example.
    """

    def __init__(self, data: Data, *, batch_size: int, negatives: int, window: int = 0) -> None:
        super().__init__(data, batch_size=batch_size)
        if negatives < 0:
            raise RrecError(f"negatives={negatives}: must not be negative")
        self.count, self.window = negatives, window
        self.negatives = Negatives(data) if negatives else None
        liked = data.train.liked()
        self.histories, self.context = Histories(liked, n_users=data.n_users, n_items=data.n_items), liked.context
        starts = self.histories.starts
        self.users = torch.repeat_interleave(torch.arange(data.n_users, device=starts.device), starts.diff())
        self.events = torch.arange(len(self.users), device=starts.device)
        if window:
            self.events = self.events[self.events > starts[self.users]]
            if not len(self.events):
                raise _no_step(data)

    def over(self, data: Data) -> Sampler:
        return Events(data, batch_size=self.batch_size, negatives=self.count, window=self.window)

    def __len__(self) -> int:
        return math.ceil(len(self.events) / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        dealt = _dealt(len(self.events), self.batch_size, generator).to(self.device)
        events = self.events.index_select(0, dealt)  # many times faster than with brackets
        users, items = self.users.index_select(0, events), self.histories.items.index_select(0, events)
        lists = items[:, None]
        if self.negatives is not None:
            lists = torch.cat([lists, self.negatives.draw(users, self.count, generator)], 1)  # [N, 1 + negatives]
        labels = _positives(self.batch_size, lists.shape[1], self.device)
        parts = (each.split(self.batch_size) for each in (events, users, lists))
        for event, user, row in zip(*parts, strict=True):
            example = _example(user, row, labels[: len(user)], self._before(event, user))
            yield example if self.context is None else replace(example, context=self.context[event])

    def _before(self, events: Tensor, users: Tensor) -> History | None:
        return self.histories.between(self.histories.starts[users], events, self.window) if self.window else None


class Labelled(Sampler):
    """Each event by itself, with its own label: a rating, or 1 and 0 for clicks. window: as in `Events`."""

    def __init__(self, data: Data, *, batch_size: int, window: int = 0) -> None:
        super().__init__(data, batch_size=batch_size)
        self.window = window
        liked = data.train.liked()
        kept = data.train.values != 0 if len(liked) < len(data.train) else torch.ones_like(data.train.items)
        self.before = kept.cumsum(0) - kept.long()  # place of each event in the histories
        self.histories = Histories(liked, n_users=data.n_users, n_items=data.n_items)

    def over(self, data: Data) -> Sampler:
        return Labelled(data, batch_size=self.batch_size, window=self.window)

    def __len__(self) -> int:
        return math.ceil(len(self.data.train) / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        train = self.data.train
        order = _dealt(len(train), self.batch_size, generator).to(self.device)
        for part in order.split(self.batch_size):
            users = train.users[part]
            context = None if train.context is None else train.context[part]
            history = None
            if self.window:  # events of a part stand in the order of the histories
                history = self.histories.between(self.histories.starts[users], self.before[part], self.window)
            yield Batch(users, train.items[part, None], train.values[part, None], context=context, history=history)


class Steps(Sampler):
    """Whole histories, every event but the first a target, given those before it.

    A history longer than `window` is cut into windows, at other places every epoch. Batches hold histories of about one
    length, as many as have `batch_size` targets. negatives: as in `Events`.
    """

    def __init__(self, data: Data, *, batch_size: int, negatives: int, window: int) -> None:
        super().__init__(data, batch_size=batch_size)
        self.count, self.window = negatives, window
        self.negatives = Negatives(data) if negatives else None
        self.histories = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
        sizes = self.histories.starts.diff() - 1
        self.users = (sizes > 0).nonzero().squeeze(1)
        self.sizes = sizes[self.users]  # targets a user
        if not len(self.users):
            raise _no_step(data)

    def over(self, data: Data) -> Sampler:
        return Steps(data, batch_size=self.batch_size, negatives=self.count, window=self.window)

    def __len__(self) -> int:
        return math.ceil(int(self.sizes.sum()) / self.batch_size)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        users, first, lengths = self._windows(generator)
        order = torch.randperm(len(users), generator=generator).to(self.device)
        order = order[lengths[order].float().log2().ceil().argsort(stable=True)]  # of about one length
        ends = lengths[order].cumsum(0)
        number = (ends - 1) // self.batch_size  # of the batch that holds a window's last step
        parts = order.split(torch.bincount(number, minlength=len(self)).tolist())
        for chosen in torch.randperm(len(parts), generator=generator).tolist():
            part = parts[chosen]
            if len(part):
                yield self._batch(users[part], first[part], lengths[part], generator)

    def _windows(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Users, places of the first inputs in the histories, and lengths `[W]` of the windows of an epoch."""
        cut = (torch.rand(len(self.users), generator=generator).to(self.device) * self.window).long() + 1
        head = torch.where(self.sizes <= self.window, self.sizes, cut)  # length of a user's first window
        counts = 1 + torch.div(self.sizes - head + self.window - 1, self.window, rounding_mode="floor")
        row = torch.repeat_interleave(torch.arange(len(counts), device=self.device), counts)
        within = torch.arange(len(row), device=self.device) - (counts.cumsum(0) - counts)[row]
        offset = (head[row] + (within - 1) * self.window).clamp_min(0)
        lengths = torch.where(within == 0, head[row], (self.sizes[row] - offset).clamp_max(self.window))
        users = self.users[row]
        return users, self.histories.starts[users] + offset, lengths

    def _batch(self, users: Tensor, first: Tensor, lengths: Tensor, generator: torch.Generator) -> Batch:
        history = self.histories.between(first, first + lengths, self.window)
        rows, columns = history.real.nonzero().unbind(1)
        targets = self.histories.items[first[rows] + columns + 1]  # [N]
        history = History(history.items, lengths, rows * history.items.shape[1] + columns)
        items = targets[:, None]
        if self.negatives is not None:
            items = torch.cat([items, self.negatives.draw(users[rows], self.count, generator)], 1)
        return _example(users, items, _positives(len(items), items.shape[1], self.device), history)


def _no_step(data: Data) -> RrecError:
    return RrecError(f"dataset '{data.name}' has no user with two training events: there is no step to learn")


def _example(users: Tensor, items: Tensor, labels: Tensor, history: History | None) -> Batch:
    """Column 0 of `items` against the others, or against the whole catalogue where there are none."""
    if items.shape[1] > 1:
        return Batch(users, items, labels, history=history)
    return Batch(users, None, labels[:, :0], targets=items[:, 0], history=history)


def _dealt(n: int, size: int, generator: torch.Generator) -> Tensor:
    """0 … n-1 in random batches, each in ascending order: its users then stand together, as `lookup.pairs` likes it."""
    batch = torch.randperm(n, generator=generator) // size
    number = batch.numpy()
    return torch.from_numpy(np.argsort(number.astype(np.uint16) if n // size < 2**16 else number, kind="stable"))


def _positives(rows: int, width: int, device: torch.device) -> Tensor:
    """Labels `[rows, width]` whose column 0 is the positive."""
    labels = torch.zeros(rows, width, device=device)
    labels[:, 0] = 1
    return labels


STREAMS = ("batches", "objective", "dropout", "auxiliary")


def epoch_generator(seed: int, epoch: int, stream: str) -> torch.Generator:
    """The generator of one consumer in one epoch.

    A run that is resumed draws what an undisturbed one would have drawn, and a defence that draws does not change the
    batches, so that runs with and without it are paired.
    """
    mixed = sha256(f"{seed}/{epoch}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:4]))  # the generator of the CPU uses 32 bits
