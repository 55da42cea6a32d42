"""The verbs without the command line: what they write, and how they follow one another."""

import csv
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import STANDINS, build, buildable, compose, pretrained, surfaces
from safetensors.torch import load_file
from torch import Tensor

from robustbench_rec import checkpoint, composing, progress, trainer
from robustbench_rec.adapters import plain
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import by_user
from robustbench_rec.evaluation.worst import attacked
from robustbench_rec.metrics.agreement import overlap
from robustbench_rec.models import models
from robustbench_rec.tasks import attack, distill, finetune, gate, train, trials
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.tasks.train import body_digest
from robustbench_rec.teacher import Ensemble, Taught

DATA = (
    "dataset=synthetic",
    "dataset.n_users=150",
    "dataset.n_items=60",
    "dataset.events_per_user=16",
    "dataset.n_intents=4",
    "dataset.n_entities=12",
)
JUDGED = ("device=cpu", "top_k=[5,10]")
TRAINED = (*DATA, *JUDGED, "epochs=15", "batch_size=128", "lr=0.02", "monitor=ndcg@10")
MODEL = {
    "mf": ("model=mf", "model.dim=8"),
    "kgat": ("model=kgat", "model.dim=8", "model.layers=[6,4]", "model.relation_dim=4"),
    "pop": ("model=pop",),
}
QUALITIES = ("ndcg", "recall", "precision", "hr", "mrr", "map", "coverage")
DESCRIPTIONS = ("gini", "entropy", "arp", "aplt")
VERBS = {"train": train, "attack": attack, "eval": evaluate, "distill": distill, "finetune": finetune, "gate": gate}


def run(verb: str, out: Path, *overrides: str) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    words = {each.partition("=")[0]: each for each in overrides}  # the later word for a key counts
    typed = composing.typed(compose(verb, *words.values()), verb)
    metrics: dict[str, float] = VERBS[verb].run(typed, out)
    return metrics


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, float]]]:
    found = {}
    for name, words in MODEL.items():
        out = tmp_path_factory.mktemp(name)
        found[name] = out, run("train", out, *TRAINED, *words)
    return found


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, float]]]:
    found = {}
    for name in ("sasrec", "gru4rec"):
        out = tmp_path_factory.mktemp(name)
        found[name] = out, run("train", out, *TRAINED, f"model={name}", "model.dim=8", "epochs=2")
    return found


Runs = dict[str, tuple[Path, dict[str, float]]]


def loaded(path: Path) -> checkpoint.Loaded:
    return checkpoint.load(str(path), data_dir=None, device=torch.device("cpu"))


def asked(run: checkpoint.Loaded) -> Tensor:
    """What a model says of all its users and items."""
    return Taught.of(run.model, run.data).scores(torch.arange(run.data.n_users), None)


def _until(last: int) -> Callable[..., dict[str, float]]:
    """An epoch of the trainer that is interrupted after so many."""
    original = trainer.Trainer._epoch

    def epoch(self: trainer.Trainer, number: int, bar: Any) -> dict[str, float]:
        if number == last:
            raise KeyboardInterrupt
        return original(self, number, bar)

    return epoch


