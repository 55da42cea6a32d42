"""What an attack was told or found so far, so that one that was killed need not ask or search again."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.base import Keeper
from robustbench_rec.objective import Scalar, known
from robustbench_rec.savepoint import SAVE_EVERY, load_state, save_state
from robustbench_rec.shifted import Shifted

QUESTION = "question"
LIMIT = 2**32
"""Bytes that are written for one attack at most; what it is told after that, it asks again."""


class Journal(Keeper):
    """What was told or found, in its order, kept in files that begin with `path`; a new one every 5 s.

    An attack is a function of what it is told: one that begins again and is told the same goes the same way, without
    the model, up to where it was killed. An answer is a value and its gradient in δ; where another gradient is wanted
    the model answers. Where every row is attacked by itself, what was found for a row is kept instead: gradients for
    all of them would be gigabytes. identity: of the attack and of all that it is about; answers to another one are
    removed, and so are those after the first that does not belong to what is asked.
    """

    def __init__(self, path: Path, identity: str, device: torch.device) -> None:
        self.path, self.identity, self.device = path, identity, device
        self.files, self.size, self.saved = 0, 0, time.perf_counter()
        self.latest: list[dict[str, Tensor]] = []  # of the file that is read or will be written next
        self.told = self._replayed()

    def of(self, objective: Scalar) -> Scalar:
        """The same objective: what the journal has comes from there, and the rest is written down."""

        def asked(at: Shifted, batch: Batch) -> Tensor:
            climbing = torch.is_grad_enabled()
            moved = {name: each for name, each in at.delta.items() if climbing and each.requires_grad}
            if climbing and not moved:
                return objective(at, batch)
            answer = self.once(_question(at, batch), lambda: _answered(objective(at, batch), moved))
            reached = {name: each for name, each in moved.items() if name in answer}
            return known(answer["value"], list(reached.values()), [answer[name] for name in reached])

        return asked

    def once(self, question: Tensor, found: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        answer = next(self.told, None)
        if answer is not None and not torch.equal(answer[QUESTION], question):
            self.latest.pop()
            self._forget()
            self.told, answer = iter(()), None
        if answer is None:
            answer = {QUESTION: question, **found()}
            self._write(answer)
        return {name: each for name, each in answer.items() if name != QUESTION}

    def drop(self) -> None:
        """Remove what was written."""
        self.files = 0
        self._forget()

    def _write(self, answer: dict[str, Tensor]) -> None:
        self.size += sum(each.nbytes for each in answer.values())
        if self.size > LIMIT:
            self.latest.clear()
            return
        self.latest.append(answer)
        if time.perf_counter() - self.saved > SAVE_EVERY:
            self.path.parent.mkdir(exist_ok=True)
            tensors = {f"{number}/{name}": t for number, each in enumerate(self.latest) for name, t in each.items()}
            save_state(self._file(), tensors, {"identity": self.identity, "answers": str(len(self.latest))})
            self.files += 1
            self.latest, self.saved = [], time.perf_counter()

    def _replayed(self) -> Iterator[dict[str, Tensor]]:
        while self._file().is_file():
            try:
                tensors, notes = load_state(self._file(), self.device)
            except RrecError:
                break
            if notes.get("identity") != self.identity:
                break
            answers: list[dict[str, Tensor]] = [{} for _ in range(int(notes["answers"]))]
            for key, each in tensors.items():
                number, _, name = key.partition("/")
                answers[int(number)][name] = each
                self.size += each.nbytes
            for answer in answers:
                self.latest.append(answer)
                yield answer
            self.files, self.latest = self.files + 1, []
        self._forget()

    def _forget(self) -> None:
        """Remove the files from the next one on."""
        for each in self.path.parent.glob(f"{self.path.name}-*"):
            if each >= self._file():
                each.unlink()

    def _file(self) -> Path:
        return self.path.with_name(f"{self.path.name}-{self.files:06}.safetensors")


def _question(at: Shifted, batch: Batch) -> Tensor:
    """What tells one question from another: sums of δ, of the users and of their histories."""
    asked = [*at.delta.values(), batch.users, *([] if batch.history is None else [batch.history.items])]
    return torch.stack([each.detach().sum(dtype=torch.double) for each in asked])


def _answered(value: Tensor, moved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The value, and the gradient of its sum in those of some tensors that reach it."""
    found = {"value": value.detach()}
    if moved and value.requires_grad:
        along = torch.autograd.grad(value.sum(), list(moved.values()), allow_unused=True)
        found |= {name: each.to_dense() for name, each in zip(moved, along, strict=True) if each is not None}
    return found
