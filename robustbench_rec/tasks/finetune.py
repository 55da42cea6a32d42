"""rrec finetune."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.adversarial import Adversarial, weight_ascent
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import single
from robustbench_rec.batch import Batch
from robustbench_rec.config import Finetune
from robustbench_rec.criticality import criticality
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import PARTS, Evaluator, Moved, evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.losses import Loss, loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Plain, streamed
from robustbench_rec.reports.tables import show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import Sampler, epoch_generator, sampler
from robustbench_rec.shifted import Shifted, label, surface
from robustbench_rec.tasks.train import judge
from robustbench_rec.trainer import Trainer

WORSE = 1e6
"""Puts what loses too much clean quality below everything that does not."""


def run(cfg: Finetune, out: Path) -> dict[str, float]:
    """RAWP-FT: find the least robust modules, tune them alone under weight perturbation, interpolate with the start.

    After the released code of the RAWP line (Qian et al., KBS 2025), reconstructed: there the proxy's learning rate of
    0 switches the perturbation off, and epoch and interpolation are chosen on test users. Here the perturbation is real
    and every choice is made on validation: the best attacked quality among what keeps 1 − tolerance of the clean one.
    The start is always feasible, so on validation the result is never worse than the start.
    """
    device = setup(cfg)
    if not (cfg.alphas >= 2 and 0 <= cfg.tolerance < 1 and cfg.modules >= 1 and cfg.criticality.pairs >= 1):
        raise RrecError(
            f"alphas={cfg.alphas}, tolerance={cfg.tolerance}, modules={cfg.modules}, criticality.pairs="
            f"{cfg.criticality.pairs}: alphas >= 2, tolerance in [0, 1), modules and pairs >= 1 are needed"
        )
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    model, data = loaded.model, loaded.data
    judging = evaluator(data, cfg)
    judging.watched(cfg.monitor)
    for part in PARTS:
        judging.portions(part)
    attack = single(cfg.attack).prepared(model, data)
    names = surface(model, "weight")
    if cfg.modules > len(names):
        raise RrecError(f"modules={cfg.modules}: the model has {len(names)} ({', '.join(map(label, names))})")
    wanted = cfg.loss or model.loss
    batches = sampler(data, model, loss=wanted, batch_size=cfg.batch_size, negatives=cfg.negatives)
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    with Run(out, "finetune", seeds=seeds, device=device, ckpt=cfg.ckpt, fingerprint=data.fingerprint):
        found = _criticality(cfg, model, batches, loss(wanted))
        chosen = list(found)[: cfg.modules]
        table = [[name, value, "yes" if name in chosen else ""] for name, value in found.items()]
        show("module robust criticality", ["module", "criticality", "tuned"], table)
        write_text(
            out / "criticality.csv", pd.DataFrame(table, columns=["module", "criticality", "tuned"]).to_csv(index=False)
        )

        start = {name: each.detach().clone() for name, each in model.named_parameters()}
        score = _Score(judging, attack, cfg, model)
        target = tuple(name for name in names if label(name) in chosen)
        owners = [name.rpartition(".")[0] for name in target]
        for name, each in model.named_parameters():
            each.requires_grad_(name in target or (name.rpartition(".")[0] in owners and "" not in owners))
        tuned = Adversarial(Plain(loss(wanted)), _on(target, cfg.gamma), clean=0.0, robust=1.0)
        trainer = Trainer(
            model=model,
            objective=tuned,
            sampler=batches,
            validate=score,
            fit=cfg,
            monitor="score",
            smaller=False,
            seed=cfg.seed,
            precision=cfg.precision,
            out=out,
            about={
                "data": data.fingerprint,
                "ckpt": cfg.ckpt,
                "modules": chosen,
                "gamma": cfg.gamma,
                "attack": cfg.attack,
            },
        )
        trainer.run()
        _interpolate(cfg, model, start, score, out)
        checkpoint.save(out, model, loaded.config, loaded.recipe, data)
        metrics = judge(judging, Shifted(model.requires_grad_(False)), cfg, out)
        trainer.finish()
    return metrics


class _Score:
    """Clean and attacked quality on validation, and the attacked one as the score of what is clean enough."""

    def __init__(self, judging: Evaluator[Any], attack: Attack, cfg: Finetune, model: RecModel) -> None:
        self.judging, self.attack, self.model = judging, attack, model
        self.monitor, self.climbed = judging.watched(cfg.monitor), judging.climbed(None)
        self.sign = -1 if self.monitor in judging.smaller else 1
        start = self.sign * self.quality(Shifted(model))
        self.floor = start - cfg.tolerance * abs(start)

    def __call__(self) -> dict[str, float]:
        return self.at(Shifted(self.model))

    def at(self, at: Shifted) -> dict[str, float]:
        """Of any point."""
        worse, _ = self.judging.attack(at, self.attack, "valid", self.climbed)
        clean, attacked = self.quality(at), self.quality(worse)
        feasible = self.sign * clean >= self.floor
        score = self.sign * attacked if feasible else self.sign * clean - WORSE
        return {self.monitor: clean, f"attacked_{self.monitor}": attacked, "score": score}

    def quality(self, at: Shifted | Moved) -> float:
        """The monitored metric on validation."""
        return self.judging.evaluate(at, "valid", metrics=[self.monitor]).metrics[self.monitor]


def _criticality(cfg: Finetune, model: RecModel, sampler: Sampler, climbed: Loss) -> dict[str, float]:
    epoch = sampler.epoch(epoch_generator(cfg.seed, 0, "batches"))
    batches = list(islice(epoch, -(-cfg.criticality.pairs // cfg.batch_size)))

    def objective(at: Shifted, batch: Batch) -> Tensor:
        return streamed(at, batches, climbed)

    with autocast(cfg.precision, sampler.device):
        start = Shifted(model.eval())
        return criticality(start, batches[0], objective, eps=cfg.criticality.eps, steps=cfg.criticality.steps)


def _on(names: tuple[str, ...], gamma: float) -> Attack:
    return replace(weight_ascent(gamma, "row", 1), names=names)


def _interpolate(cfg: Finetune, model: RecModel, start: dict[str, torch.Tensor], score: _Score, out: Path) -> None:
    """Set the model to the best (1 − α) start + α tuned; ties go to the smaller α."""
    end = {name: each.detach().clone() for name, each in model.named_parameters()}
    rows = []
    for step in range(cfg.alphas):
        _blend(model, start, end, step / (cfg.alphas - 1))
        rows.append({"alpha": step / (cfg.alphas - 1), **score()})
    best = max(rows, key=lambda row: row["score"])
    _blend(model, start, end, best["alpha"])
    columns = list(rows[0])
    show(
        "interpolation on validation, α = 0 is the start",
        [*columns, ""],
        [[*row.values(), "chosen" if row is best else ""] for row in rows],
    )
    write_text(out / "alpha.csv", pd.DataFrame(rows).to_csv(index=False))


@torch.no_grad()
def _blend(model: RecModel, start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], alpha: float) -> None:
    for name, each in model.named_parameters():
        if not torch.equal(start[name], end[name]):  # what was frozen stays as it is, bit for bit
            each.copy_(start[name] if alpha == 0 else torch.lerp(start[name], end[name], alpha))
    model.refresh()
