"""rrec finetune."""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.ascent import Ascent
from robustbench_rec.attack import Member
from robustbench_rec.attacks import single
from robustbench_rec.batch import Batch
from robustbench_rec.config import Finetune
from robustbench_rec.criticality import criticality
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import PARTS, Evaluator, Moved, evaluator
from robustbench_rec.files import write_text
from robustbench_rec.finetunes import finetunes
from robustbench_rec.finetuning import Finetuning
from robustbench_rec.goal import Goal
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.losses import Loss, trained
from robustbench_rec.model import RecModel
from robustbench_rec.noise import Noise
from robustbench_rec.noises import noises
from robustbench_rec.norms import Ball, budget
from robustbench_rec.objective import Plain, streamed
from robustbench_rec.reports import plots
from robustbench_rec.reports.tables import Row, show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import Sampler, epoch_generator, sampler
from robustbench_rec.shifted import Shifted, label, tunable
from robustbench_rec.tasks.train import check_rated, judge, tell_private
from robustbench_rec.trainer import Trainer, check

log = logging.getLogger(__name__)

WORSE = 1e6
"""Puts what loses too much of what is to be kept below everything that does not."""
ROUND_SEEDS = 10_000
"""Between the seeds of two rounds, further than seeds that people choose are apart."""

State = dict[str, Tensor]


def run(cfg: Finetune, out: Path) -> dict[str, float]:
    """Measure how critical each module is, tune some alone, and interpolate with the start; see `finetunes`.

    Every choice is made on validation: the best of the wanted quality among what keeps 1 - tolerance of the other one.
    The start is always feasible, so on validation the result is never worse than the start.
    """
    device = setup(cfg)
    check(cfg)
    if not (cfg.alphas >= 2 and 0 <= cfg.tolerance < 1 and cfg.criticality.pairs >= 1):
        raise RrecError(
            f"alphas={cfg.alphas}, tolerance={cfg.tolerance}, criticality.pairs={cfg.criticality.pairs}: alphas >= 2, "
            "tolerance in [0, 1) and pairs >= 1 are needed"
        )
    if not (cfg.criticality.steps >= 1 and cfg.criticality.eps > 0):
        raise RrecError(
            f"criticality.steps={cfg.criticality.steps}, criticality.eps={cfg.criticality.eps}: steps >= 1 and eps > 0 "
            "are needed, else no module is more critical than another"
        )
    tuning = finetunes.build(cfg.finetune)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    model, data = loaded.model, loaded.data
    judging = evaluator(data, cfg)
    judging.monitored(cfg.monitor)
    for part in PARTS:
        judging.portions(part)
    attack = single(cfg.attack).prepared(model, data)
    tuning.modules(dict.fromkeys(map(label, tunable(model)), 0.0))
    scoring = evaluator(data, cfg, alone=attack.alone)
    (member,) = attack.members(judging.ensemble, Goal.hinge if Goal.hinge in judging.losses else None)
    wanted, negatives = cfg.loss or model.loss, model.negatives if cfg.negatives is None else cfg.negatives
    check_rated(cfg.protocol, wanted, negatives)
    climbed = trained(wanted)
    _tell_other_loss(cfg, model, loaded.learnt)
    tell_private(loaded, f"ckpt={cfg.ckpt}")
    batches = sampler(data, model, loss=wanted, batch_size=cfg.batch_size, negatives=cfg.negatives)
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    with Run(out, "finetune", seeds=seeds, device=device, ckpt=cfg.ckpt, **checkpoint.fingerprints(data)):
        start = _state(model)
        score = _Score(scoring, member, cfg, model, tuning)
        rounds = Rounds(cfg, out, tuning, model, batches, climbed, score, noises.build(loaded.recipe.noise))
        rounds.run({"data": data.fingerprint, "ckpt": loaded.digest, "attack": cfg.attack, "finetune": cfg.finetune})
        _interpolate(cfg, model, start, rounds.score, out)
        budget = _budget(cfg, model, start, rounds)
        learnt = {"loss": wanted, "negatives": negatives}
        checkpoint.save(out, model, loaded.config, loaded.recipe, data, learnt=learnt)
        metrics = judge(judging, Shifted(model.requires_grad_(False)), cfg, out)
        for trainer in rounds.trainers:
            trainer.finish()
    return metrics | budget


