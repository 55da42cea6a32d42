"""Trackers: what they are told, and what they make of it where their packages are installed."""

import json
import math
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_tasks import DATA, MODEL

from robustbench_rec import launch, tracking
from robustbench_rec.errors import RrecError
from robustbench_rec.trackers import trackers
from robustbench_rec.tracking import Tracker, tracked

WORDS = [*DATA, *MODEL["mf"], "device=cpu", "epochs=3", "batch_size=512", "lr=0.05", "hydra.run.dir=run"]
CONFIGS: dict[str, dict[str, Any]] = {
    "none": {},
    "tensorboard": {},
    "mlflow": {"uri": None, "experiment": "rrec"},
    "wandb": {"project": "rrec", "entity": None, "mode": "offline"},
}


class Diary(Tracker):
    """Writes down what it is told."""

    def __init__(self, config: Any = None, *, fails: str = "") -> None:
        self.said: list[tuple[Any, ...]] = []
        self.fails = fails

    def start(self, out: Path, verb: str, settings: Mapping[str, str]) -> None:
        self.said.append(("start", out.name, verb, settings))

    def note(self, values: Mapping[str, float], step: int) -> None:
        if self.fails == "note":
            raise ConnectionError("the server is away")
        self.said.append(("note", dict(values), step))

    def finish(self, metrics: Mapping[str, float] | None) -> None:
        self.said.append(("finish", metrics))


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Diary:
    found = Diary()
    monkeypatch.setattr(trackers, "build", lambda config: found)
    monkeypatch.chdir(tmp_path)
    return found


def read(path: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(path).read_text())
    return found


def test_a_tracker_is_told_of_settings_epochs_and_results(diary: Diary) -> None:
    assert launch.launch("train", WORDS) == 0
    (_, out, verb, settings), *notes, (_, metrics) = diary.said
    assert (out, verb, settings["model.name"], settings["lr"]) == ("run", "train", "mf", "0.05")
    assert [step for *_, step in notes] == [1, 2, 3]
    history = Path("run/history.csv").read_text().splitlines()
    columns = history[0].split(",")
    for line, (_, values, step) in zip(history[1:], notes, strict=True):
        row = dict(zip(columns, map(float, line.split(",")), strict=True))
        assert row.pop("epoch") == step
        assert values == pytest.approx(row)
    assert metrics == {name: value for name, value in read("run/metrics.json").items() if value is not None}


def test_a_run_that_fails_is_told_too(diary: Diary) -> None:
    assert launch.launch("train", [*WORDS, "lr=1e30", "optimizer=sgd"]) == 1
    assert diary.said[-1] == ("finish", None)


def test_a_tracker_that_fails_does_not_cost_the_run(diary: Diary, caplog: pytest.LogCaptureFixture) -> None:
    diary.fails = "note"
    assert launch.launch("train", WORDS) == 0
    assert [each[0] for each in diary.said] == ["start"]
    assert "the server is away" in Path("run/train.log").read_text()


def test_the_rounds_of_a_run_are_told_apart_and_nobody_is_told_outside(tmp_path: Path) -> None:
    diary = Diary()
    with tracked(diary, tmp_path, "finetune", {}) as results:
        tracking.epoch(tmp_path, {"epoch": 1, "loss": 0.5, "auc": math.nan})
        tracking.epoch(tmp_path / "round-2", {"epoch": 1, "loss": 0.25})
        results({"auc": 0.5, "ri": math.inf})
    tracking.epoch(tmp_path, {"epoch": 2, "loss": 0.1})
    assert diary.said[1:] == [("note", {"loss": 0.5}, 1), ("note", {"round-2/loss": 0.25}, 1), ("finish", {"auc": 0.5})]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RrecError, match=rf"tracker={name} needs the package {name}: pip install .*\[trackers\]"):
        trackers.build({"name": name, **CONFIGS[name]})


def test_the_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    extra = {each.partition(">")[0] for each in project["optional-dependencies"]["trackers"]}
    assert extra == set(trackers.names()) - {"none"}


def test_an_unknown_mode_of_wandb_is_one_line() -> None:
    with pytest.raises(RrecError, match="unknown mode of tracker 'wandb' 'ofline'; did you mean 'offline'"):
        trackers.build({"name": "wandb", **CONFIGS["wandb"], "mode": "ofline"})


@pytest.mark.slow
def test_tensorboard_has_the_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    assert launch.launch("train", [*WORDS, "tracker=tensorboard"]) == 0
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    assert [each.step for each in events.Scalars("epoch/loss")] == [1, 2, 3]
    (value,) = events.Scalars("result/test/ndcg@10")
    assert value.value == pytest.approx(read("run/metrics.json")["test/ndcg@10"])
    assert "model.name" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.slow
def test_mlflow_has_settings_epochs_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    assert launch.launch("train", [*WORDS, "tracker=mlflow", f"tracker.uri='{uri}'"]) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("rrec").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "mf"
    assert run.data.metrics["test/ndcg_10"] == read("run/metrics.json")["test/ndcg@10"]
    assert [each.step for each in client.get_metric_history(run.info.run_id, "epoch/loss")] == [1, 2, 3]


@pytest.mark.slow
def test_wandb_keeps_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    assert launch.launch("train", [*WORDS, "tracker=wandb", "tracker.mode=offline"]) == 0
    (kept,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"epoch/loss" in content
    assert b"test/ndcg@10" in content
