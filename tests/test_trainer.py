"""The loop: it learns, stops, keeps the best, and goes on after any interruption as if there had been none."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA, Toy, build, configured, fit, judge, penalty
from torch import Tensor

from robustbench_rec import trainer as module
from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.defenses import defended, defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.noises import noises
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.optimizers import OPTIMIZERS
from robustbench_rec.sampling import Events, epoch_generator, sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.trainer import Trainer

SECONDS = ("seconds", "train_seconds")

WITH_PENALTIES = [  # dp_sgd refuses models that have one; mf and the toy have neither events nor dropout
    each for each in defenses if each not in ("dp_sgd", "neftune", "rdrop")
]


def trainer(
    out: Path,
    model: RecModel | None = None,
    *,
    defense: dict[str, Any] | None = None,
    objective: Objective | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    monitor: str = "ndcg@5",
    smaller: bool = False,
    seed: int = 0,
    data: Data = DATA,
    precision: str = "fp32",
    noise: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:
    model = model or build("mf", data, dim=8)
    settings = fit(monitor=monitor, **changes)
    plain = Plain(loss(settings.loss or model.loss))
    judging = evaluator(data, judge())
    return Trainer(
        model=model,
        objective=objective or defended(defense or {"name": "none"}, plain, model),
        sampler=sampler(
            data,
            model,
            loss=settings.loss or model.loss,
            batch_size=settings.batch_size,
            negatives=settings.negatives,
        ),
        validate=validate or (lambda: judging.evaluate(Shifted(model), "valid", metrics=["ndcg@5"]).metrics),
        fit=settings,
        monitor=monitor,
        smaller=smaller,
        seed=seed,
        precision=precision,
        out=out,
        about={},
        noise=noises.build(noise or {"name": "none"}),
    )


def run(out: Path, **changes: Any) -> Trainer:
    built = trainer(out, **changes)
    built.run()
    return built


def state(built: Trainer) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in built.model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def history(built: Trainer) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in SECONDS} for row in built.history]


def idle(epochs: int, *, of: int) -> int:
    """A seed with which RAWP's coins for two layers choose one of them first after so many epochs."""

    def chosen(seed: int, epoch: int) -> bool:
        return bool((torch.rand(2, generator=epoch_generator(seed, epoch, "objective")) < 0.5).any())

    return next(
        seed
        for seed in range(1000)
        if [chosen(seed, each) for each in range(of)] == [each >= epochs for each in range(of)]
    )


def scripted(values: list[float]) -> Callable[[], dict[str, float]]:
    """A validation that says what a test wants it to say."""
    left = iter(values)
    return lambda: {"score": next(left)}