class _Score:
    """Clean and attacked quality on validation, and the wanted one as the score of what keeps enough of the other."""

    def __init__(
        self, judging: Evaluator[Any], member: Member, cfg: Finetune, model: RecModel, tuning: Finetuning
    ) -> None:
        self.judging, self.attack, self.model, self.raises = judging, member.attack, model, tuning.raises
        self.monitor, self.climbed = judging.monitored(cfg.monitor), judging.climbed(member.loss)
        self.sign = -1 if self.monitor in judging.smaller else 1
        self.tells = (self.monitor, f"attacked_{self.monitor}")
        clean, attacked = self._qualities(Shifted(model))
        start = clean if self.raises == "attacked" else attacked
        self.floor = start - cfg.tolerance * abs(start)

    def __call__(self) -> dict[str, float]:
        clean, attacked = self._qualities(Shifted(self.model))
        wanted, kept = (attacked, clean) if self.raises == "attacked" else (clean, attacked)
        score = wanted if kept >= self.floor else kept - WORSE
        return {**dict(zip(self.tells, (self.sign * clean, self.sign * attacked), strict=True)), "score": score}

    def _qualities(self, at: Shifted) -> tuple[float, float]:
        """Clean and attacked, the more the better."""
        worse, _ = self.judging.attack(at, self.attack, "valid", self.climbed)
        return self._quality(at), self._quality(worse)

    def _quality(self, at: Shifted | Moved) -> float:
        return self.sign * self.judging.evaluate(at, "valid", metrics=[self.monitor]).metrics[self.monitor]


