"""rrec eval."""

from pathlib import Path

from robustbench_rec import checkpoint
from robustbench_rec.config import Eval
from robustbench_rec.evaluation import evaluator
from robustbench_rec.evaluation.divergence import divergence
from robustbench_rec.hardware import autocast, setup
from robustbench_rec.reports.tables import by_metric
from robustbench_rec.runs import Run
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.train import exposure, keep, title


def run(cfg: Eval, out: Path) -> dict[str, float]:
    """Judge a checkpoint on a part of the data that it was trained on, as they are or with noise.

    In another precision than fp32, also how far scores and lists are from those of fp32.
    """
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device, noise=cfg.noise)
    judging = evaluator(loaded.data, cfg)
    judging.portions(cfg.part)
    seeds = {"seed": cfg.seed, "noise.seed": cfg.noise.get("seed")}
    notes = {"ckpt": cfg.ckpt, "noise": cfg.noise, "fingerprint": loaded.data.fingerprint}
    with Run(out, "eval", seeds=seeds, device=device, **notes):
        at = Shifted(loaded.model)
        with autocast(cfg.precision, device):
            result = judging.evaluate(at, cfg.part)
            result.metrics.update(exposure(judging, at, cfg.part))
        apart = divergence(judging, at, cfg.part, cfg.precision) if cfg.precision != "fp32" else {}
        by_metric(f"{cfg.ckpt} on {title(loaded.data, cfg)}", {cfg.part: result.metrics})
        if cfg.per_user:
            keep(result, loaded.data, out / f"per_user-{cfg.part}.csv")
        if apart:
            by_metric(f"{cfg.precision} beside fp32", {"divergence": apart})
    told = {f"{cfg.part}/{name}": value for name, value in result.metrics.items()}
    return told | {f"divergence/{name}": value for name, value in apart.items()}