class TestLearning:
    @pytest.mark.parametrize("name", [name for name in models if build(name).trainable])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_the_loss_goes_down(self, tmp_path: Path, name: str, optimizer: str) -> None:
        lr = {"sgd": 0.2, "adagrad": 0.02}.get(optimizer, 0.005)
        built = run(tmp_path, model=build(name), optimizer=optimizer, lr=lr, epochs=6, negatives=None)
        assert built.history[-1]["loss"] < built.history[0]["loss"]
        assert ("auxiliary_loss" in built.history[0]) == (name == "kgat")

    def test_history_has_a_row_an_epoch_on_disk_too(self, tmp_path: Path) -> None:
        built = run(tmp_path, epochs=4)
        with open(tmp_path / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
        assert [float(row["loss"]) for row in rows] == [row["loss"] for row in built.history]
        assert {"loss", "ndcg@5", *SECONDS} < set(rows[0])

    def test_the_same_seed_trains_the_same_model_and_another_does_not(self, tmp_path: Path) -> None:
        one, two = run(tmp_path, seed=1), run(tmp_path, seed=1)
        assert same(state(one), state(two))
        assert not same(state(one), state(run(tmp_path, seed=2)))

    def test_a_defence_does_not_change_the_batches(self, tmp_path: Path) -> None:
        seen: list[list[Tensor]] = []

        class Watching(Objective):
            def __init__(self, inner: Objective) -> None:
                super().__init__()
                self.inner = inner
                seen.append([])

            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                assert batch.items is not None
                seen[-1].append(batch.items)
                value: Tensor = self.inner(at, batch)
                return value

        for name in ("none", "rawp"):
            model = build("mf")
            inner = defenses.build(configured("defense", name), Plain(loss("bpr")), model)
            run(tmp_path, model=model, objective=Watching(inner), epochs=3)
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))

    def test_every_defence_goes_with_an_optimizer_of_rows(self, tmp_path: Path) -> None:
        for name in set(WITH_PENALTIES) - {"amr"}:  # for which mf has no features
            built = run(tmp_path, defense=configured("defense", name), optimizer="lazy_adam", epochs=7, lr=0.02)
            assert built.history[-1]["loss"] == built.history[-1]["loss"], name

    @pytest.mark.parametrize(("defence", "precision"), [("awp", "fp32"), ("none", "bf16")])
    def test_rows_that_no_batch_names_rest_under_a_defence_and_in_reduced_precision(
        self, tmp_path: Path, defence: str, precision: str
    ) -> None:
        clicks = DATA.train.where(DATA.train.users < 3)
        model = build("mf")
        before = model.get_parameter("user.weight").clone()
        settings = {"defense": configured("defense", defence), "precision": precision, "weight_decay": 0.1}
        run(tmp_path, model=model, data=replace(DATA, train=clicks), optimizer="lazy_adam", epochs=2, **settings)
        moved = (model.get_parameter("user.weight") != before).any(1)
        assert moved[:3].all()
        assert not moved[3:].any()

    def test_a_model_without_parameters_is_not_trained(self, tmp_path: Path) -> None:
        assert not run(tmp_path, model=build("pop")).history
        assert not list(tmp_path.iterdir())

    def test_parameters_that_need_no_gradient_stay(self, tmp_path: Path) -> None:
        model = build("mf")
        model.get_parameter("item.weight").requires_grad_(False)
        before = model.get_parameter("item.weight").clone()
        built = run(tmp_path, model=model, weight_decay=0.1, optimizer="adamw")
        assert torch.equal(built.model.get_parameter("item.weight"), before)

    def test_a_tuned_module_off_the_path_of_the_second_phase_is_no_problem(self, tmp_path: Path) -> None:
        """Fine-tuning a propagation layer of KGAT: its TransR loss has nothing to train then."""
        model = build("kgat")
        for name, each in model.named_parameters():
            each.requires_grad_(name.startswith("sum.0"))
        assert run(tmp_path, model=model, epochs=2).history

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    def test_bf16_trains_too(self, tmp_path: Path, name: str) -> None:
        built = run(tmp_path, model=build(name), precision="bf16", epochs=3, lr=0.02)
        assert built.history[-1]["loss"] < built.history[0]["loss"]
        assert {each.dtype for each in built.model.parameters()} == {torch.float32}