class TestTrain:
    @pytest.mark.parametrize("name", [name for name in models if buildable(name)])
    def test_every_model_trains_and_is_attacked_on_every_surface(self, tmp_path: Path, name: str) -> None:
        rated = name == "biased_mf"
        words: list[str] = [
            *DATA,
            f"model={name}",
            "device=cpu",
            f"protocol={'ratings' if rated else 'full'}",
            "epochs=1",
        ]
        if name in STANDINS:
            words = [*words, f"model.encoder={pretrained(STANDINS[name])}", "dataset.n_users=15", "dataset.n_items=30"]
        metrics = run("train", tmp_path / "run", *words)
        assert metrics["test/rmse" if rated else "test/ndcg@10"] >= 0
        for kind in surfaces(build(name)):
            judged = (
                ["protocol=ratings"] if rated else ["protocol=sampled", "n_negatives=5", "top_k=[5]", "loss=softmax"]
            )
            attacked = [f"ckpt='{tmp_path / 'run'}'", "attack=fgm", f"attack.surface={kind}", *judged]
            found = run("attack", tmp_path / kind, *attacked, "device=cpu")
            assert found["budget/max_norm"] > 0, kind

    def test_what_an_earlier_run_left_does_not_count_as_a_new_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = (*TRAINED, *MODEL["mf"], "trajectory=1")
        run("train", tmp_path, *words, "epochs=4")
        (tmp_path / "metrics.json").write_text("{}")
        monkeypatch.setattr(trainer.Trainer, "_epoch", _until(2))
        with pytest.raises(KeyboardInterrupt):
            run("train", tmp_path, *words, "epochs=4")
        assert checkpoint.epochs(str(tmp_path)) == [1, 2]
        assert {each.name for each in tmp_path.glob("m*")} == set()
        assert read(tmp_path / "run.json")["status"] == "failed"

    @pytest.mark.parametrize("name", MODEL)
    def test_the_run_directory_has_what_other_verbs_need(self, runs: Runs, name: str) -> None:
        out, metrics = runs[name]
        files = {each.name for each in out.iterdir()}
        assert files == {"run.json", "model.safetensors", "model.json", "by_user.safetensors"} | (
            {"history.csv"} if name != "pop" else set()
        )
        record = read(out / "run.json")
        assert record["status"] == "done"
        assert record["task"] == "train"
        assert record["seeds"] == {"seed": 0, "split.seed": 0, "noise.seed": None}
        assert record["fingerprint"] == read(out / "model.json")["fingerprint"]
        assert {"versions", "device", "threads", "start", "end", "seconds", "peak_memory_mib"} <= record.keys()
        assert set(metrics) == {
            f"{part}/{metric}"
            for part in ("valid", "test")
            for metric in (
                "auc",
                *(f"{m}@{k}" for m in (*QUALITIES, *DESCRIPTIONS) for k in (5, 10)),
            )
        }
        unbounded = ("entropy", "arp")
        assert all(0 <= value <= 1 or name.split("/")[1].startswith(unbounded) for name, value in metrics.items())

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    def test_a_trained_model_beats_chance_by_far(self, runs: Runs, name: str) -> None:
        _, metrics = runs[name]
        assert metrics["valid/auc"] > 0.6
        assert metrics["test/auc"] > 0.6

    def test_the_best_epoch_is_what_is_reported(self, runs: Runs) -> None:
        out, metrics = runs["mf"]
        with open(out / "history.csv", newline="") as file:
            best = max(float(row["ndcg@10"]) for row in csv.DictReader(file))
        assert metrics["valid/ndcg@10"] == pytest.approx(best, abs=1e-12)

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    def test_the_same_command_gives_the_same_bits(self, runs: Runs, tmp_path: Path, name: str) -> None:
        out, metrics = runs[name]
        torch.rand(7)  # whatever the process did before
        assert run("train", tmp_path, *TRAINED, *MODEL[name]) == metrics
        assert (tmp_path / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()

    def test_the_seeds_are_three_keys(self, runs: Runs, tmp_path: Path) -> None:
        out, metrics = runs["mf"]
        other = run("train", tmp_path / "seed", *TRAINED, *MODEL["mf"], "seed=1")
        assert other != metrics
        assert read(tmp_path / "seed" / "run.json")["fingerprint"] == read(out / "run.json")["fingerprint"]
        run("train", tmp_path / "split", *TRAINED, *MODEL["mf"], "split.seed=1", "epochs=1")
        assert read(tmp_path / "split" / "run.json")["fingerprint"] != read(out / "run.json")["fingerprint"]

    def test_per_user_values_are_kept_with_original_ids(self, runs: Runs, tmp_path: Path) -> None:
        metrics = run("train", tmp_path, *TRAINED, *MODEL["pop"], "per_user=true")
        with open(tmp_path / "per_user-test.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(row["user"].startswith("u") for row in rows)
        assert len({row["user"] for row in rows}) == len(rows)
        mean = sum(float(row["ndcg@10"]) for row in rows) / len(rows)
        assert metrics["test/ndcg@10"] == pytest.approx(mean)

    @pytest.mark.parametrize("verb", ["train", "eval", "attack"])
    def test_every_run_keeps_the_watched_metric_of_every_user(self, runs: Runs, tmp_path: Path, verb: str) -> None:
        own = (*TRAINED, *MODEL["mf"]) if verb == "train" else (*JUDGED, f"ckpt='{runs['mf'][0]}'")
        metrics = run(verb, tmp_path, *own, "per_user=true")
        found = by_user.read(tmp_path)
        again = by_user.read(runs["mf"][0])
        assert found is not None
        assert again is not None
        assert found.who == again.who
        sides = {"train": ("valid", "test"), "eval": ("test",), "attack": ("clean", "attacked")}[verb]
        assert set(found.values) == {f"{side}/ndcg@10" for side in sides}
        for side in sides:
            values = found.values[f"{side}/ndcg@10"]
            assert values.nanmean().item() == pytest.approx(metrics[f"{side}/ndcg@10"])
            table = pd.read_csv(tmp_path / f"per_user-{side}.csv")
            assert values[~values.isnan()].tolist() == pytest.approx(table["ndcg@10"].tolist())
            assert len(values) == len(again.values["test/ndcg@10"]) >= len(table)

    def test_a_metric_that_is_no_mean_over_users_is_kept_of_none(self, tmp_path: Path) -> None:
        words = ("protocol=ratings", "monitor=rmse", "epochs=1")
        assert run("train", tmp_path, *TRAINED, "model=biased_mf", *words)["test/rmse"] > 0
        assert by_user.read(tmp_path) is None

    def test_a_run_that_fails_says_so_in_its_record(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="NaN or infinite"):
            run("train", tmp_path, *TRAINED, *MODEL["mf"], "optimizer=sgd", "lr=1e30")
        record = read(tmp_path / "run.json")
        assert record["status"] == "failed"
        assert "NaN or infinite" in record["error"]
        assert not (tmp_path / "model.safetensors").exists()

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("loss=brp", "unknown loss 'brp'; did you mean 'bpr'"),
            ("loss=margin", "unknown loss 'margin' .choices: bce, bpr, mse, softmax, squared_hinge"),
            ("monitor=ndcg@7", "unknown monitor 'ndcg@7'"),
            ("monitor=coverage", "unknown monitor 'coverage'"),
            ("batch_size=0", "batch_size=0"),
            ("negatives=0", "negatives=0"),
            ("epochs=0", "epochs=0"),
            ("lr=-1", "lr=-1"),
            ("optimizer=adan", "unknown optimizer 'adan'"),
            ("precision=fp8", "unknown precision 'fp8'"),
            ("threads=-1", "threads=-1"),
            ("seed=-1", "seed=-1"),
            ("device=tpu", "tpu"),
            ("device=cuda:99", "cuda"),
            ("protocol=sampled", "n_negatives=99"),
            ("protocol=ratings", "protocol=ratings judges ratings, and loss=bpr with negatives=1 learns none"),
            ("decay_after=2", "decay_after=2.0"),
            ("top_k=[61]", "top_k=61"),
            ("model.dim=0", "dim=0"),
            ("dataset.n_users=0", "n_users"),
        ],
    )
    def test_what_makes_no_sense_is_one_line_and_nothing_is_written(
        self, tmp_path: Path, override: str, message: str
    ) -> None:
        with pytest.raises(RrecError, match=message) as caught:
            run("train", tmp_path / "out", *TRAINED, *MODEL["mf"], override)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "out").iterdir())

    @pytest.mark.parametrize("defense", ["rawp", "awp", "apr", "at"])
    def test_defences_refuse_a_model_that_has_nothing_to_defend(self, tmp_path: Path, defense: str) -> None:
        with pytest.raises(RrecError, match=f"defense={defense}: model=pop is computed, and a defence is a way of"):
            run("train", tmp_path, *TRAINED, *MODEL["pop"], f"defense={defense}")


