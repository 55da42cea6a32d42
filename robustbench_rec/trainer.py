"""The training loop, the only one."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rec import optimizers, tracking
from robustbench_rec.checkpoint import forget, keep_epoch
from robustbench_rec.config import Fit
from robustbench_rec.errors import RrecError
from robustbench_rec.files import write_text
from robustbench_rec.hardware import autocast
from robustbench_rec.metrics.cost import Passes
from robustbench_rec.model import RecModel
from robustbench_rec.noise import Noise
from robustbench_rec.objective import Objective, nested, show, start_batch, start_epoch, told
from robustbench_rec.progress import Bar
from robustbench_rec.sampling import Sampler, epoch_generator
from robustbench_rec.savepoint import SAVE_EVERY, load_state, moments, save_state, under, with_moments
from robustbench_rec.shifted import Shifted

RESUME = "resume"
"""Folder of the resumable state in a run directory."""
COUNTED = 10
"""Steps from one whose passes are counted to the next: the hooks that count cost some percent of a short step."""


def check(fit: Fit) -> None:
    """RrecError for a setting of a training that makes no sense."""
    optimizers.check(fit)
    rates = ("lr", "weight_decay", "momentum")
    asked = (
        ("epochs", fit.epochs >= 1, "at least 1"),
        ("patience", fit.patience >= 1, "at least 1"),
        ("trajectory", fit.trajectory >= 0, "at least 0"),
        ("clip_norm", fit.clip_norm is None or fit.clip_norm > 0, "above 0"),
        ("decay_after", fit.decay_after is None or 0 <= fit.decay_after <= 1, "between 0 and 1"),
        *((name, 0 <= getattr(fit, name) < math.inf, "at least 0, and finite") for name in rates),
    )
    for name, fine, words in asked:
        if not fine:
            raise RrecError(f"{name}={getattr(fit, name)}: must be {words}")


@dataclass
class Trainer:
    """Minimises an objective over the training events and keeps the state that is best on validation.

    A state of before a late defence has begun is no candidate, and no patience is spent on it.
    validate: judges the model as it is now, a value a name; the larger that of `monitor`, the better, or the smaller
    where `smaller` says so. Every epoch draws
    its randomness from (seed, epoch), so a run that is killed and resumed from `out/resume` ends where an undisturbed
    one ends, bit for bit. A parameter that does not require a gradient is left alone. about: what else makes the run
    what it is (data, model, defence); a state of another run is not continued. noise: what each epoch shows in the
    place of the training events, and what each step reads the model with; the penalty of a model is that without it.
    run_directory, before: of a training that is one round of a run (None: out is the run), where the run keeps its
    trajectory, and how many epochs of it came before. tells: values of `validate` that stand beside the loss on the
    screen, () for the monitor alone. A model without trainable parameters is only fitted and validated.
    """

    model: RecModel
    objective: Objective
    sampler: Sampler
    validate: Callable[[], dict[str, float]]
    fit: Fit
    monitor: str
    smaller: bool
    seed: int
    precision: str
    out: Path
    about: Mapping[str, Any]
    noise: Noise | None = None
    run_directory: Path | None = None
    before: int = 0
    tells: Sequence[str] = ()
    history: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.passes, self.counted = Passes(self.model), 0  # of so many steps
        check(self.fit)

    def run(self) -> None:
        """Train to the end; the model then has the best state seen."""
        if not self.model.trainable:
            return
        beside = [each for each in self.objective.parameters() if each.requires_grad]  # heads of distillations
        self.weights = [*(each for each in self.model.parameters() if each.requires_grad), *beside]
        self.optimizers = [  # ranking, auxiliary phase
            optimizers.optimizer(self.model, self.fit, beside),
            optimizers.optimizer(self.model, self.fit),
        ]
        self.best: dict[str, Tensor] = {}
        self._resume()
        whole = self.run_directory or self.out
        if not self.history:
            forget(whole, after=self.before)  # else epochs of an earlier run would count as those of this one
        saved = time.perf_counter()
        with Bar("epoch", total=self.fit.epochs, steps=len(self.sampler)) as bar:
            if self.history:
                bar.note(len(self.history) - 1, "was there already")
            for epoch in range(len(self.history), self.fit.epochs):
                if self._waited() >= self.fit.patience:
                    break
                row = self._epoch(epoch, bar)
                if math.isnan(row[self.monitor]):
                    raise RrecError(
                        f"{self.monitor} is not defined on the validation part, so nothing tells which epoch is best; "
                        "choose another monitor, or a larger validation part"
                    )
                self.history.append(row)
                tracking.epoch(self.out, row)
                number = self.before + epoch + 1
                if self.fit.trajectory and number % self.fit.trajectory == 0:
                    keep_epoch(whole, self.model, number, {self.monitor: row[self.monitor]})
                if self._waited() == 0:
                    self.best = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
                if time.perf_counter() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.perf_counter()
                judged = "  ".join(f"{name} {row[name]:.4f}" for name in self.tells or (self.monitor,))
                bar.note(epoch, f"loss {_summed(row)}  valid {judged}")
        self._write_history()
        self.model.load_state_dict(self.best)
        self.model.refresh()

    def finish(self) -> None:
        """Drop the resumable state; called when the results of the run are on disk."""
        folder = self.out / RESUME
        for each in folder.glob("*"):
            each.unlink()
        if folder.is_dir():
            folder.rmdir()

    def _epoch(self, epoch: int, bar: Bar) -> dict[str, float]:
        start, device = time.perf_counter(), self.sampler.device
        torch.manual_seed(self._stream(epoch, "dropout").initial_seed())
        self.model.train()
        late = self.fit.decay_after is not None and epoch >= self.fit.decay_after * self.fit.epochs
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.fit.lr * (0.1 if late else 1.0)
        noisy = epoch_generator(self.noise.seed if self.noise else 0, epoch, "noise")
        sampler = self._shown(epoch, noisy)
        bar.steps = len(sampler)
        start_epoch(self.objective, epoch, self._stream(epoch, "objective"), batches=len(sampler))
        total, penalties, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
        for batch in bar.each(epoch, sampler.epoch(self._stream(epoch, "batches"))):
            start_batch(self.objective)
            with self.passes if count % COUNTED == 0 else nullcontext():
                with autocast(self.precision, device):
                    at = Shifted(self.model)
                    delta = self.noise.delta(self.model, noisy) if self.noise else {}
                    there = at.shift(delta) if delta else at
                    value = self.objective(there, batch)
                    penalty = self.model.penalty(batch, partial(at.said, batch))
                    loss = value + penalty
                self._step(self.optimizers[0], loss)
            self.counted += count % COUNTED == 0
            penalties += penalty.detach() if isinstance(penalty, Tensor) else penalty
            total, count = total + loss.detach(), count + 1
        row = {"epoch": epoch + 1, "loss": total.item() / count, **told(self.objective)}
        if self.model.penalised:
            row["penalty"] = penalties.item() / count
        extra, count = torch.zeros((), device=device), 0
        for loss in self.model.auxiliary(self._stream(epoch, "auxiliary")):
            if not loss.requires_grad:  # all that this phase trains is frozen
                break
            self._step(self.optimizers[1], loss)
            extra, count = extra + loss.detach(), count + 1
        if count:
            row["auxiliary_loss"] = extra.item() / count
        if not all(value - value == 0 for value in row.values()):
            raise RrecError(f"the loss is NaN or infinite in epoch {epoch + 1}: lower lr or eps, or set clip_norm")
        self.model.refresh()
        row["train_seconds"] = time.perf_counter() - start
        row |= self.validate()
        row["seconds"] = time.perf_counter() - start
        return row

    def _shown(self, epoch: int, generator: torch.Generator) -> Sampler:
        """What gives the batches of an epoch: of its own events, where a noise changes them in each."""
        if self.noise is None or self.noise.finished or not self.noise.level:
            return self.sampler
        known = self.sampler.data.known.to(torch.device("cpu"))  # where noises draw
        shown = self.noise.shown(known, generator).to(self.sampler.device)
        show(self.objective, shown)
        try:
            return self.sampler.over(shown)
        except RrecError as error:
            told = f"noise={self.noise.name} noise.level={self.noise.level:g}, in epoch {epoch + 1}"
            raise RrecError(f"{told}: {error}") from error

    def _stream(self, epoch: int, name: str) -> torch.Generator:
        return epoch_generator(self.seed, epoch, name)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        for each in self.weights:
            each.grad = None
        loss.backward()
        if self.fit.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weights, self.fit.clip_norm)
        optimizer.step()

    def _waited(self) -> int:
        """Epochs since the best one, of those in which the defence was at work if there are any."""
        waits = max(each.waits for each in nested(self.objective))
        begins = waits if waits < self.fit.epochs else 0  # epochs before a defence begins say nothing of it
        rows = self.history[begins:] or self.history[-1:]
        scores = [-row[self.monitor] if self.smaller else row[self.monitor] for row in rows]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def _identity(self) -> str:
        """What must be equal for a state to be continued."""
        settings = {each.name: getattr(self.fit, each.name) for each in fields(Fit)}
        told = json.dumps([settings, self.seed, self.precision, self.about], sort_keys=True, default=str)
        return sha256(told.encode()).hexdigest()

    def _write_history(self) -> None:
        write_text(self.out / "history.csv", pd.DataFrame(self.history).to_csv(index=False))

    def _save(self) -> None:
        self._write_history()
        (self.out / RESUME).mkdir(exist_ok=True)
        tensors = {f"model/{name}": each for name, each in self.model.state_dict().items()}
        tensors |= {f"best/{name}": each for name, each in self.best.items()}
        tensors |= {f"objective/{name}": each for name, each in self.objective.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            tensors |= {f"optimizer/{number}/{name}": each for name, each in moments(optimizer).items()}
        cost = [self.passes.forward, self.passes.backward, self.counted]
        notes = {"history": json.dumps(self.history), "identity": self._identity(), "cost": json.dumps(cost)}
        save_state(self.out / RESUME / "state.safetensors", tensors, notes)

    def _resume(self) -> None:
        path = self.out / RESUME / "state.safetensors"
        if not path.is_file():
            return
        tensors, notes = load_state(path, self.sampler.device)
        try:
            self._restore(tensors, notes)
        except (KeyError, RuntimeError, ValueError) as error:
            raise RrecError(f"resume: {path} is not a state of this run; remove it to start the run again") from error

    def _restore(self, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
        if notes.get("identity") != self._identity():
            raise RrecError(
                f"resume={self.out}: the state there is of a run with other settings, or with another teacher or "
                "start; it cannot be continued"
            )
        self.model.load_state_dict(under("model/", tensors))
        self.model.refresh()
        self.best = under("best/", tensors)
        self.objective.load_state_dict(under("objective/", tensors))
        for number, optimizer in enumerate(self.optimizers):
            with_moments(optimizer, under(f"optimizer/{number}/", tensors))
        self.history = json.loads(notes["history"])
        if "cost" in notes:  # else of a version that did not keep it
            self.passes.forward, self.passes.backward, self.counted = json.loads(notes["cost"])


def _summed(row: Mapping[str, float]) -> str:
    """The loss of an epoch, with what it is the sum of where an objective tells its terms: weight × value of each."""
    parts = {name.removeprefix("term/"): each for name, each in row.items() if name.startswith("term/")}
    if not parts:
        return f"{row['loss']:.4f}"
    parts |= {name: row[name] for name in ("penalty",) if name in row}
    return " ".join([f"{row['loss']:.4f} =", " + ".join(f"{name} {value:.4f}" for name, value in parts.items())])
