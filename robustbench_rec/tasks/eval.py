"""rrec eval."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustbench_rec import checkpoint
from robustbench_rec.config import Eval
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, Moved, Result, by_user, evaluator
from robustbench_rec.evaluation.alike import alike
from robustbench_rec.evaluation.calibration import Calibrated
from robustbench_rec.evaluation.divergence import Side, divergence
from robustbench_rec.evaluation.slices import check, sliced
from robustbench_rec.files import write_text
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.metrics import prediction
from robustbench_rec.noises import noises
from robustbench_rec.reports.slices import show_slices
from robustbench_rec.reports.tables import Row, by_metric, number, show
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.significance import LEVEL, Comparison, enough, holm, paired, paired_events
from robustbench_rec.tasks.beside import asked_alike
from robustbench_rec.tasks.certify import certificate, certified
from robustbench_rec.tasks.train import exposure, keep, title

log = logging.getLogger(__name__)


def run(cfg: Eval, out: Path) -> dict[str, float]:
    """Judge a checkpoint on a part of the data that it was trained on, as they are or with noise; prove what stays.

    Also how far scores and lists are from those of fp32, in another precision, and from those of a baseline.
    """
    _check_part(cfg)
    device, proof = setup(cfg), certificate(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device, noise=cfg.noise)
    judging = evaluator(loaded.data, cfg)
    judging.portions(cfg.part)
    if cfg.protocol == "ratings" and (loaded.learnt.get("loss") or loaded.model.loss) != "mse":
        log.warning("protocol=ratings: the scores of ckpt=%s are no ratings; train with loss=mse", cfg.ckpt)
    if cfg.calibrate:
        judging.portions("valid")
    check(loaded.data, cfg.slices, cfg.anonymity)
    other = _baseline(cfg, judging, loaded, device)
    seeds = {"seed": cfg.seed, "noise.seed": cfg.noise.get("seed")}
    if proof is not None:
        seeds["certify.seed"] = cfg.certify.get("seed")
    notes: dict[str, Any] = {"ckpt": cfg.ckpt, "noise": cfg.noise, "certify": cfg.certify}
    notes |= checkpoint.fingerprints(loaded.data)
    if other is not None:
        notes["baseline"] = cfg.baseline
    with Run(out, "eval", seeds=seeds, device=device, **notes):
        at = Shifted(loaded.model)
        with autocast(cfg.precision, device):
            result = judging.evaluate(at, cfg.part)
            result.metrics.update(exposure(judging, at, cfg.part))
            theirs = None if other is None else judging.evaluate(other, cfg.part)
            calibrated = Calibrated(judging, at, cfg.part, result) if cfg.calibrate else None
        apart = _apart(judging, at, other, cfg)
        if theirs is not None and (lists := alike(theirs, result, cfg.top_k)):
            apart["between"] |= lists.metrics
        noisy = "" if cfg.noise["name"] == "none" else f", {cfg.noise['name']} {cfg.noise['level']:g}"
        by_metric(f"{cfg.ckpt} on {title(loaded.data, cfg)}{noisy}", {cfg.part: result.metrics})
        told = dict(result.metrics)
        if cfg.slices:
            found = sliced(judging, cfg.part, result, cfg.slices, anonymity=cfg.anonymity)
            show_slices({"value": found}, judging.watched(None), out / "slices.csv")
            told |= found.metrics
        if calibrated is not None:
            told |= _calibrated(calibrated, out)
        if theirs is not None:
            told |= _compared(judging, result, theirs, cfg)
        by_user.write(out, judging, {cfg.part: result})
        if cfg.per_user:
            keep(result, loaded.data, out / f"per_user-{cfg.part}.csv")
        if apart:
            by_metric("how far scores and lists are apart", apart)
        told = {f"{cfg.part}/{name}": value for name, value in told.items()}
        told |= {f"{kind}/{name}": value for kind, found in apart.items() for name, value in found.items()}
        if proof is not None:
            told |= certified(proof, cfg, loaded, judging, out)
    return told


def _check_part(cfg: Eval) -> None:
    """RrecError where the noise is about another part than the one that is judged."""
    noise = noises.build(cfg.noise)
    if noise.level and noise.of_test and cfg.part != "test":
        raise RrecError(f"noise={noise.name} changes what test asks, nothing of part={cfg.part}: take part=test")


def _baseline(cfg: Eval, judging: Evaluator[Any], loaded: checkpoint.Loaded, device: torch.device) -> Moved | None:
    """The baseline and what it reads, to be judged as the checkpoint is; None without one.

    It may have learnt under another noise, or none, where that leaves users, candidates and what is relevant alike.
    """
    if cfg.baseline is None:
        return None
    found = checkpoint.load(cfg.baseline, data_dir=cfg.data_dir, device=device, key="baseline", noise=cfg.noise)
    checkpoint.comparable(loaded, found, "baseline", cfg.baseline, cfg.ckpt, noise=True)
    own, at = asked_alike(cfg, judging, found.data, "baseline"), Shifted(found.model)
    return [(at, batch) for batch in own.inputs(found.model, cfg.part)]


def _apart(judging: Evaluator[Any], at: Shifted, other: Moved | None, cfg: Eval) -> dict[str, dict[str, float]]:
    """`divergence` from fp32, in another precision, and `between`, from the baseline."""
    ours, sides = Side(at, cfg.precision), {}
    if cfg.precision != "fp32":
        sides["divergence"] = Side(at, "fp32")
    if other is not None:
        sides["between"] = Side(other, cfg.precision)
    return {kind: divergence(judging, cfg.part, side, ours) for kind, side in sides.items()}


def _calibrated(found: Calibrated, out: Path) -> dict[str, float]:
    """Shown, with `calibration.csv` and, where there are probabilities, `reliability.csv`."""
    show("fitted on validation", list(found.fitted), [list(found.fitted.values())])
    show("before and after calibration", ["metric", "before", "after"], found.frame.to_numpy().tolist())
    write_text(out / "calibration.csv", found.frame.to_csv(index=False))
    if len(found.reliability):
        write_text(out / "reliability.csv", found.reliability.to_csv(index=False))
    told: dict[str, float] = {f"calibrated/{name}": value for name, value in found.after.items()}
    told |= {f"uncalibrated/{name}": value for name, value in found.before.items()}
    return told | {f"fitted/{name}": value for name, value in found.fitted.items()}


def _compared(judging: Evaluator[Any], ours: Result, theirs: Result, cfg: Eval) -> dict[str, float]:
    """Difference to the baseline of every metric; with interval, p and effect size where it is a mean."""
    found = _paired(ours, theirs, judging.judge.protocol, judging.names())
    adjusted = dict(zip(found, holm([each.difference.p for each in found.values()]), strict=True))
    rows: list[Row] = []
    told: dict[str, float] = {}
    for name in judging.names():
        one, two = ours.metrics[name], theirs.metrics[name]
        told[f"difference/{name}"] = one - two
        row: list[str | float] = [name, one, two, one - two]
        if name in found:
            each, p = found[name], adjusted[name]
            between = f"{number(each.difference.low)}…{number(each.difference.high)}"
            row += [between, p, "" if p < LEVEL else "≈"]
            told |= {f"difference/{name}/low": each.difference.low, f"difference/{name}/high": each.difference.high}
            told |= {f"difference/{name}/p": p, f"difference/{name}/d": each.d, f"difference/{name}/dz": each.dz}
        rows.append([*row, *[""] * (7 - len(row))])
    columns = ["metric", "run", "base", "Δ", "95 %", "p", ""]
    show(f"beside {cfg.baseline}: {len(ours.users)} users, paired; p after Holm; ≈: may be chance", columns, rows)
    return told


def _paired(ours: Result, theirs: Result, protocol: str, names: Sequence[str]) -> dict[str, Comparison]:
    """Of the metrics that users, or events, have values of; none of coverage, AUC of clicks and the like."""
    one, two = ours.predicted, theirs.predicted
    if one is None or two is None:
        kept = list(ours.per_user)
        sides = (torch.stack([each.per_user[name] for name in kept]).cpu() for each in (ours, theirs) if kept)
        return dict(zip(kept, paired(*sides, size=enough(len(kept))), strict=True)) if kept else {}
    of = prediction.of_ratings if protocol == "ratings" else prediction.of_clicks
    values = [of(each.scores.cpu(), each.labels.cpu()) for each in (one, two)]
    kept = [name for name in names if name in values[0]]
    if not kept:
        return {}
    first, second = (torch.stack([each[name] for name in kept]) for each in values)
    found = paired_events(first, second, one.users.cpu(), size=enough(len(kept)))
    return dict(zip(kept, found, strict=True))
