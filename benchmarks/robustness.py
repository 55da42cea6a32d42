"""Attack every run of a training sweep and tabulate what is left, mean ± standard deviation over seeds.

rrec train -m model=mf,kgat defense=none,apr,rawp seed=0,1,2
python benchmarks/robustness.py outputs/train/multirun/<date>/<time>
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from robustbench_rec import checkpoint
from robustbench_rec.attacks import attacks
from robustbench_rec.config import Judge
from robustbench_rec.evaluation import evaluator
from robustbench_rec.losses import loss
from robustbench_rec.shifted import Shifted

METRIC = "ndcg@10"
UNIT = {"embedding": "row", "weight": "layer"}
ATTACKS = {"noise": {}, "fgm": {}, "pgd": {"steps": 10, "step_size": None, "random_start": False, "restarts": 1}}


def rows(sweep: Path, budgets: list[float]) -> Iterator[dict[str, object]]:
    for run in sorted(sweep.glob("*/model.json"), key=lambda path: int(path.parent.name)):
        chosen = dict(each.split("=") for each in (run.parent / ".hydra/overrides.yaml").read_text()[2:].split("\n- "))
        chosen = {key: value.strip() for key, value in chosen.items()}
        loaded = checkpoint.load(str(run.parent), data_dir=None, device=torch.device("cpu"))
        judge = Judge(protocol="full", seen=False, n_negatives=99, metrics=["ndcg"], top_k=[10], per_user=False)
        judging = evaluator(loaded.data, judge)
        at = Shifted(loaded.model.requires_grad_(False).eval())
        clean = judging.evaluate(at, "test").metrics[METRIC]
        print(chosen, f"clean {clean:.4f}", flush=True)
        for surface, per in UNIT.items():
            for name, extra in ATTACKS.items():
                for eps in budgets:
                    config = {"name": name, "surface": surface, "modules": None, "eps": eps, "norm": "l2", "per": per}
                    attack = attacks.build({**config, "relative": "own", "seed": 0, **extra})
                    worse, _ = judging.attack(at, attack, "test", loss("margin"))
                    left = judging.evaluate(worse, "test").metrics[METRIC]
                    yield {**chosen, "surface": surface, "attack": name, "eps": eps, "clean": clean, "attacked": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    asked = parser.parse_args()
    found = pd.DataFrame(rows(asked.sweep, asked.eps))
    found["drop"] = 1 - found["attacked"] / found["clean"]
    found.to_csv(asked.sweep / "robustness.csv", index=False)
    keys = ["model", "defense", "surface", "attack", "eps"]
    table = found.groupby(keys)[["clean", "attacked", "drop"]].agg(["mean", "std"]).round(4)
    print(table.to_string())
    curves = found.sort_values("eps").groupby(["attack", "model", "defense", "seed", "surface"])["attacked"]
    falling = curves.apply(lambda each: each.is_monotonic_decreasing).groupby("attack").agg(["sum", "count"])
    print("curves that fall monotonically in eps:", falling.to_string(), sep="\n")
    wide = found.pivot_table(index=[*keys[:3], "seed", "eps"], columns="attack", values="attacked")
    ordered = (wide["pgd"] <= wide["fgm"]) & (wide["fgm"] <= wide["noise"])
    print(f"pgd <= fgm <= noise in {int(ordered.sum())} of {len(ordered)} cells")
    print(wide[~ordered].round(4).to_string())


if __name__ == "__main__":
    main()