class TestEval:
    @pytest.mark.parametrize("name", MODEL)
    def test_it_agrees_with_what_training_reported(self, runs: Runs, tmp_path: Path, name: str) -> None:
        out, metrics = runs[name]
        for part in ("valid", "test"):
            again = run("eval", tmp_path / part, f"ckpt='{out}'", f"part={part}", *JUDGED)
            assert again == {key: value for key, value in metrics.items() if key.startswith(part)}

    def test_no_model_differs_from_itself_in_another_precision(self, runs: Runs, tmp_path: Path) -> None:
        out = runs["mf"][0]
        found = run("eval", tmp_path, f"ckpt='{out}'", f"baseline='{out}'", *JUDGED, "precision=bf16")
        differences = [value for name, value in found.items() if name.split("/")[:-1] == ["test", "difference"]]
        assert len(differences) > 5
        assert set(differences) == {0.0}

    def test_another_protocol_and_other_metrics_can_be_asked_for(self, runs: Runs, tmp_path: Path) -> None:
        out, _ = runs["mf"]
        found = run("eval", tmp_path, f"ckpt='{out}'", *JUDGED, "protocol=sampled", "n_negatives=9", "metrics=[hr]")
        assert set(found) == {"test/hr@5", "test/hr@10"}
        assert found["test/hr@10"] == 1.0  # ten candidates

    def test_what_is_not_there_is_one_line(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="unknown part 'train'"):
            run("eval", tmp_path / "a", f"ckpt='{runs['mf'][0]}'", *JUDGED, "part=train")
        with pytest.raises(RrecError, match="no model.safetensors there"):
            run("eval", tmp_path / "b", f"ckpt='{tmp_path}'", *JUDGED)
        assert not list((tmp_path / "a").iterdir())


