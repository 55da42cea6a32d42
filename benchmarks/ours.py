"""Our side, and the bare loops that are its floors.

python ours.py '{"task": …, "overrides": [key=value, …], …}' result.json
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import hydra
import numpy as np
import pandas as pd
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from robustbench_rec import __version__, checkpoint, optimizers
from robustbench_rec.batch import Batch
from robustbench_rec.composing import conf_dir
from robustbench_rec.config import ROOTS, Train
from robustbench_rec.data import Data
from robustbench_rec.defenses import defended
from robustbench_rec.evaluation import evaluator
from robustbench_rec.evaluation.base import CELLS
from robustbench_rec.evaluation.ranking import Full
from robustbench_rec.hardware import setup
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, start_batch, start_epoch
from robustbench_rec.prepare import load
from robustbench_rec.sampling import Events, Sampler, epoch_generator, sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import Trainer

DATASET = "bench"
OPS = 12  # operators that a profile names
LATE = 100  # an epoch in which every defence that begins later has begun

Result = dict[str, Any]


def export(job: Result) -> Result:
    """The split as RecBole's benchmark files, ids being our indices; parts without events are left out.

    Where clicks are judged, events have labels, and features stand in files beside; else, where events have an order,
    `timestamp` is the place in it, for RecBole to split off the last events itself.
    """
    cfg, data = _open(job)
    folder = Path(job["folder"]) / DATASET
    folder.mkdir()
    parts = [part for part in ("train", "valid", "test") if len(data.part(part))]
    whole = []
    for part in parts:
        events = data.part(part)
        columns = {"user_id:token": events.users.numpy(), "item_id:token": events.items.numpy()}
        if cfg.protocol == "clicks":
            columns["label:float"] = events.values.numpy()
        frame = pd.DataFrame(columns)
        frame.to_csv(folder / f"{DATASET}.{part}.inter", sep="\t", index=False)
        whole.append(frame)
    if data.ordered:
        joined = pd.concat(whole, ignore_index=True)  # within a user train comes before valid, and valid before test
        joined["timestamp:float"] = joined.groupby("user_id:token").cumcount()
        joined.to_csv(folder / f"{DATASET}.inter", sep="\t", index=False)
    return {
        "parts": parts,
        "events": {part: len(data.part(part)) for part in parts},
        "users": data.n_users,
        "items": data.n_items,
        "features": _export_features(data, folder) if cfg.protocol == "clicks" else {},
        "scores_at_once": CELLS,
    }


def latest(job: Result) -> Result:
    """The last events of each user as a table: the same protocol on data that RecBole gets through in minutes."""
    _, data = _open(job)
    parts = [data.train, data.valid, data.test]
    frame = pd.DataFrame({name: torch.cat([getattr(each, f"{name}s") for each in parts]) for name in ("user", "item")})
    frame["time"] = frame.groupby("user").cumcount()
    path = Path(job["folder"]) / "latest.csv"
    frame.groupby("user").tail(job["count"]).to_csv(path, index=False)
    return {"path": str(path)}


def _export_features(data: Data, folder: Path) -> dict[str, list[str]]:
    """`bench.user` and `bench.item`: ages and years as numbers, genres as lists of tokens, the rest as tokens."""
    told = {}
    for kind, table in (("user", data.user_table), ("item", data.item_table)):
        if table is None:
            continue
        columns = {f"{kind}_id:token": range(len(table))}
        for name in table.columns.difference(["title", "movie_title", "zip_code"], sort=False):
            values = table[name]
            if pd.api.types.is_numeric_dtype(values):
                columns[f"{name}:float"] = values.fillna(0)
            else:
                several = values.dropna().str.contains(" ").any()
                columns[f"{name}:{'token_seq' if several else 'token'}"] = values.fillna("unknown")
        pd.DataFrame(columns).to_csv(folder / f"{DATASET}.{kind}", sep="\t", index=False)
        told[kind] = [each.partition(":")[0] for each in columns]
    return told


def factorise(job: Result) -> Result:
    """User and item vectors from the truncated SVD of the train matrix: the shape of a trained MF, in seconds."""
    cfg, data = _open(job)
    events = data.train
    shape = (data.n_users, data.n_items)
    matrix = torch.sparse_coo_tensor(torch.stack([events.users, events.items]), torch.ones(len(events)), shape)
    torch.manual_seed(cfg.seed)
    left, values, right = torch.svd_lowrank(matrix.coalesce(), q=cfg.model["dim"], niter=4)
    _save_vectors(job, left * values.sqrt(), right * values.sqrt())
    return {}


def take(job: Result) -> Result:
    """User and item vectors of a trained MF."""
    tensors = load_file(Path(job["ckpt"]) / checkpoint.TENSORS)
    _save_vectors(job, tensors["user.weight"], tensors["item.weight"])
    return {}


def epoch(job: Result) -> Result:
    """Seconds of training epochs by the trainer, sampling included, validation not."""
    cfg, data = _open(job)
    trainer = _trainer(job, cfg, data)
    trainer.run()
    return {"seconds": {job["side"]: [row["train_seconds"] for row in trainer.history[job["warm_up"] :]]}}


def mf_epoch_bare(job: Result) -> Result:
    """The same model, loss and optimiser over ready batches: no sampler, no framework."""
    cfg, data = _open(job)
    batches = list(Events(data, batch_size=cfg.batch_size, negatives=1).epoch(epoch_generator(cfg.seed, 0, "batches")))
    user, item = nn.Embedding(data.n_users, cfg.model["dim"]), nn.Embedding(data.n_items, cfg.model["dim"])
    for table in (user, item):
        nn.init.xavier_normal_(table.weight)
    optimizer = torch.optim.Adam([user.weight, item.weight], lr=cfg.lr, fused=True)
    triples = [(batch.users, *_columns(batch)) for batch in batches]

    def epoch() -> None:
        for users, positives, negatives in triples:
            optimizer.zero_grad()
            margin = (user(users) * (item(positives) - item(negatives))).sum(1)
            (-logsigmoid(margin).mean()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return {"seconds": {"bare": _times(epoch, job["warm_up"], job["epochs"])}}


def evaluate(job: Result) -> Result:
    """Seconds and metrics of the evaluator on the test part, with given vectors or an untrained model."""
    cfg, data = _open(job)
    judging, model = evaluator(data, cfg), _judged(job, cfg, data)
    start = time.perf_counter()
    judging.portions("test")
    once, before = time.perf_counter() - start, _peak()
    metrics: dict[str, float] = {}

    def judge() -> None:
        metrics.update(judging.evaluate(Shifted(model), "test").metrics)

    seconds = _times(judge, job["warm_up"], job["passes"])
    return {"seconds": {job.get("side", "rrec"): seconds}, "once": once, "peak_mib_before": before, "metrics": metrics}


def evaluate_bare(job: Result) -> Result:
    """Propagation where the model has one, matmul, mask and top-k over the same portions: no metrics, no checks."""
    cfg, data = _open(job)
    portions = Full(data, cfg).portions("test")
    model = None if "folder" in job else _judged(job, cfg, data).eval()
    before = _peak()

    def rank() -> None:
        user, item = _vectors(job) if model is None else model.encode()
        for each in portions:
            scores = user[each.users] @ item.T
            scores[each.excluded] = float("-inf")
            scores.topk(max(cfg.top_k), 1)

    with torch.no_grad():
        seconds = _times(rank, job["warm_up"], job["passes"])
    return {"seconds": {"bare": seconds}, "peak_mib_before": before}


def evaluate_ranx(job: Result) -> Result:
    """The bare ranking, judged by ranx."""
    import ranx

    cfg, data = _open(job)
    (chunk,) = Full(data, cfg).portions("test")
    user, item = _vectors(job)
    rows, columns = (each.numpy() for each in chunk.relevant)
    relevant = [
        np.column_stack([each, np.ones(len(each))])
        for each in np.split(columns, np.flatnonzero(np.diff(rows)) + 1)  # rows are in order, and none is empty
    ]
    theirs = {"hr": "hit_rate"}
    asked = {f"{theirs.get(each, each)}@{k}": f"{each}@{k}" for each in cfg.metrics or () for k in cfg.top_k}
    metrics: dict[str, float] = {}

    def judge() -> None:
        scores = user[chunk.users] @ item.T
        scores[chunk.excluded] = float("-inf")
        best = scores.topk(max(cfg.top_k), 1)
        run = torch.stack([best.indices.double(), best.values.double()], 2).numpy()
        found = ranx.evaluate(relevant, list(run), list(asked))
        metrics.update({name: float(found[each]) for each, name in asked.items()})

    seconds = _times(judge, job["warm_up"], job["passes"])
    return {"seconds": {"ranx": seconds}, "metrics": metrics}


def steps(job: Result) -> Result:
    """Seconds of a training step under each defence, taken in turns; random defences draw anew each turn."""
    cfg, data = _open(job)
    batches = list(Events(data, batch_size=cfg.batch_size, negatives=1).epoch(epoch_generator(cfg.seed, 0, "batches")))
    turns: dict[str, Callable[[int], None]] = {each: _turn(job, each, batches) for each in job["defenses"]}
    seconds: dict[str, list[float]] = {each: [] for each in turns}
    for number in range(job["warm_up"] + job["turns"]):
        for each, turn in turns.items():
            start = time.perf_counter()
            turn(number)
            seconds[each].append((time.perf_counter() - start) / job["steps"])
    return {"seconds": {each: times[job["warm_up"] :] for each, times in seconds.items()}}


def profile_epoch(job: Result) -> Result:
    """Where a training epoch goes, by part on the clock and by operator under the profiler."""
    cfg, data = _open(job)
    clock = Clock()
    trainer = _trainer(job, cfg, data, clock)
    hooks = [register_optimizer_step_pre_hook(clock.on_step), register_optimizer_step_post_hook(clock.on_stepped)]
    trainer.run()
    for hook in hooks:
        hook.remove()
    total = sum(row["train_seconds"] for row in trainer.history)
    parts = {**clock.seconds, "rest": total - sum(clock.seconds.values())}
    plain = _trainer(job, cfg, data)
    return {
        "seconds": {part: [value / len(trainer.history)] for part, value in parts.items()},
        "ops": _ops(plain.run, job["epochs"] + job["warm_up"]),
    }


def profile_evaluate(job: Result) -> Result:
    """Where an evaluation goes, by operator."""
    cfg, data = _open(job)
    judging, model = evaluator(data, cfg), _judged(job, cfg, data)
    judging.evaluate(Shifted(model), "test")
    return {"ops": _ops(lambda: judging.evaluate(Shifted(model), "test"), 1)}


def profile_step(job: Result) -> Result:
    """Where a step under a defence goes, by operator."""
    cfg, data = _open(job)
    batches = list(Events(data, batch_size=cfg.batch_size, negatives=1).epoch(epoch_generator(cfg.seed, 0, "batches")))
    turn = _turn(job, job["defense"], batches)
    turn(0)
    return {"ops": _ops(lambda: turn(1), job["steps"])}


@dataclass
class Clock:
    """Seconds of the parts of a training step; what lies between the loss and the optimiser is the backward pass."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("sampling", "forward", "backward", "optimiser"), 0.0)
    )
    since: float | None = None

    def on_step(self, *_: Any) -> None:
        if self.since is not None:
            now = time.perf_counter()
            self.seconds["backward"] += now - self.since
            self.since = now

    def on_stepped(self, *_: Any) -> None:
        if self.since is not None:  # else a step of an auxiliary phase, whose loss was not timed
            self.seconds["optimiser"] += time.perf_counter() - self.since
            self.since = None


