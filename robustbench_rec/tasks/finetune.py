"""rrec finetune."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from robustbench_rec import checkpoint
from robustbench_rec.adversarial import Adversarial, weight_ascent
from robustbench_rec.ascent import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.config import Finetune
from robustbench_rec.criticality import criticality
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluator import PARTS, Evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.reports.tables import show
from robustbench_rec.runs import Run
from robustbench_rec.sampling import Sampler, epoch_generator
from robustbench_rec.shifted import Shifted, label, surface
from robustbench_rec.tasks.train import judge
from robustbench_rec.trainer import Trainer


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
    evaluator = Evaluator(data, cfg)
    if cfg.monitor not in evaluator.names():
        raise unknown("monitor", cfg.monitor, evaluator.names())
    for part in PARTS:
        evaluator.chunks(part)
    attack = attacks.build(cfg.attack)
    attack.check(model)
    names = surface(model, "weight")
    if cfg.modules > len(names):
        raise RrecError(f"modules={cfg.modules}: the model has {len(names)} ({', '.join(map(label, names))})")
    plain = Plain(loss(cfg.loss or model.loss))
    sampler = Sampler(data, batch_size=cfg.batch_size, negatives=cfg.negatives)
    seeds = {"seed": cfg.seed, "attack.seed": cfg.attack.get("seed")}
    with Run(out, "finetune", seeds=seeds, device=device, ckpt=cfg.ckpt, fingerprint=data.fingerprint):
        found = _criticality(cfg, model, sampler, plain)
        chosen = list(found)[: cfg.modules]
        table = [[name, value, "yes" if name in chosen else ""] for name, value in found.items()]
        show("module robust criticality", ["module", "criticality", "tuned"], table)
        write_text(
            out / "criticality.csv", pd.DataFrame(table, columns=["module", "criticality", "tuned"]).to_csv(index=False)
        )

        start = {name: each.detach().clone() for name, each in model.named_parameters()}
        score = _Score(evaluator, attack, cfg, model)
        target = tuple(name for name in names if label(name) in chosen)
        owners = [name.rpartition(".")[0] for name in target]
        for name, each in model.named_parameters():
            each.requires_grad_(name in target or (name.rpartition(".")[0] in owners and "" not in owners))
        tuned = Adversarial(plain, _on(target, cfg.gamma), clean=0.0, robust=1.0)
        trainer = Trainer(
            model=model,
            objective=tuned,
            sampler=sampler,
            validate=score,
            fit=cfg,
            monitor="score",
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
        metrics = judge(evaluator, Shifted(model.requires_grad_(False)), cfg, out)
        trainer.finish()
    return metrics


class _Score:
    """Clean and attacked quality on validation, and the attacked one as the score of what is clean enough."""

    def __init__(self, evaluator: Evaluator, attack: Attack, cfg: Finetune, model: RecModel) -> None:
        self.evaluator, self.attack, self.cfg, self.model = evaluator, attack, cfg, model
        self.loss = loss("margin")
        self.floor = (1 - cfg.tolerance) * self.quality(Shifted(model))

    def __call__(self) -> dict[str, float]:
        return self.at(Shifted(self.model))

    def at(self, at: Shifted) -> dict[str, float]:
        """Of any point."""
        worse, _ = self.evaluator.attack(at, self.attack, "valid", self.loss)
        clean, attacked = self.quality(at), self.quality(worse)
        score = attacked if clean >= self.floor else clean - 1  # below every feasible one
        return {self.cfg.monitor: clean, f"attacked_{self.cfg.monitor}": attacked, "score": score}

    def quality(self, at: Shifted) -> float:
        """The monitored metric on validation."""
        return self.evaluator.evaluate(at, "valid", metrics=[self.cfg.monitor]).metrics[self.cfg.monitor]


def _criticality(cfg: Finetune, model: RecModel, sampler: Sampler, objective: Objective) -> dict[str, float]:
    batches = list(sampler.epoch(epoch_generator(cfg.seed, 0, "batches")))[
        : -(-cfg.criticality.pairs // cfg.batch_size)
    ]
    items = torch.cat([each.items for each in batches if each.items is not None])
    batch = Batch(torch.cat([each.users for each in batches]), items, torch.cat([each.labels for each in batches]))
    with autocast(cfg.precision, items.device):
        return criticality(
            Shifted(model.eval()), batch, objective, eps=cfg.criticality.eps, steps=cfg.criticality.steps
        )


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
