"""RecBole's side: runs in RecBole's environment and imports nothing of robustbench_rec.

python peer.py '{"task": …, "folder": …, "parts": […], …}' result.json
"""

import json
import os
import platform
import resource
import sys
import time
from typing import Any

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.sampler import Sampler
from recbole.utils import get_model, get_trainer, init_logger, init_seed

DATASET = "bench"
METRICS = {"NDCG": "ndcg", "Recall": "recall", "MRR": "mrr", "MAP": "map", "Hit": "hr", "Precision": "precision"}
TRACKS: dict[str, dict[str, Any]] = {  # what differs from full ranking of a given split
    "ranking": {},
    "next item": {
        "benchmark_filename": None,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    },
    "clicks": {
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "labeled"},
    },
}


def epoch(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of training epochs, sampling included, validation not."""
    if len(job["parts"]) == 2:  # RecBole insists on a part to validate with
        job = {**job, "parts": [*job["parts"], job["parts"][-1]]}
    config, dataset = _open(job)
    train, _, _ = data_preparation(config, dataset)
    trainer = _trainer(config, train.dataset)
    seconds = []
    for epoch in range(job["warm_up"] + job["epochs"]):
        start = time.perf_counter()
        trainer._train_epoch(train, epoch)
        seconds.append(time.perf_counter() - start)
    return {"seconds": {"recbole": seconds[job["warm_up"] :]}}


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds and metrics of ranking the catalogue for the users of the last part, with given vectors or untrained."""
    config, dataset = _open(job)
    built = dataset.build()
    trainer = _trainer(config, built[0])
    if not job.get("untrained"):
        _take_vectors(job, dataset, trainer.model)
    start = time.perf_counter()
    sampler = Sampler(job["parts"], built, "uniform").set_phase(job["parts"][-1])
    loader = FullSortEvalDataLoader(config, built[-1], sampler)
    once = time.perf_counter() - start
    seconds, before = [], _peak()
    for _ in range(job["warm_up"] + job["passes"]):
        start = time.perf_counter()
        found = trainer.evaluate(loader, load_best_model=False)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": {"recbole": seconds[job["warm_up"] :]},
        "once": once,
        "peak_mib_before": before,
        "metrics": _named(found),
    }


def implicit_epoch(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of an epoch of implicit's BPR over the same train events, without its check of the result."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    path = os.path.join(job["folder"], DATASET, f"{DATASET}.{job['parts'][0]}.inter")
    users, items = np.loadtxt(path, dtype=np.int64, delimiter="\t", skiprows=1, unpack=True)
    matrix = csr_matrix((np.ones(len(users), np.float32), (users, items)))
    seconds = []
    for count in (job["warm_up"], job["warm_up"] + job["epochs"]):  # the difference leaves out what is done once
        model = BayesianPersonalizedRanking(
            factors=64,
            learning_rate=0.01,
            regularization=0.0,
            iterations=count,
            num_threads=job["threads"],
            verify_negative_samples=True,
            random_state=job["seed"],
        )
        start = time.perf_counter()
        model.fit(matrix, show_progress=False)
        seconds.append(time.perf_counter() - start)
    return {"seconds": {"implicit": [(seconds[1] - seconds[0]) / job["epochs"]]}}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Test metrics of the best state on validation, and the seconds of training and validating."""
    config, dataset = _open(job)
    loaders = data_preparation(config, dataset)
    trainer = _trainer(config, loaders[0].dataset)
    curve: list[tuple[float, float]] = []
    start = time.perf_counter()
    callback = lambda _, score: curve.append((time.perf_counter() - start, score))  # noqa: E731
    trainer.fit(*loaders[:2], saved=True, callback_fn=callback)
    seconds = time.perf_counter() - start
    metrics = _named(trainer.evaluate(loaders[2]))
    return {"seconds": seconds, "epochs": len(curve), "curve": curve, "metrics": metrics}


def _open(job: dict[str, Any]) -> tuple[Any, Any]:
    settings = {
        "data_path": job["folder"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "benchmark_filename": job["parts"],
        "train_batch_size": job["batch_size"],
        "eval_batch_size": job["scores_at_once"],
        "learning_rate": job["lr"],
        "epochs": job.get("epochs", 1),
        "stopping_step": job.get("patience", 1) - 1,  # RecBole stops at one more than this
        "metrics": job.get("metrics", list(METRICS)),
        "topk": job["top_k"],
        "valid_metric": f"NDCG@{job['top_k'][0]}",
        "metric_decimal_place": 10,
        "seed": job["seed"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": os.path.join(job["scratch"], "saved"),
        **({"embedding_size": job["dim"]} if "dim" in job else {}),
        **TRACKS[job.get("track", "ranking")],
        **job.get("settings", {}),
    }
    if job.get("track") == "clicks":
        settings["load_col"] = {"inter": ["user_id", "item_id", "label"], **job["features"]}
    config = Config(model=job.get("model", "BPR"), dataset=DATASET, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    return config, create_dataset(config)


def _take_vectors(job: dict[str, Any], dataset: Any, model: Any) -> None:
    user, item = (np.load(os.path.join(job["folder"], f"{name}.npy")) for name in ("user", "item"))
    with torch.no_grad():
        for table, field, vectors in (
            (model.user_embedding, dataset.uid_field, user),
            (model.item_embedding, dataset.iid_field, item),
        ):
            tokens = dataset.id2token(field, np.arange(1, dataset.num(field))).astype(int)  # 0 is padding
            assert len(tokens) == len(vectors)
            table.weight[1:] = torch.from_numpy(vectors[tokens])


def _trainer(config: Any, dataset: Any) -> Any:
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def _named(found: dict[str, float]) -> dict[str, float]:
    """RecBole's metrics under our names."""
    names = {name.lower(): ours for name, ours in METRICS.items()}
    split = {key: key.partition("@") for key in found}
    return {f"{names.get(split[key][0], key)}{''.join(split[key][1:])}": float(found[key]) for key in found}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    job, result = json.loads(sys.argv[1]), os.path.abspath(sys.argv[2])
    del sys.argv[1:]  # RecBole reads the command line too
    torch.set_num_threads(job["threads"])
    os.chdir(job["scratch"])  # and writes its logs where it stands
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its own checkpoints are pickles of its config
    found = {"epoch": epoch, "evaluate": evaluate, "implicit_epoch": implicit_epoch, "train": train}[job["task"]](job)
    found["peak_mib"] = _peak()
    found["versions"] = {
        "recbole": recbole.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    with open(result, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