class Rounds:
    """Measures, chooses and tunes, once or several times; a round that gains nothing is undone where there are several.

    trainers: one a round. tuned: names of all tensors that any of them was allowed to change.
    """

    def __init__(
        self,
        cfg: Finetune,
        out: Path,
        tuning: Finetuning,
        model: RecModel,
        batches: Sampler,
        climbed: Loss,
        score: _Score,
        noise: Noise,
    ) -> None:
        self.noise = noise
        self.cfg, self.out, self.tuning, self.model = cfg, out, tuning, model
        self.batches, self.climbed, self.score = batches, climbed, score
        self.tunable, self.trained = tunable(model), {n for n, each in model.named_parameters() if each.requires_grad}
        self.trainers: list[Trainer] = []
        self.tuned: set[str] = set()

    def run(self, about: Mapping[str, Any]) -> None:
        for number in range(self.tuning.rounds):
            several = self.tuning.rounds > 1
            folder = self.out / f"round-{number + 1}" if several else self.out
            folder.mkdir(exist_ok=True)
            before, had = _state(self.model), self.score()["score"] if several else 0.0
            self._round(number, folder, about)
            gained = not several or self.score()["score"] > had
            if not gained:
                _set(self.model, before)
            if several:
                rows = [row for trainer in self.trainers for row in trainer.history]
                table = pd.DataFrame([{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)])
                write_text(self.out / "history.csv", table.to_csv(index=False))
                told = "kept" if gained else "undone, nothing gained"
                show(f"round {number + 1} of {self.tuning.rounds}: {told}", [], [])

    def _round(self, number: int, folder: Path, about: Mapping[str, Any]) -> None:
        found = self._criticality()
        chosen = self.tuning.modules(found)
        _show_criticality(found, chosen, folder)
        names = {name: found[label(name)] for name in self.tunable if label(name) in chosen}
        owners = {name.rpartition(".")[0] for name in names} - {""}
        for name, each in self.model.named_parameters():  # a module is tuned with its bias
            owner = name.removesuffix("_bias") if name.endswith("_bias") else name.rpartition(".")[0]
            bias = each.ndim < 2 and owner in owners and name in self.trained
            each.requires_grad_(name in names or bias)
            if each.requires_grad:
                self.tuned.add(name)
        trainer = Trainer(
            model=self.model,
            objective=self.tuning.objective(Plain(self.climbed), names, tuple(names)),
            sampler=self.batches,
            validate=self.score,
            fit=self.cfg,
            monitor="score",
            smaller=False,
            seed=self.cfg.seed + ROUND_SEEDS * number,
            precision=self.cfg.precision,
            out=folder,
            about={**about, "modules": chosen},
            noise=self.noise,
            run_directory=self.out,
            before=sum(len(each.history) for each in self.trainers),
            tells=self.score.tells,
        )
        trainer.run()
        self.trainers.append(trainer)

    def _criticality(self) -> dict[str, float]:
        asked = self.cfg.criticality
        epoch = self.batches.epoch(epoch_generator(self.cfg.seed, 0, "batches"))
        batches = list(islice(epoch, -(-asked.pairs // self.cfg.batch_size)))

        def objective(at: Shifted, batch: Batch) -> Tensor:
            return streamed(at, batches, self.climbed)

        with autocast(self.cfg.precision, self.batches.device):
            start = Shifted(self.model.eval())
            if asked.embedding_eps:
                ball = Ball(eps=budget("embedding_eps", asked.embedding_eps), norm="l2", per="row", relative="own")
                start, _ = Ascent(surface="embedding", ball=ball, steps=10, step_size=0.25)(
                    start, batches[0], objective
                )
            return criticality(
                start, batches[0], objective, eps=asked.eps, per=asked.per, steps=asked.steps, names=self.tunable
            )


def _tell_other_loss(cfg: Finetune, model: RecModel, before: Mapping[str, Any]) -> None:
    """Warn where the model is tuned with another loss, or other negatives, than it learnt with."""
    if not before:
        return
    learnt, now = (
        f"loss={name or model.loss} negatives={model.negatives if count is None else count}"
        for name, count in ((before.get("loss"), before.get("negatives")), (cfg.loss, cfg.negatives))
    )
    if learnt != now:
        log.warning("ckpt=%s was trained with %s, it is tuned with %s", cfg.ckpt, learnt, now)


def _show_criticality(found: Mapping[str, float], chosen: Sequence[str], folder: Path) -> None:
    table: list[Row] = [[name, value, "yes" if name in chosen else ""] for name, value in found.items()]
    columns = ["module", "criticality", "tuned"]
    show("module robust criticality", columns, table)
    write_text(folder / "criticality.csv", pd.DataFrame(table, columns=columns).to_csv(index=False))
    title = "Module robust criticality (red: tuned)"
    plots.bars(found, chosen, title, "rise of the loss, the module alone moved", folder / "criticality.png")


def _keeps(row: Mapping[str, float]) -> bool:
    """Whether a state keeps enough of what is to be kept."""
    return row["score"] > -WORSE / 2


def _interpolate(cfg: Finetune, model: RecModel, start: State, score: _Score, out: Path) -> None:
    """Set the model to the best (1 − α) start + α tuned; ties go to the smaller α."""
    end = _state(model)
    rows = []
    for step in range(cfg.alphas):
        _set(model, _blend(start, end, step / (cfg.alphas - 1)))
        rows.append({"alpha": step / (cfg.alphas - 1), **score()})
    best = max(rows, key=lambda row: row["score"])
    _set(model, _blend(start, end, best["alpha"]))
    notes = ["chosen" if row is best else "" if _keeps(row) else "loses more than the tolerance" for row in rows]
    rows = [row if _keeps(row) else {**row, "score": float("nan")} for row in rows]
    told: list[Row] = [[*row.values(), note] for row, note in zip(rows, notes, strict=True)]
    show("interpolation on validation, α = 0 is the start", [*rows[0], ""], told)
    frame = pd.DataFrame(rows)
    write_text(out / "alpha.csv", frame.to_csv(index=False))
    plots.lines(
        frame.drop(columns="score"),
        "alpha",
        "From the start (0) to the tuned model (1)",
        out / "alpha.png",
        marked=best["alpha"],
    )


def _budget(cfg: Finetune, model: RecModel, start: State, rounds: Rounds) -> dict[str, float]:
    """What was tuned, for how long, beside the training before; what was frozen must be what it was, bit for bit."""
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, start[name])}
    if moved - rounds.tuned:
        raise RuntimeError(f"frozen tensors changed: {', '.join(sorted(moved - rounds.tuned))}")
    total = sum(each.numel() for each in start.values())
    share = sum(start[name].numel() for name in rounds.tuned) / total
    history = [row for trainer in rounds.trainers for row in trainer.history]
    told = {"budget/tuned_share": share, "budget/epochs": float(len(history))}
    rows: list[Row] = [["parameters (share)", share, 1.0], ["tensors changed", len(moved), len(start)]]
    before = checkpoint.history(cfg.ckpt)
    if before is not None:
        told["budget/epochs_before"] = float(len(before))
        seconds = sum(row["train_seconds"] for row in history)
        rows += [["epochs", len(history), len(before)], ["seconds of training", seconds, before["train_seconds"].sum()]]
    show("budget: frozen tensors are unchanged, bit for bit", ["", "fine-tuning", "training before"], rows)
    return told


def _state(model: RecModel) -> State:
    return {name: each.detach().clone() for name, each in model.named_parameters()}


@torch.no_grad()
def _set(model: RecModel, state: State) -> None:
    for name, each in model.named_parameters():
        each.copy_(state[name])
    model.refresh()


def _blend(start: State, end: State, alpha: float) -> State:
    """What is equal at both ends stays as it is, bit for bit, and so does the start."""
    return {
        name: each if alpha == 0 or torch.equal(each, end[name]) else torch.lerp(each, end[name], alpha)
        for name, each in start.items()
    }