class TestSchedule:
    def test_it_stops_after_patience_epochs_without_a_better_value(self, tmp_path: Path) -> None:
        values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.9]
        built = run(tmp_path, validate=scripted(values), monitor="score", patience=3, epochs=6)
        assert [row["score"] for row in built.history] == values[:5]

    def test_the_best_state_is_kept_and_the_first_of_equals(self, tmp_path: Path) -> None:
        for best in (1, 3):
            values = [0.0] * 5
            values[best - 1] = values[4] = 1.0
            built = run(tmp_path, validate=scripted(values), monitor="score", epochs=5)
            shorter = run(tmp_path, validate=scripted([0.0] * (best - 1) + [1.0]), monitor="score", epochs=best)
            assert same(state(built), state(shorter)), best

    def test_a_late_defence_is_judged_from_where_it_begins(self, tmp_path: Path) -> None:
        late = configured("defense", "vat_user", start=2)
        values = [0.9, 0.8, 0.1, 0.3, 0.2, 0.2, 0.7]
        built = run(tmp_path, defense=late, validate=scripted(values), monitor="score", patience=2, epochs=7)
        assert [row["score"] for row in built.history] == values[:6]  # the first two spend no patience
        shorter = run(tmp_path, defense=late, validate=scripted([0.0, 0.0, 0.1, 0.3]), monitor="score", epochs=4)
        assert same(state(built), state(shorter))

    def test_so_is_one_whose_first_epochs_perturb_no_layer_by_chance(self, tmp_path: Path) -> None:
        values = [0.9, 0.8, 0.1, 0.3, 0.2, 0.2, 0.7]
        masked, seed = configured("defense", "rawp"), idle(2, of=7)
        built = run(
            tmp_path, seed=seed, defense=masked, validate=scripted(values), monitor="score", patience=2, epochs=7
        )
        assert [row["score"] for row in built.history] == values[:6]
        never = run(
            tmp_path,
            seed=seed,
            defense={**masked, "p": 0.0},
            validate=scripted(values),
            monitor="score",
            patience=2,
            epochs=7,
        )
        assert [row["score"] for row in never.history] == values[:3]

    def test_one_that_never_begins_is_judged_as_if_it_were_not_there(self, tmp_path: Path) -> None:
        late = configured("defense", "vat_user", start=5)
        built = run(tmp_path, defense=late, validate=scripted([0.1, 0.3, 0.2]), monitor="score", epochs=3)
        shorter = run(tmp_path, validate=scripted([0.1, 0.3]), monitor="score", epochs=2)
        assert same(state(built), state(shorter))

    def test_the_model_is_refreshed_at_its_best_state(self, tmp_path: Path) -> None:
        model = build("kgat")
        run(tmp_path, model=model, validate=scripted([1.0, 0.0, 0.0]), monitor="score", epochs=3)
        attention = model.get_buffer("attention").clone()
        model.refresh()
        assert torch.equal(model.get_buffer("attention"), attention)

    def test_a_learning_rate_of_zero_changes_nothing(self, tmp_path: Path) -> None:
        for name in set(WITH_PENALTIES) - {"amr"}:  # for which mf has no features
            model = build("mf")
            before = {key: each.clone() for key, each in model.state_dict().items()}
            built = run(tmp_path, model=model, defense=configured("defense", name), lr=0.0, epochs=2)
            assert same(before, state(built)), name

    def test_the_learning_rate_falls_to_a_tenth_after_the_share_asked_for(self, tmp_path: Path) -> None:
        rates: list[float] = []

        def note() -> dict[str, float]:
            rates.append(built.optimizers[0].param_groups[0]["lr"])
            return {"score": 1.0}

        built = trainer(tmp_path, validate=note, monitor="score", epochs=6, lr=0.5, decay_after=0.5)
        built.run()
        assert rates == pytest.approx([0.5] * 3 + [0.05] * 3)

    def test_gradients_are_clipped_to_the_norm_asked_for(self, tmp_path: Path) -> None:
        class Steep(Plain):
            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                return 1e4 * super().forward(at, batch)

        steps = {}
        for clip_norm in (None, 0.01):
            model = build("mf")
            before = {key: each.clone() for key, each in model.state_dict().items()}
            built = run(
                tmp_path,
                model=model,
                objective=Steep(loss("bpr")),
                optimizer="sgd",
                lr=1.0,
                clip_norm=clip_norm,
                epochs=1,
                batch_size=1000,
            )
            after = state(built)
            steps[clip_norm] = torch.cat([(after[key] - before[key]).flatten() for key in before]).norm().item()
        assert steps[0.01] == pytest.approx(0.01, rel=1e-3)
        assert steps[None] > 1

    def test_sgd_with_momentum_and_decay_is_that_of_torch(self, tmp_path: Path) -> None:
        model, own = build("mf"), build("mf")
        run(tmp_path, model=model, optimizer="sgd", momentum=0.9, weight_decay=0.1, lr=0.3, epochs=1, batch_size=16)
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.3, momentum=0.9, weight_decay=0.1)
        sampler = Events(DATA, batch_size=16, negatives=1)
        for batch in sampler.epoch(epoch_generator(0, 0, "batches")):
            optimizer.zero_grad()
            (Plain(loss("bpr"))(Shifted(own), batch) + penalty(own, batch)).backward()
            optimizer.step()
        for one, two in zip(model.parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(one, two)


class TestRefused:
    def test_a_loss_that_is_not_finite_ends_the_run_with_advice(self, tmp_path: Path) -> None:
        class Broken(Plain):
            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                return super().forward(at, batch) * float("nan")

        with pytest.raises(RrecError, match=r"NaN or infinite in epoch 1: lower lr"):
            run(tmp_path, objective=Broken(loss("bpr")))

    def test_so_does_a_learning_rate_that_is_far_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="NaN or infinite"):
            run(tmp_path, optimizer="sgd", lr=1e30, epochs=6)

    @pytest.mark.parametrize(
        "changes",
        [
            {"epochs": 0},
            {"patience": 0},
            {"lr": -0.1},
            {"lr": float("nan")},
            {"weight_decay": -1.0},
            {"clip_norm": 0.0},
            {"clip_norm": -1.0},
            {"momentum": -0.5},
            {"decay_after": -1.0},
            {"decay_after": 7.0},
            {"optimizer": "adan"},
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError):
            trainer(tmp_path, **changes)


def test_a_monitor_that_is_not_defined_is_no_best_epoch(tmp_path: Path) -> None:
    with pytest.raises(RrecError, match="ndcg@5 is not defined on the validation part"):
        trainer(tmp_path, validate=lambda: {"ndcg@5": float("nan")}).run()


class Interrupted(Exception):  # noqa: N818 - not an error of the code
    pass


def interrupted(out: Path, after: int, **changes: Any) -> None:
    """A run that dies in its validation of epoch `after`."""
    built = trainer(out, **changes)
    real, count = built.validate, 0

    def dies() -> dict[str, float]:
        nonlocal count
        count += 1
        if count == after:
            raise Interrupted
        return real()

    built.validate = dies
    with pytest.raises(Interrupted):
        built.run()


RESUMED: list[tuple[str, dict[str, Any]]] = [
    ("mf", {}),
    ("mf", {"optimizer": "sgd", "momentum": 0.9, "decay_after": 0.5}),
    ("mf", {"optimizer": "adagrad", "clip_norm": 0.1}),
    ("mf", {"optimizer": "adamw", "weight_decay": 0.1, "negatives": 3, "loss": "softmax"}),
    ("mf", {"defense": configured("defense", "rawp", proxy="adam", resample="batch")}),
    ("kgat", {"defense": configured("defense", "rawp", proxy="adam")}),
    ("mf", {"defense": configured("defense", "rwp", variant="fisher", eta=10.0, growth=4)}),
    ("mf", {"defense": configured("defense", "rat", stale=True, p=0.8)}),
    ("mf", {"defense": configured("defense", "smart")}),
    ("mf", {"defense": configured("defense", "pamacf", start=3)}),
    ("mf", {"defense": {**configured("defense", "rawp", proxy="adam"), "inner": configured("defense", "freelb")}}),
    ("kgat", {"optimizer": "sgd", "momentum": 0.9}),
    ("mf", {"patience": 2, "epochs": 12}),
    ("mf", {"noise": configured("noise", "embedding")}),
    ("sasrec", {"noise": configured("noise", "simulation", level=0.3)}),
]


def test_the_passes_of_all_epochs_count_alike(tmp_path: Path) -> None:
    late = configured("defense", "pamacf", start=2)
    found = {}
    for name, changes in {"plain": {}, "late": {"defense": late}, "at_once": {"defense": {**late, "start": 0}}}.items():
        (tmp_path / name).mkdir()
        built = run(tmp_path / name, epochs=8, patience=99, **changes)
        found[name] = built.passes.equivalents / built.counted
    assert found["plain"] == 3
    assert found["late"] == (2 * 3 + 6 * found["at_once"]) / 8


class TestResume:
    @pytest.fixture(autouse=True)
    def _every_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "SAVE_EVERY", -1.0)

    @pytest.mark.parametrize(("name", "changes"), RESUMED, ids=str)
    def test_an_interrupted_run_ends_with_the_same_bits(
        self, tmp_path: Path, name: str, changes: dict[str, Any]
    ) -> None:
        (tmp_path / "whole").mkdir()
        whole = run(tmp_path / "whole", model=build(name), **changes)
        for after in (1, 3):
            out = tmp_path / f"cut-{after}"
            out.mkdir()
            if after <= len(whole.history):
                interrupted(out, after, model=build(name), **changes)
            torch.manual_seed(99)  # what went before must not matter
            again = run(out, model=build(name, seed=5 if after > 1 else 0), **changes)
            assert same(state(again), state(whole)), after
            assert history(again) == history(whole), after
            assert (again.passes.equivalents, again.counted) == (whole.passes.equivalents, whole.counted), after
            with open(out / "history.csv", newline="") as file:
                assert [int(row["epoch"]) for row in csv.DictReader(file)] == [row["epoch"] for row in whole.history]

    def test_a_run_interrupted_again_and_again_does_too(self, tmp_path: Path) -> None:
        (tmp_path / "whole").mkdir()
        whole = run(tmp_path / "whole")
        for _ in range(3):
            interrupted(tmp_path, 2)
        assert same(state(run(tmp_path)), state(whole))

    def test_what_a_mask_of_chance_has_waited_for_is_not_forgotten(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"defense": configured("defense", "rawp"), "seed": idle(3, of=6), "epochs": 6}
        (tmp_path / "whole").mkdir()
        whole = run(tmp_path / "whole", **settings)
        for after in (1, 2, 3, 4):
            out = tmp_path / f"cut-{after}"
            out.mkdir()
            interrupted(out, after, **settings)
            again = run(out, **settings)
            assert again.objective.state_dict()["idle"] == 3, after
            assert same(state(again), state(whole)), after

    def test_a_run_that_goes_on_says_from_where(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        interrupted(tmp_path, 2)
        assert "was there already" not in capsys.readouterr().err
        run(tmp_path)
        assert "epoch 1/6  was there already" in capsys.readouterr().err

    def test_a_run_that_had_ended_ends_again_at_once(self, tmp_path: Path) -> None:
        whole = run(tmp_path)

        def never() -> dict[str, float]:
            raise AssertionError("an epoch was run")

        again = run(tmp_path, validate=never)
        assert same(state(again), state(whole))
        assert history(again) == history(whole)

    def test_finish_leaves_no_resumable_state(self, tmp_path: Path) -> None:
        built = run(tmp_path)
        assert (tmp_path / "resume").is_dir()
        (tmp_path / "resume" / ".state.safetensors.1234").write_text("what a kill in the middle of a write leaves")
        built.finish()
        built.finish()
        assert {each.name for each in tmp_path.iterdir()} == {"history.csv"}

    @pytest.mark.parametrize("content", [b"", b"not tensors at all", "half", "zeros"])
    def test_a_corrupt_state_is_one_line_that_says_what_to_do(self, tmp_path: Path, content: bytes | str) -> None:
        interrupted(tmp_path, 3)
        path = tmp_path / "resume" / "state.safetensors"
        whole = path.read_bytes()
        cut = {"half": whole[: len(whole) // 2], "zeros": bytes(len(whole))}
        path.write_bytes(content if isinstance(content, bytes) else cut[content])
        with pytest.raises(RrecError, match=r"state\.safetensors cannot be read.*remove it") as caught:
            run(tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_state_of_other_settings_is_refused(self, tmp_path: Path) -> None:
        interrupted(tmp_path, 3)
        for changes in ({"lr": 0.02}, {"seed": 3}, {"batch_size": 8}, {"precision": "bf16"}):
            with pytest.raises(RrecError, match="other settings"):
                run(tmp_path, **changes)

    def test_a_state_of_another_model_is_refused(self, tmp_path: Path) -> None:
        interrupted(tmp_path, 3)
        with pytest.raises(RrecError):
            run(tmp_path, model=build("mf", dim=9))

    def test_a_state_without_its_notes_is_refused(self, tmp_path: Path) -> None:
        from robustbench_rec.savepoint import load_state, save_state

        interrupted(tmp_path, 3)
        path = tmp_path / "resume" / "state.safetensors"
        tensors, notes = load_state(path, torch.device("cpu"))
        save_state(path, tensors, {name: each for name, each in notes.items() if name != "history"})
        with pytest.raises(RrecError):
            run(tmp_path)


class Spiky(Toy):
    """The toy in single precision, so that a trainer can run it beside the others."""

    def __init__(self) -> None:
        super().__init__(dtype=torch.float32)

    def forward(self, batch: Batch, encoded: Tensor) -> Output:
        return super().forward(batch, encoded)


def test_the_toy_trains_under_every_defense(tmp_path: Path) -> None:
    for name in set(WITH_PENALTIES) - {"pamacf", "vat_user"}:  # for which the toy has no dot product
        built = run(tmp_path, model=Spiky(), defense=configured("defense", name), epochs=8, lr=0.02)
        assert built.history[-1]["loss"] < built.history[0]["loss"], name


COMMAND = "import robustbench_rec.trainer as t; t.SAVE_EVERY = -1.0; from robustbench_rec.cli import app; app()"
SMALL = [
    "dataset=synthetic",
    "dataset.n_users=80",
    "dataset.n_items=60",
    "dataset.events_per_user=10",
    "epochs=60",
    "patience=60",
    "batch_size=64",
    "threads=1",
    "defense=rawp",
    "defense.proxy=adam",
]


def rrec(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_runs_killed_with_sigkill_end_with_the_same_metrics(tmp_path: Path) -> None:
    def finished(process: subprocess.Popen[str]) -> None:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finished(rrec("train", *SMALL, f"hydra.run.dir={whole}", cwd=tmp_path))
    words, kills = ["train", *SMALL, f"hydra.run.dir={cut}"], 0
    for wait in (0.05, 0.41, 0.83):
        process = rrec(*words, cwd=tmp_path)
        deadline = time.monotonic() + 60
        before = (cut / "history.csv").stat().st_mtime_ns if (cut / "history.csv").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:  # until it is in the middle of its epochs
            if (cut / "history.csv").exists() and (cut / "history.csv").stat().st_mtime_ns > before:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
        if process.stderr:
            process.stderr.close()
        if (cut / "metrics.json").exists():
            break
        words = ["train", f"resume={cut}"]
    if not (cut / "metrics.json").exists():
        finished(rrec(*words, cwd=tmp_path))
    assert kills >= 1
    assert json.loads((cut / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (cut / "resume").exists()
    assert json.loads((cut / "run.json").read_text())["status"] == "done"