class TimedSampler(Sampler):
    def __init__(self, inner: Sampler, clock: Clock) -> None:
        super().__init__(inner.data, batch_size=inner.batch_size)
        self.inner, self.clock = inner, clock

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, generator: torch.Generator) -> Iterator[Batch]:
        batches = self.inner.epoch(generator)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.clock.seconds["sampling"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class TimedObjective(Objective):
    def __init__(self, inner: Objective, clock: Clock) -> None:
        super().__init__()
        self.inner, self.clock = inner, clock

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        start = time.perf_counter()
        value: Tensor = self.inner(at, batch)
        self.clock.since = time.perf_counter()
        self.clock.seconds["forward"] += self.clock.since - start
        return value


def compose(overrides: list[str]) -> Train:
    for name, schema in ROOTS.items():
        ConfigStore.instance().store(name, schema, group="schema", package="_global_")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = OmegaConf.to_object(hydra.compose("train", overrides))
    assert isinstance(cfg, Train)
    return cfg


def _open(job: Result) -> tuple[Train, Data]:
    cfg = compose([*job["overrides"], "device=cpu", f"threads={job['threads']}"])
    return cfg, load(cfg, cfg.data_dir).to(setup(cfg))


def _model(cfg: Train, data: Data) -> RecModel:
    torch.manual_seed(cfg.seed)
    return checkpoint.build(cfg.model, data)


def _trainer(job: Result, cfg: Train, data: Data, clock: Clock | None = None) -> Trainer:
    """The trainer of `rrec train`, for a number of epochs and without validation."""
    cfg.epochs = cfg.patience = job["warm_up"] + job["epochs"]
    model = _model(cfg, data)
    name = cfg.loss or model.loss
    objective: Objective = Plain(loss(name))
    shown = sampler(data, model, loss=name, batch_size=cfg.batch_size, negatives=cfg.negatives)
    return Trainer(
        model=model,
        objective=objective if clock is None else TimedObjective(objective, clock),
        sampler=shown if clock is None else TimedSampler(shown, clock),
        validate=lambda: {"ndcg@10": 0.0},
        fit=cfg,
        monitor="ndcg@10",
        smaller=False,
        seed=cfg.seed,
        precision=cfg.precision,
        about={},
        out=Path(mkdtemp(dir=job["scratch"])),  # a folder of its own: a trainer resumes what it finds in one
    )


def _turn(job: Result, defense: str, batches: list[Batch]) -> Callable[[int], None]:
    """Some training steps of a model of its own under a defence, as the trainer takes them."""
    cfg, data = _open({**job, "overrides": [*job["overrides"], f"defense={defense}"]})
    model = _model(cfg, data).train()
    objective = defended(cfg.defense, Plain(loss(cfg.loss or model.loss)), model)
    optimizer = optimizers.optimizer(model, cfg)

    def turn(number: int) -> None:
        start_epoch(objective, LATE + number, epoch_generator(cfg.seed, number, "objective"))
        for index in range(number * job["steps"], (number + 1) * job["steps"]):
            start_batch(objective)
            value = objective(Shifted(model), batches[index % len(batches)])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return turn


def _columns(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.items is not None
    return batch.items[:, 0].contiguous(), batch.items[:, 1].contiguous()


def _judged(job: Result, cfg: Train, data: Data) -> RecModel:
    model = _model(cfg, data)
    if "folder" in job:
        user, item = _vectors(job)
        model.load_state_dict({"user.weight": user, "item.weight": item})
    return model


def _save_vectors(job: Result, user: Tensor, item: Tensor) -> None:
    for name, table in (("user", user), ("item", item)):
        np.save(Path(job["folder"]) / f"{name}.npy", table.contiguous().numpy())


def _vectors(job: Result) -> tuple[Tensor, Tensor]:
    user, item = (torch.from_numpy(np.load(Path(job["folder"]) / f"{name}.npy")) for name in ("user", "item"))
    return user, item


def _times(run: Callable[[], object], warm_up: int, count: int) -> list[float]:
    seconds = []
    for _ in range(warm_up + count):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def _ops(run: Callable[[], object], count: int) -> list[Result]:
    """The dearest operators: own milliseconds and calls per unit of `count`, and the share of all operators."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    events = sorted(record.key_averages(), key=lambda each: -each.self_cpu_time_total)
    total = sum(each.self_cpu_time_total for each in events)
    return [
        {
            "op": each.key,
            "ms": each.self_cpu_time_total / 1000 / count,
            "calls": each.count / count,
            "share": each.self_cpu_time_total / total,
        }
        for each in events[:OPS]
    ]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


TASKS: dict[str, Callable[[Result], Result]] = {
    each.__name__: each
    for each in (
        export,
        latest,
        factorise,
        take,
        epoch,
        mf_epoch_bare,
        evaluate,
        evaluate_bare,
        evaluate_ranx,
        steps,
        profile_epoch,
        profile_evaluate,
        profile_step,
    )
}


def main() -> None:
    job, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    found = TASKS[job["task"]](job)
    found["peak_mib"] = _peak()
    found["versions"] = {
        "robustbench_rec": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