class TestAttack:
    def attacked(self, runs: Runs, out: Path, name: str, *overrides: str) -> dict[str, float]:
        return run("attack", out, f"ckpt='{runs[name][0]}'", *JUDGED, *overrides)

    def test_a_score_above_0_is_taken_for_no_rating(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="labels=own with protocol=ratings: .* labels=true") as caught:
            run("attack", tmp_path, f"ckpt='{runs['mf'][0]}'", "protocol=ratings", "labels=own", "device=cpu")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("goal", ["promote", "demote"])
    def test_a_goal_that_no_label_leads_to_has_no_labels_of_the_model(
        self, runs: Runs, tmp_path: Path, goal: str
    ) -> None:
        with pytest.raises(RrecError, match=f"labels=own with goal={goal}: .* labels=true"):
            self.attacked(runs, tmp_path, "mf", f"goal={goal}", "labels=own")

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    @pytest.mark.parametrize("kind", ["embedding", "weight"])
    def test_it_reports_clean_attacked_drop_and_budget(self, runs: Runs, tmp_path: Path, name: str, kind: str) -> None:
        found = self.attacked(runs, tmp_path, name, "eps=0.3", f"attack.surface={kind}")
        for metric, clean in runs[name][1].items():
            part, _, key = metric.partition("/")
            if part == "test":
                assert found[f"clean/{key}"] == pytest.approx(clean, abs=1e-12)
                if key.startswith(DESCRIPTIONS):
                    assert found[f"rise/{key}"] == pytest.approx(found[f"attacked/{key}"] - clean)
                    continue
                expected = (clean - found[f"attacked/{key}"]) / clean
                assert found[f"drop/{key}"] == pytest.approx(expected)
        assert found["drop/ndcg@10"] > 0
        assert found["budget/max_relative"] == pytest.approx(0.3, rel=1e-4)
        assert read(tmp_path / "run.json")["task"] == "attack"

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    @pytest.mark.parametrize("kind", ["embedding", "weight"])
    def test_more_budget_and_better_attacks_hurt_more(self, runs: Runs, tmp_path: Path, name: str, kind: str) -> None:
        curve = [
            self.attacked(runs, tmp_path / str(eps), name, f"eps={eps}", f"attack.surface={kind}")["attacked/ndcg@10"]
            for eps in (0, 0.1, 0.3, 1.0)
        ]
        assert curve[0] == runs[name][1]["test/ndcg@10"]
        assert all(more <= less + 0.01 for less, more in pairwise(curve))
        assert curve[3] < 0.5 * curve[0]
        found = {
            attack: self.attacked(
                runs, tmp_path / attack, name, f"attack={attack}", "eps=0.3", f"attack.surface={kind}"
            )
            for attack in ("noise", "fgm", "pgd")
        }
        pgd, fgm, noise = (found[attack]["attacked/ndcg@10"] for attack in ("pgd", "fgm", "noise"))
        assert pgd <= fgm + 0.01
        assert fgm < noise

    def test_a_large_budget_leaves_nothing(self, runs: Runs, tmp_path: Path) -> None:
        found = self.attacked(runs, tmp_path, "mf", "eps=5", "attack.steps=40")
        assert found["attacked/hr@5"] < 0.02

    def test_the_checkpoint_is_left_alone(self, runs: Runs, tmp_path: Path) -> None:
        before = {each.name: each.read_bytes() for each in runs["kgat"][0].iterdir()}
        self.attacked(runs, tmp_path, "kgat", "eps=0.5", "attack.surface=activation")
        assert {each.name: each.read_bytes() for each in runs["kgat"][0].iterdir()} == before
        assert {each.name for each in tmp_path.iterdir()} == {"run.json", "by_user.safetensors"}

    def test_it_is_repeatable(self, runs: Runs, tmp_path: Path) -> None:
        words = ("attack.random_start=true", "attack.restarts=2", "eps=0.2")
        one = self.attacked(runs, tmp_path / "1", "kgat", *words)
        assert one == self.attacked(runs, tmp_path / "2", "kgat", *words)
        assert one != self.attacked(runs, tmp_path / "3", "kgat", *words, "attack.seed=1")

    def test_named_modules_alone_can_be_attacked(self, runs: Runs, tmp_path: Path) -> None:
        one = self.attacked(runs, tmp_path / "1", "mf", "attack.modules=[user]", "eps=0.3")
        both = self.attacked(runs, tmp_path / "2", "mf", "eps=0.3")
        assert both["attacked/ndcg@10"] < one["attacked/ndcg@10"] <= one["clean/ndcg@10"]

    @pytest.mark.parametrize(
        ("k", "told"), [(5, "the first 5; goal.k=10 for all that are judged"), (10, "the first 10")]
    )
    def test_the_places_that_it_is_about_are_told(
        self, runs: Runs, tmp_path: Path, k: int, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.attacked(runs, tmp_path, "mf", "eps=0.1", f"goal.k={k}", "top_k=[5,10]")
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"places {told}" in shown
        assert ("for all that" in shown) is (k == 5)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["attack=square", "attack.queries=7"], {"budget": "l2 ≤ 0.1 × own norm, each row; 7 queries"}),
            (["attack=simba", "attack.queries=3"], {"budget": "l2 ≤ 0.1 × own norm, each row; 3 queries"}),
            (["attack=fgm"], {"scope": "all users at once"}),
            (["attack=fgm", "attack.scope=user"], {"scope": "each user by itself"}),
            (
                ["attack=fgm", "attack.scope=user", "protocol=sampled", "n_negatives=19"],
                {"scope": "each event by itself"},  # users have several
            ),
        ],
    )
    def test_a_threat_says_what_was_settled(
        self, runs: Runs, tmp_path: Path, words: list[str], told: dict[str, str]
    ) -> None:
        self.attacked(runs, tmp_path, "mf", *words)
        assert read(tmp_path / "run.json")["threat"].items() >= told.items()

    @pytest.mark.parametrize(
        "word", ["attack=fgm", "goal=demote", "eps=0.2", "loss=softmax", "labels=own"], ids=lambda each: each
    )
    def test_what_a_poison_does_not_read_is_refused(self, runs: Runs, tmp_path: Path, word: str) -> None:
        with pytest.raises(RrecError, match=f"{word} says nothing with a poison"):
            self.attacked(runs, tmp_path, "mf", "poison=random", word)

    def test_more_targets_than_places_are_worth_a_warning(
        self, runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.attacked(runs, tmp_path, "mf", "attack=fgm", "goal=promote", "goal.k=2", "goal.count=3")
        assert "goal.k=2: 3 target items never are in it all at once" in caplog.text

    ENSEMBLE = ("attack=rank_autoattack", "attack.steps=4", "attack.queries=4", "attack.rivals=1", "eps=0.2")

    def test_an_ensemble_is_at_least_as_strong_as_each_member(self, runs: Runs, tmp_path: Path) -> None:
        metrics = self.attacked(runs, tmp_path, "mf", *self.ENSEMBLE)
        alone = {name: value for name, value in metrics.items() if name.startswith("member/")}
        assert len(alone) == 6
        assert metrics["attacked/ndcg@5"] <= min(alone.values()) < metrics["clean/ndcg@5"]
        assert sum(value for name, value in metrics.items() if name.startswith("won/")) <= 1
        assert metrics["flag/random"] == metrics["flag/zero_gradients"] == 0
        assert read(tmp_path / "run.json")["threat"]["budget"] == "l2 ≤ 0.2 × own norm, each row"

    def test_an_interrupted_ensemble_goes_on_where_it_was(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = self.attacked(runs, tmp_path / "whole", "mf", *self.ENSEMBLE)
        calls = self.stopped(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            self.attacked(runs, tmp_path / "cut", "mf", *self.ENSEMBLE)
        assert self.attacked(runs, tmp_path / "cut", "mf", *self.ENSEMBLE) == whole
        assert len(calls) == 3 + 4
        assert not (tmp_path / "cut" / "resume").exists()

    @staticmethod
    def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Interrupts the third attack; the names of those that began."""
        calls: list[str] = []

        def stopping(judging: Any, at: Any, member: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(member.name)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return attacked(judging, at, member, *args, **kwargs)

        monkeypatch.setattr(trials, "attacked", stopping)
        return calls

    @pytest.mark.parametrize("word", ["part=valid", "seen=true", "top_k=[3]", "attack.seed=1", "labels=own"])
    def test_what_was_kept_under_other_settings_is_not_taken_up(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
    ) -> None:
        whole = self.attacked(runs, tmp_path / "whole", "mf", *self.ENSEMBLE)
        calls = self.stopped(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            self.attacked(runs, tmp_path / "cut", "mf", *self.ENSEMBLE, word)
        assert self.attacked(runs, tmp_path / "cut", "mf", *self.ENSEMBLE) == whole
        assert len(calls) == 3 + 6

    def test_what_was_kept_of_a_checkpoint_that_was_replaced_is_not_taken_up(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ckpt, words = tmp_path / "ckpt", (*JUDGED, *self.ENSEMBLE)
        trained = (*TRAINED, *MODEL["mf"], "epochs=2")
        run("train", ckpt, *trained)
        calls = self.stopped(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            run("attack", tmp_path / "cut", f"ckpt='{ckpt}'", *words)
        run("train", ckpt, *trained, "seed=1")
        again = run("attack", tmp_path / "cut", f"ckpt='{ckpt}'", *words)
        assert again == run("attack", tmp_path / "whole", f"ckpt='{ckpt}'", *words)
        assert len(calls) == 3 + 6 + 6

    def test_what_was_kept_of_another_attack_is_not_taken_up(self, runs: Runs, tmp_path: Path) -> None:
        from robustbench_rec.savepoint import save_state

        (tmp_path / "cut" / "resume").mkdir(parents=True)
        notes = {"identity": "another", "told": "{}"}
        save_state(tmp_path / "cut" / "resume" / "fab.safetensors", {"users": torch.zeros(1)}, notes)
        whole = self.attacked(runs, tmp_path / "whole", "mf", *self.ENSEMBLE)
        assert self.attacked(runs, tmp_path / "cut", "mf", *self.ENSEMBLE) == whole

    @pytest.mark.parametrize("goal", ["promote", "demote", "fairness"])
    def test_goals_are_reported_before_the_quality(
        self, runs: Runs, tmp_path: Path, goal: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metrics = self.attacked(runs, tmp_path, "mf", f"goal={goal}", "attack=pgd", "eps=0.5")
        name = "gap_ndcg@5" if goal == "fairness" else "t_hr@5"
        sign = -1 if goal == "demote" else 1
        assert sign * metrics[f"rise/{name}"] > 0
        assert metrics[f"rise/{name}"] == pytest.approx(metrics[f"attacked/{name}"] - metrics[f"clean/{name}"])
        assert read(tmp_path / "run.json")["threat"]["goal"].startswith(goal)
        shown = capsys.readouterr().out.partition("before and after")[2]
        assert goal == "fairness" or shown.index("t_hr@5") < shown.index("ndcg@5")

    def test_a_model_without_parameters_has_nothing_to_attack(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="model 'pop' has no embedding surface"):
            self.attacked(runs, tmp_path, "pop")

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("eps=-0.1", "eps=-0.1"),
            ("loss=bpr", "unknown loss of an attack 'bpr'"),
            ("attack.surface=feature", "no feature surface"),
            ("attack.surface=weigth", "unknown surface 'weigth'"),
            ("attack.modules=[users]", "no module 'users'"),
            ("attack.norm=l1", "unknown norm 'l1'"),
            ("attack.steps=-1", "steps=-1"),
            ("part=tset", "unknown part 'tset'"),
        ],
    )
    def test_what_makes_no_sense_is_one_line_and_nothing_is_written(
        self, runs: Runs, tmp_path: Path, override: str, message: str
    ) -> None:
        with pytest.raises(RrecError, match=message):
            self.attacked(runs, tmp_path / "out", "mf", override)
        assert not list((tmp_path / "out").iterdir())

    def test_a_budget_that_an_attack_does_not_have_is_refused(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match=r"eps=0.3 says nothing to attack=edges, whose keys are .*attack.share"):
            run("attack", tmp_path, f"ckpt='{runs['mf'][0]}'", "attack=edges", "eps=0.3")


def test_a_number_that_makes_no_sense_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(RrecError, match=r"lr=-1\.0: must be at least 0"):
        run("train", tmp_path, "dataset=sequence", "dataset.path=nowhere", "lr=-1")


class TestDistill:
    def distilled(self, runs: Runs, out: Path, *overrides: str) -> dict[str, float]:
        return run("distill", out, f"teacher='{runs['kgat'][0]}'", *TRAINED, *MODEL["mf"], *overrides)

    def test_a_student_learns_and_is_a_checkpoint_like_any_other(self, runs: Runs, tmp_path: Path) -> None:
        metrics = self.distilled(runs, tmp_path / "run", "defense=rawp", "distill.top=10", "distill.uniform=10")
        assert metrics["valid/auc"] > 0.6
        told = read(tmp_path / "run" / "run.json")
        assert told["task"] == "distill"
        assert told["objective"] == "L = task + 2 · listwise + penalty"
        assert {each for each, speed in told["cost"].items() if each.startswith("users_per_second/") and speed > 0} == {
            f"users_per_second/{each}" for each in ("student", "teacher")
        }
        assert told["parameters"] == {"trained": 8 * (150 + 60), "all": 8 * (150 + 60)}
        again = run("eval", tmp_path / "eval", f"ckpt='{tmp_path / 'run'}'", *JUDGED)
        assert all(metrics[key] == value for key, value in again.items())

    def test_no_weight_is_plain_training_bit_for_bit(self, runs: Runs, tmp_path: Path) -> None:
        metrics = self.distilled(runs, tmp_path, "distill.weight=0", "distill.top=10")
        assert {key: metrics[key] for key in runs["mf"][1]} == runs["mf"][1]
        assert (tmp_path / "model.safetensors").read_bytes() == (runs["mf"][0] / "model.safetensors").read_bytes()

    def test_a_teacher_says_by_which_loss_it_learnt(self, runs: Runs, tmp_path: Path) -> None:
        run("train", tmp_path, *TRAINED, *MODEL["mf"], "loss=mse", "negatives=0", "epochs=1")
        data = checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu")).data
        said = []
        for path in (tmp_path, runs["mf"][0], runs["kgat"][0]):
            cfg = composing.typed(compose("distill", f"teacher='{path}'", *TRAINED, *MODEL["mf"]), "distill")
            said.append(distill.teacher_of(cfg, build("mf"), data).loss)
        assert said == ["mse", "bpr", "bpr"]

    def test_a_teacher_of_other_data_is_refused(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="was trained on data .*use the teacher's dataset, prepare and split"):
            self.distilled(runs, tmp_path, "split.seed=3")
        assert not list(tmp_path.iterdir())

    def test_a_teacher_that_is_not_there_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="nowhere: no model.safetensors there"):
            run("distill", tmp_path, "teacher=nowhere", *TRAINED, *MODEL["mf"])

    def test_no_weights_of_many_terms_are_plain_training_too(self, runs: Runs, tmp_path: Path) -> None:
        words = (
            "distill=[listwise,crd,de]",
            "distill.weight=0",
            "distill.inner.weight=0",
            "distill.inner.inner.weight=0",
        )
        self.distilled(runs, tmp_path, *words)
        assert (tmp_path / "model.safetensors").read_bytes() == (runs["mf"][0] / "model.safetensors").read_bytes()

    def test_no_weights_of_terms_with_heads_draws_and_memories_leave_a_student_with_dropout_as_it_is(
        self, sequences: Runs, tmp_path: Path
    ) -> None:
        path, before = sequences["sasrec"]
        words = ("model=sasrec", "model.dim=8", "epochs=2", "distill=[listwise,contrastive,crd,robust]")
        weights = (f"distill.{'inner.' * place}weight=0" for place in range(4))
        metrics = run("distill", tmp_path, f"teacher='{sequences['gru4rec'][0]}'", *TRAINED, *words, *weights)
        assert {key: metrics[key] for key in before} == before
        assert (tmp_path / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()

    def test_terms_stand_in_the_history_and_a_killed_run_goes_on_with_its_heads(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = (
            "distill=[listwise,crd,contrastive]",
            "distill.top=10",
            "distill.warmup=0.6",
            "epochs=4",
            "model.l2=0.1",
        )
        whole = self.distilled(runs, tmp_path / "a", *words)
        history = pd.read_csv(tmp_path / "a" / "history.csv")
        assert (history[["term/task", "term/listwise", "term/crd", "term/contrastive"]].to_numpy() > 0).all()
        sums = history[["penalty", *(each for each in history if each.startswith("term/"))]].sum(axis=1)
        assert (history["penalty"] > 0.01).all()
        assert (history["loss"] - sums).abs().max() < 1e-3
        monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
        monkeypatch.setattr(trainer.Trainer, "_epoch", _until(2))
        with pytest.raises(KeyboardInterrupt):
            self.distilled(runs, tmp_path / "b", *words)
        monkeypatch.undo()
        assert self.distilled(runs, tmp_path / "b", *words) == whole

    @pytest.mark.parametrize("model", ["mf", "lightgcn"])
    def test_a_run_killed_before_it_is_judged_agrees_with_the_same_average(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        words = (*TRAINED, f"model={model}", "model.dim=8", "teacher=ema", "ema=0.5", "epochs=4", "distill.top=10")
        whole = run("distill", tmp_path / "a", *words)
        original = trainer.Trainer.run

        def stopped(self: trainer.Trainer) -> None:
            original(self)
            raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
        monkeypatch.setattr(trainer.Trainer, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("distill", tmp_path / "b", *words)
        monkeypatch.undo()
        assert run("distill", tmp_path / "b", *words) == whole

    @pytest.mark.parametrize("key", ["teacher", "start"])
    def test_a_run_does_not_go_on_with_another_teacher_or_start(
        self, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        other = tmp_path / "other"
        run("train", other, *TRAINED, *MODEL["mf"], "epochs=1")
        named = {"teacher": runs["kgat"][0], "start": runs["mf"][0]} | {key: other}
        words = (*(f"{name}='{path}'" for name, path in named.items()), "distill.top=10", "epochs=3")
        monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
        monkeypatch.setattr(trainer.Trainer, "_epoch", _until(2))
        with pytest.raises(KeyboardInterrupt):
            run("distill", tmp_path / "cut", *TRAINED, *MODEL["mf"], *words)
        monkeypatch.undo()
        run("train", other, *TRAINED, *MODEL["mf"], "epochs=1", "seed=1")
        with pytest.raises(RrecError, match="or with another teacher or start; it cannot be continued"):
            run("distill", tmp_path / "cut", *TRAINED, *MODEL["mf"], *words)

    def test_every_epoch_says_what_its_loss_is_the_sum_of(
        self, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(progress, "SPEAK", -1.0)
        self.distilled(runs, tmp_path, "epochs=2", "distill.top=10", "model.l2=0.1")
        told = re.findall(
            r"loss ([\d.]+) = task ([\d.]+) \+ listwise ([\d.]+) \+ penalty ([\d.]+)  valid", capsys.readouterr().err
        )
        assert len(told) == 2
        for whole, *parts in ([float(each) for each in line] for line in told):
            assert whole == pytest.approx(sum(parts), abs=2e-4)

    def test_a_teacher_without_the_fake_users_names_the_way_out(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="as fake users of a poison are: poison=file poison.path=<run>"):
            self.distilled(runs, tmp_path, "poison=random", "poison.size=0.1")

    def test_a_teacher_may_have_seen_the_data_without_their_noise(self, runs: Runs, tmp_path: Path) -> None:
        """Both are asked about what the student has no training event with, and had none with before the noise."""
        words = ("noise=label_flip", "noise.level=0.1", "distill.top=10", "task_weight=0")
        metrics = self.distilled(runs, tmp_path, *words)
        own, theirs = (loaded(each) for each in (tmp_path, runs["kgat"][0]))
        assert own.data.fingerprint != theirs.data.fingerprint
        both = [asked(each) for each in (own, theirs)]
        assert own.data.hidden is not None
        for scores in both:
            for had in (own.data.train, own.data.hidden):
                scores[had.users, had.items] = -torch.inf
        assert metrics["agreement/overlap@10"] == pytest.approx(overlap(*both, 10).mean().item())
        assert metrics["agreement/overlap@10"] > 0.5

    def test_a_student_that_has_its_teachers_parameters_agrees_with_it(self, runs: Runs, tmp_path: Path) -> None:
        words = (f"teacher='{runs['mf'][0]}'", f"start='{runs['mf'][0]}'", "lr=0", "epochs=1", "distill.top=10")
        found = run("distill", tmp_path, *TRAINED, *MODEL["mf"], *words)
        assert found["agreement/overlap@10"] == 1
        assert found["agreement/kendall"] == pytest.approx(1)
        assert found["size/student"] == found["size/teacher"] == 8 * (150 + 60)
        assert found["size/trained_share"] == 1

    def test_what_is_recommended_again_is_agreed_about(self, runs: Runs, tmp_path: Path) -> None:
        metrics = self.distilled(runs, tmp_path, "seen=true", "epochs=1", "distill.top=10")
        both = [asked(loaded(each)) for each in (tmp_path, runs["kgat"][0])]
        assert metrics["agreement/overlap@10"] == pytest.approx(overlap(*both, 10).mean().item())

    def test_an_ensemble_teaches_what_its_members_say_together(self, runs: Runs, tmp_path: Path) -> None:
        teacher = f"['{runs['kgat'][0]}','{runs['pop'][0]}']"
        found = run(
            "distill", tmp_path, f"teacher={teacher}", *TRAINED, *MODEL["mf"], "distill.top=10", "task_weight=0"
        )
        own, members = loaded(tmp_path), [loaded(runs[each][0]) for each in ("kgat", "pop")]
        ensemble = Ensemble([Taught.of(each.model, each.data) for each in members], own.data)
        both = [asked(own), ensemble.scores(torch.arange(own.data.n_users), None)]
        for scores in both:
            scores[own.data.train.users, own.data.train.items] = -torch.inf
        assert found["agreement/overlap@10"] == pytest.approx(overlap(*both, 10).mean().item())
        assert found["size/teacher"] == ensemble.parameters
        assert found["agreement/overlap@10"] > 0.8
        assert found["valid/auc"] > 0.6

    def test_an_average_that_keeps_less_of_what_it_was_is_nearer_to_the_student(
        self, runs: Runs, tmp_path: Path
    ) -> None:
        found = {}
        for keep in (0.2, 0.999):
            words = (*TRAINED, *MODEL["mf"], "distill.top=10", "distill.weight=0.1", f"ema={keep}")
            found[keep] = run("distill", tmp_path / str(keep), "teacher=ema", *words)
            history = pd.read_csv(tmp_path / str(keep) / "history.csv")
            assert (history["term/listwise"] > 0).all()
            assert found[keep]["size/teacher"] == found[keep]["size/student"]
            assert found[keep]["valid/auc"] > 0.6
        assert found[0.2]["agreement/overlap@10"] > 0.65 > found[0.999]["agreement/overlap@10"]
        assert found[0.2]["agreement/kendall"] > 0.6 > found[0.999]["agreement/kendall"]

    def test_a_cached_teacher_says_what_it_said(self, runs: Runs, tmp_path: Path) -> None:
        words = ("distill.top=10", "epochs=2", f"data_dir='{tmp_path / 'data'}'")
        one = self.distilled(runs, tmp_path / "a", *words)
        two = self.distilled(runs, tmp_path / "b", *words, "cache=true")
        assert one == pytest.approx(two, rel=1e-4)
        assert len(list((tmp_path / "data" / "teachers").glob("*.npy"))) == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("model=ease",), "model=ease is computed, not trained: no teacher can change it"),
            (("model=mf", "task_weight=0", "defense=apr"), "defense=apr is about the task, which task_weight=0"),
        ],
    )
    def test_what_a_teacher_cannot_change_is_refused(
        self, runs: Runs, tmp_path: Path, words: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(RrecError, match=message):
            run("distill", tmp_path, f"teacher='{runs['kgat'][0]}'", *TRAINED, *words)

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            ("[]", "a run directory, a list of them, a file of scores or ema is needed"),
            ("[ema,nowhere]", "is no member of an ensemble"),
            ("nowhere.npy", "cannot be read as an array of numbers"),
        ],
    )
    def test_what_is_no_teacher_is_refused(self, tmp_path: Path, teacher: str, message: str) -> None:
        with pytest.raises(RrecError, match=message) as caught:
            run("distill", tmp_path, f"teacher={teacher}", *TRAINED, *MODEL["mf"])
        assert "\n" not in str(caught.value)


class TestStart:
    """Conformance 9: adapters start as the identity, the body does not change."""

    @pytest.mark.parametrize(
        ("name", "adaptation"),
        [(name, adaptation) for name in ("sasrec", "gru4rec") for adaptation in ("lora", "adapter", "head")],
    )
    def test_an_adapted_model_starts_where_the_run_ended_and_keeps_its_body(
        self, sequences: Runs, tmp_path: Path, name: str, adaptation: str
    ) -> None:
        path, before = sequences[name]
        words = (*TRAINED, f"model={name}", "model.dim=8", f"start='{path}'", f"adaptation={adaptation}")
        still = run("train", tmp_path / "still", *words, "epochs=1", "lr=0")
        assert {key: still[key] for key in before} == pytest.approx(before, rel=1e-6)
        moved = run("train", tmp_path / "moved", *words, "epochs=2", "patience=5")
        assert moved.keys() == before.keys()
        old, new = (load_file(each / "model.safetensors") for each in (path, tmp_path / "moved"))
        body = [key for key in old if key.startswith(("item.", "blocks.", "layers."))]
        there = {plain(key): each for key, each in new.items()}
        assert body
        assert all(torch.equal(old[key], there[key]) for key in body)
        again = run("eval", tmp_path / "eval", f"ckpt='{tmp_path / 'moved'}'", *JUDGED)
        assert all(moved[key] == value for key, value in again.items())

    @pytest.mark.parametrize(
        ("name", "adaptation"),
        [
            ("text_tower", "lora"),
            ("text_tower", "adapter"),
            ("text_tower", "head"),
            ("llm_prompt", "head"),
            ("kgat", "lora"),
            ("kgat", "head"),
        ],
    )
    def test_towers_and_language_models_are_adapted_too(
        self, tmp_path: Path, name: str, adaptation: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if not buildable(name):
            pytest.skip("needs the extra text")
        words = [*TRAINED, f"model={name}", "dataset.n_users=20", "dataset.n_items=20", "dataset.events_per_user=8"]
        if name in STANDINS:
            words += [f"model.encoder={pretrained(STANDINS[name])}", "model.lora.rank=0"]
        before = run("train", tmp_path / "before", *words, "epochs=1")
        words += [f"start='{tmp_path / 'before'}'", f"adaptation={adaptation}", "epochs=1"]
        still = run("train", tmp_path / "still", *words, "lr=0")
        assert {key: still[key] for key in before} == pytest.approx(before, abs=1e-3)
        moved = run("train", tmp_path / "moved", *words)
        assert "share" in capsys.readouterr().out
        counted = read(tmp_path / "moved" / "run.json")["parameters"]
        assert 0 < counted["trained"] < counted["all"]
        again = run("eval", tmp_path / "eval", f"ckpt='{tmp_path / 'moved'}'", *JUDGED)
        assert all(moved[key] == value for key, value in again.items())
        loaded = checkpoint.load(str(tmp_path / "moved"), data_dir=None, device=torch.device("cpu"))
        assert body_digest(loaded.model) == body_digest(
            checkpoint.load(str(tmp_path / "still"), data_dir=None, device=torch.device("cpu")).model
        )

    @pytest.mark.parametrize(("split", "told"), [("ratio", True), ("leave_one_out", False)])
    def test_a_random_hold_out_of_histories_without_times_is_told(
        self, tmp_path: Path, split: str, told: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        lines = (f"u{user} " + " ".join(str((user + step) % 90) for step in range(20)) for user in range(90))
        (tmp_path / "a.txt").write_text("\n".join(lines))
        words = ["dataset=sequence", f"dataset.path='{tmp_path}/a.txt'", *JUDGED, "model=sasrec", "epochs=1"]
        run("train", tmp_path / "run", *words, f"split={split}")
        assert ("leaves events from after the held-out ones" in caplog.text) is told

    @pytest.mark.parametrize("model", ["pop", "itemknn", "ease"])
    def test_a_computed_model_has_no_ratings_to_judge(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(RrecError, match=f"protocol=ratings judges ratings, and model={model} learns none"):
            run("train", tmp_path, *TRAINED, f"model={model}", "protocol=ratings", "monitor=rmse")

    @pytest.mark.parametrize(("loss", "told"), [("mse", True), ("bce", False)])
    def test_ratings_that_are_judged_as_clicks_are_told(
        self, tmp_path: Path, loss: str, told: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        words = ("model=biased_mf", f"loss={loss}", "prepare.label=4", "protocol=clicks", "monitor=auc", "epochs=1")
        run("train", tmp_path, *TRAINED, *words)
        assert ("loss=mse learns ratings; loss=bce learns clicks" in caplog.text) is told

    def test_a_body_that_nobody_trained_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        run("train", tmp_path, *TRAINED, "model=sasrec", "model.dim=8", "adaptation=lora", "epochs=1")
        assert "adaptation=lora without start=<run>" in caplog.text

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("item.weight", ("model=sasrec", "adaptation=lora")),
            ("layers.0.parametrizations.recurrent.original", ("model=gru4rec", "adaptation=lora")),
            ("reader.backbone.model.h.0.layer.mlp.c_fc.weight", ("model=llm_prompt",)),
            ("feature_text", ("model=text_tower",)),
        ],
    )
    def test_a_body_that_changes_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
    ) -> None:
        def careless(self: trainer.Trainer) -> None:
            with torch.no_grad():
                dict((*self.model.named_parameters(), *self.model.named_buffers()))[name].view(-1)[0] += 1

        monkeypatch.setattr(trainer.Trainer, "run", careless)
        model = words[0].removeprefix("model=")
        if not buildable(model):
            pytest.skip("needs the extra text")
        words = (*TRAINED, *words, *([f"model.encoder={pretrained(STANDINS[model])}"] if model in STANDINS else []))
        with pytest.raises(RuntimeError, match="the frozen body of the model was changed"):
            run("train", tmp_path, *words)

    def test_a_student_is_adapted_too(self, sequences: Runs, tmp_path: Path) -> None:
        path = sequences["sasrec"][0]
        words = ("model=sasrec", "model.dim=8", f"start='{path}'", "adaptation=lora", "adaptation.rank=2", "epochs=2")
        terms = ("distill=[listwise,adapter_norm,distance]", "distill.top=10")
        found = run("distill", tmp_path, f"teacher='{sequences['gru4rec'][0]}'", *TRAINED, *words, *terms)
        assert 0 < found["size/trained_share"] < 0.5
        history = pd.read_csv(tmp_path / "history.csv")
        assert history["term/adapter_norm"].iloc[-1] > 0
        assert history["term/distance"].iloc[-1] > 0

    def test_a_step_of_an_adapted_student_is_told_by_its_size(self, sequences: Runs, tmp_path: Path) -> None:
        """Epochs of one batch: the terms are 0 in the first, and in the second what the first has made of them."""
        words = (
            *("model=sasrec", "model.dim=8", f"start='{sequences['sasrec'][0]}'", "batch_size=5000"),
            *("adaptation=lora", "adaptation.rank=2", "adaptation.alpha=6"),
            *("distill=[adapter_norm,distance]", "distill.weight=0.5", "distill.inner.weight=0.25"),
        )
        for name, more in (("still", ("lr=0", "epochs=1")), ("step", ("epochs=1",)), ("two", ("epochs=2",))):
            run("distill", tmp_path / name, f"teacher='{sequences['gru4rec'][0]}'", *TRAINED, *words, *more)
        start, end = (load_file(tmp_path / each / "model.safetensors") for each in ("still", "step"))
        added = [6 / 2 * end[name] @ end[name.replace(".up", ".down")] for name in end if name.endswith(".up")]
        way = sum(float((each - start[name]).square().sum()) for name, each in end.items())
        history = pd.read_csv(tmp_path / "two" / "history.csv")
        norm = sum(float(each.square().sum()) for each in added)
        assert added
        assert history["term/adapter_norm"].tolist() == pytest.approx([0, 0.5 * norm], rel=1e-4)
        assert history["term/distance"].tolist() == pytest.approx([0, 0.25 * way], rel=1e-4)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("model=mf", "adaptation=lora"), "model 'mf' has no linear maps in its body: adaptation=head"),
            (("model=mf", "adaptation=adapter"), "model 'mf' has no layers in its body: adaptation=head"),
            (("model=ease", "adaptation=head"), "model 'ease' has no body to leave frozen here"),
            (("model=pop", "adaptation=lora"), "model 'pop' has no body to leave frozen here"),
            (("model=mf", "start=nowhere"), "start=nowhere: no model.safetensors there"),
        ],
    )
    def test_what_cannot_be_adapted_is_refused(self, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
        with pytest.raises(RrecError, match=message) as caught:
            run("train", tmp_path, *TRAINED, *words)
        assert "\n" not in str(caught.value)

    def test_other_data_and_other_models_are_refused(self, runs: Runs, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="start=.* was trained on data"):
            run("train", tmp_path, *TRAINED, *MODEL["mf"], f"start='{runs['mf'][0]}'", "split.seed=3")
        with pytest.raises(RrecError, match="no tensor there has the name and the shape"):
            run("train", tmp_path, *TRAINED, *MODEL["mf"], f"start='{runs['kgat'][0]}'")


class TestDefended:
    @pytest.mark.parametrize("defense", ["gce", "t_ce", "sam", "apr"])
    def test_a_model_that_is_computed_has_none(self, tmp_path: Path, defense: str) -> None:
        with pytest.raises(RrecError, match=f"defense={defense}: model=ease is computed, and a defence is a way of"):
            run("train", tmp_path, *TRAINED, "model=ease", f"defense={defense}")

    def test_a_defence_recovers_a_part_of_what_an_attack_takes(self, runs: Runs, tmp_path: Path) -> None:
        """APR against embedding PGD, on data and seeds that are fixed."""
        out = tmp_path / "apr"
        run("train", out, *TRAINED, *MODEL["mf"], "defense=apr", "defense.eps=0.3", "defense.relative=own")
        words = ("eps=0.3", *JUDGED)
        plain = run("attack", tmp_path / "a", f"ckpt='{runs['mf'][0]}'", *words)
        hard = run("attack", tmp_path / "b", f"ckpt='{out}'", *words)
        assert hard["drop/auc"] < plain["drop/auc"]
