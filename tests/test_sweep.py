import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from math import nan, sqrt
from pathlib import Path
from shutil import rmtree
from types import SimpleNamespace

import pytest
from conftest import compose
from rich.console import Console
from typer.testing import CliRunner

from robustbench_rec import config, sweeping
from robustbench_rec.cli import app
from robustbench_rec.composing.words import chosen, count
from robustbench_rec.errors import RrecError
from robustbench_rec.files import held
from robustbench_rec.launch import launch
from robustbench_rec.reports import sweep
from robustbench_rec.reports.summary import Job, Selection, Summary

ROOT = Path(__file__).resolve().parents[1]
BROKEN: set[tuple[float, int]] = set()
RAN: list[tuple[float, int]] = []


def train(cfg: config.Train, out: Path) -> dict[str, float]:
    RAN.append((cfg.lr, cfg.seed))
    if (cfg.lr, cfg.seed) in BROKEN:
        raise RrecError("the disk is full")
    return {"valid/ndcg@10": cfg.lr + 0.01 * cfg.seed, "test/ndcg@10": cfg.lr + 0.02 * cfg.seed, "test/gini@10": cfg.lr}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and a stand-in for `rrec train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=train))
    BROKEN.clear()
    RAN.clear()
    return tmp_path


def rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def jobs(values: dict[tuple[str, ...], dict[str, float] | None], *keys: str) -> list[Job]:
    return [
        Job(str(number), dict(zip(keys, each, strict=True)), metrics)
        for number, (each, metrics) in enumerate(values.items())
    ]


def test_a_sweep_over_seeds_ends_with_a_row_for_each_combination_of_the_other_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch("train", ["lr=0.1,0.3,0.31", "seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    found = rows("s/summary.csv")
    assert [(row["lr"], row["done"], row["failed"]) for row in found] == [
        (lr, "2", "0") for lr in ("0.1", "0.3", "0.31")
    ]
    assert float(found[0]["test/ndcg@10"]) == pytest.approx(0.11)
    assert float(found[0]["test/ndcg@10 std"]) == pytest.approx(0.02 / sqrt(2))
    assert len(rows("s/sweep.csv")) == 6
    markdown = Path("s/summary.md").read_text()
    assert "| 0.31 | 2 | **0.3150 ± 0.0071** | **0.3200 ± 0.0141** |" in markdown
    assert "| 0.3 | 2 | 0.3050 ± 0.0071 ≈ | 0.3100 ± 0.0141 ≈ |" in markdown, "no further away than seeds are"
    assert "| 0.1 | 2 | 0.1050 ± 0.0071 | 0.1100 ± 0.0141 | 0.1000 ± 0.0000 |" in markdown
    assert Path("s/curve.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("s/heatmap.png").exists()
    out = capsys.readouterr().out
    assert "0.3200 ± 0.0141*" in out  # a file or a pipe has no bold letters
    assert "*: best of its column" in out


def test_two_numeric_keys_give_a_heat_map_as_well() -> None:
    assert launch("train", ["lr=0.1,0.3", "epochs=1,2", "hydra.sweep.dir=s"], multirun=True) == 0
    assert {path.name for path in Path("s").glob("*.png")} == {"curve.png", "curve_epochs.png", "heatmap.png"}
    assert "test/ndcg@10 std" not in rows("s/summary.csv")[0], "no seeds, no spread"


def test_what_is_neither_better_nor_worse_has_no_best() -> None:
    found = Summary(
        jobs(
            {("0.1",): {"test/rmse": 1.0, "test/gini@10": 0.5}, ("0.2",): {"test/rmse": 2.0, "test/gini@10": 0.6}}, "lr"
        ),
        "train",
    )
    assert found.best("test/rmse") == ({0}, set())
    assert found.best("test/gini@10") == (set(), set())


@pytest.mark.parametrize(
    ("verb", "key", "metric"),
    [
        ("train", "protocol", "test/ndcg@10"),
        ("train", "dataset.n_users", "test/ndcg@10"),
        ("train", "+noise@noise.inner", "test/ndcg@10"),
        ("attack", "attack", "attacked/ndcg@10"),
        ("attack", "attack.steps", "attacked/ndcg@10"),
        ("attack", "eps", "attacked/ndcg@10"),
    ],
)
def test_what_is_judged_in_different_ways_is_not_compared(verb: str, key: str, metric: str) -> None:
    values = {("1", "mf"): 0.3, ("1", "kgat"): 0.2, ("2", "mf"): 0.7, ("2", "kgat"): 0.8}
    found = Summary(jobs({each: {metric: value} for each, value in values.items()}, key, "model"), verb)
    assert found.best(metric) == ({0, 3}, set()), "one for each way"
    alone = Summary(jobs({(each,): {metric: values[each, "mf"]} for each in ("1", "2")}, key), verb)
    assert alone.best(metric) == (set(), set())


def test_checkpoints_of_other_data_are_not_compared() -> None:
    def judged(*data: str | None) -> Summary:
        values = zip(data, (0.1, 0.3, 0.2, 0.4), strict=True)
        made = [
            Job(str(number), {"ckpt": "ab"[number // 2], "seed": str(number % 2)}, {"clean/auc": value}, data=each)
            for number, (each, value) in enumerate(values)
        ]
        return Summary(made, "attack")

    for alike in (("x", "x", "x", "x"), ("x", "y", "x", "y"), (None, None, None, None)):
        assert judged(*alike).best("clean/auc") == ({1}, {0})
        assert not judged(*alike).mixed
    assert judged("x", "x", "y", "y").best("clean/auc") == (set(), set())
    told = Summary(
        [
            Job("0", {"a": "1"}, {"valid/auc": 0.1, "test/auc": 0.1}, data="x"),
            Job("1", {"a": "2"}, {"valid/auc": 0.2, "test/auc": 0.2}, data="y"),
        ],
        "train",
        "auc",
    )
    assert told.selections == []


def test_the_data_of_a_job_are_those_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / sweeping.JOB).write_text('{"overrides": ["lr=0.1"]}')
    (tmp_path / "0" / "run.json").write_text('{"fingerprint": "cleaned", "uncleaned_fingerprint": "whole"}')
    (job,) = sweeping.jobs_of("train", tmp_path)
    assert job.data == "whole"


def test_all_that_are_equally_good_are_best() -> None:
    values = {"0.1": 0.3, "0.2": 0.2, "0.3": 0.3}
    found = Summary(jobs({(key,): {"test/auc": value} for key, value in values.items()}, "lr"), "train")
    assert found.best("test/auc") == ({0, 2}, set())


def test_the_loss_of_a_training_is_no_way_of_judging() -> None:
    found = Summary(jobs({("bpr",): {"test/auc": 0.3}, ("bce",): {"test/auc": 0.2}}, "loss"), "train")
    assert found.best("test/auc") == ({0}, set())


def test_runs_that_agree_still_have_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    BROKEN.update({(0.2, 0), (0.2, 1)})
    words = ["lr=0.1,0.2", "seed=0,1", "hydra.sweep.dir=s"]
    same = {"valid/ndcg@10": 0.25, "test/ndcg@10": 0.75}
    sys.modules["robustbench_rec.tasks.train"].run = lambda cfg, out: train(cfg, out) and same  # type: ignore[attr-defined]
    assert launch("train", words, multirun=True) == 1
    lines = Path("s/summary.md").read_text().splitlines()
    assert "| 0.1 | 2 | 0.7500 ± 0.0000 |" in lines
    assert "| 0.2 | 0 of 2 | failed |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "0.7500" in capsys.readouterr().out


def test_the_monitored_metric_of_the_test_part_is_what_plots_are_about() -> None:
    metrics = {"valid/ndcg@10": 0.1, "valid/auc": 0.1, "test/ndcg@10": 0.1, "test/auc": 0.1}
    assert Summary(jobs({("1",): metrics}, "lr"), "train", "auc").primary == "test/auc"
    assert Summary(jobs({("1",): metrics}, "lr"), "train").primary == "test/ndcg@10"
    attacked = {"clean/ndcg@10": 0.1, "attacked/ndcg@10": 0.1}
    assert Summary(jobs({("1",): attacked}, "eps"), "attack", "ndcg@10").primary == "attacked/ndcg@10"


def test_without_a_monitor_it_is_what_the_models_were_told_by(here: Path) -> None:
    (here / "0").mkdir()
    (here / "0" / sweeping.JOB).write_text(json.dumps({"protocol": "full", "monitor": None}))
    metrics = {f"{side}/{name}": 0.1 for side in ("valid", "test") for name in ("arp@5", "ndcg@5", "fair/gap/ndcg@10")}
    assert sweeping._watched(jobs({("1",): metrics}, "lr"), here) == "ndcg@5"
    assert sweeping._watched(jobs({("1",): metrics | {"test/ndcg@10": 0.1}}, "lr"), here) == "ndcg@10"


def test_of_a_drop_less_is_better_where_more_of_the_quality_is() -> None:
    found = Summary([], "attack")
    told = {"test/ndcg@10": 1, "test/rmse": -1, "drop/ndcg@10": -1, "drop/rmse": 1, "drop/gini@10": 0}
    told |= {"agreement/kendall": 1, "offset/ndcg@10": 0, "test/fair/gap/ndcg@10": 0, "seconds": 0}
    assert {name: found.sign(name) for name in told} == told


def test_noise_robustness_is_the_normalised_area_under_noisy_over_clean() -> None:
    quality = {
        ("0", "0"): 0.4,
        ("0.1", "0"): 0.3,
        ("0.4", "0"): 0.1,
        ("0", "1"): 0.2,
        ("0.1", "1"): 0.2,
        ("0.4", "1"): 0.2,
    }
    given = jobs({key: {"test/ndcg@10": value} for key, value in quality.items()}, "noise.level", "seed")
    ((settings, measures),) = Summary(given, "train").resilience
    first = (0.1 * (1 + 0.75) / 2 + 0.3 * (0.75 + 0.25) / 2) / 0.4
    assert settings == {}
    assert measures["noise robustness"].mean == pytest.approx((first + 1) / 2)
    assert measures["noise robustness"].n == 2
    under = (0.1 * (0.4 + 0.3) / 2 + 0.3 * (0.3 + 0.1) / 2) / 0.4
    assert measures["area of test/ndcg@10"].mean == pytest.approx((under + 0.2) / 2)
    without_clean = [job for job in given if job.overrides["noise.level"] != "0"]
    assert Summary(without_clean, "train").resilience == []
    failed = [*given[:-1], Job("5", given[-1].overrides, None, "broken")]
    assert Summary(failed, "train").resilience[0][1]["noise robustness"].mean == pytest.approx(first)


def test_an_error_metric_that_doubles_with_noise_is_as_bad_as_a_quality_that_halves() -> None:
    given = jobs({("0",): {"test/rmse": 1.0}, ("0.2",): {"test/rmse": 2.0}}, "noise.level")
    ((_, measures),) = Summary(given, "train").resilience
    assert measures["noise robustness"].mean == pytest.approx(0.75)
    assert measures["area of test/rmse"].mean == pytest.approx(1.5)


def selected(metric: str, key: str, values: Mapping[str, Sequence[float]]) -> list[Selection]:
    names = (f"valid/{metric}", f"test/{metric}", f"attacked/{metric}")
    given = {(each,): dict(zip(names, value, strict=False)) for each, value in values.items()}
    return Summary(jobs(given, key), "train", metric).selections


def test_what_validation_chooses_is_held_against_the_best_on_test_and_under_attack() -> None:
    values = {"8": (0.1, 0.5, 0.1), "16": (0.3, 0.2, 0.15), "32": (0.2, 0.4, 0.12)}
    test, attacked = selected("ndcg@10", "model.dim", values)
    assert (test.settings, test.chosen, test.best) == ({"model.dim": "16"}, 0.2, pytest.approx(0.5))
    assert test.gap == pytest.approx(0.3)
    assert (attacked.metric, attacked.gap) == ("attacked/ndcg@10", 0)


def test_of_an_error_the_least_is_chosen_and_the_gap_is_how_much_more_it_is() -> None:
    (test,) = selected("rmse", "model.dim", {"8": (0.9, 0.8), "16": (0.7, 1.0)})
    assert (test.settings, test.chosen, test.best) == ({"model.dim": "16"}, 1.0, pytest.approx(0.8))
    assert test.gap == pytest.approx(0.2)


def test_nothing_is_chosen_among_what_is_judged_in_different_ways_or_alone() -> None:
    assert selected("ndcg@10", "noise.level", {"0": (0.1, 0.5), "0.1": (0.3, 0.2)}) == []
    assert selected("ndcg@10", "model.dim", {"8": (0.1, 0.5)}) == []
    seeds = jobs({("0",): {"valid/ndcg@10": 0.1}, ("1",): {"valid/ndcg@10": 0.2}}, "seed")
    assert Summary(seeds, "train", "ndcg@10").selections == []


def test_a_sweep_tells_what_choosing_on_validation_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["lr=0.1,0.2", "seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    (line,) = [each for each in Path("s/summary.md").read_text().splitlines() if each.startswith("chosen by")]
    assert "(selection gap " in line
    assert line in capsys.readouterr().out


def test_the_robustness_of_an_attack_sweep_starts_from_its_clean_quality() -> None:
    metrics = {("0.1",): 0.2, ("0.2",): 0.1}
    given = jobs({key: {"clean/ndcg@10": 0.4, "attacked/ndcg@10": value} for key, value in metrics.items()}, "eps")
    ((_, measures),) = Summary(given, "attack").resilience
    assert measures["noise robustness"].mean == pytest.approx((0.1 * 0.75 + 0.1 * 0.375) / 0.2)
    assert measures["area of attacked/ndcg@10"].mean == pytest.approx((0.1 * 0.3 + 0.1 * 0.15) / 0.2)


def test_the_robustness_of_trainings_that_end_with_an_attack_is_that_under_it() -> None:
    metrics = {("0.1",): 0.2, ("0.2",): 0.1}
    given = jobs({key: {"test/ndcg@10": 0.4, "attacked/ndcg@10": value} for key, value in metrics.items()}, "eps")
    ((_, measures),) = Summary(given, "train").resilience
    assert measures["noise robustness"].mean == pytest.approx((0.1 * 0.75 + 0.1 * 0.375) / 0.2)


def test_overall_safety_is_what_injections_leave_of_unexposed_targets() -> None:
    def shown(before: float, after: float) -> dict[str, float]:
        return {"clean/t_hr@10": before, "poisoned/t_hr@10": after}

    given = jobs({("random",): shown(0.2, 0.6), ("covisit",): shown(0.2, 0.1)}, "poison")
    ((_, measures),) = Summary(given, "attack").resilience
    assert measures["overall safety"].mean == pytest.approx(1 - (0.5 + 0) / 2)
    nuke = [Job(job.name, job.overrides, job.metrics, nuke=True) for job in given]
    assert Summary(nuke, "attack").resilience == []


@pytest.mark.parametrize(("poison", "nuke"), [("random", False), ("love_hate", True), ("none", False)])
def test_a_job_remembers_which_way_its_poison_goes(tmp_path: Path, poison: str, nuke: bool) -> None:
    (tmp_path / "0").mkdir()
    assert not sweeping.finished(tmp_path / "0", compose("attack", "ckpt=run", f"poison={poison}"), ["ckpt=run"])
    (job,) = sweeping.jobs_of("attack", tmp_path)
    assert job.nuke == nuke


def test_values_that_are_no_numbers_and_brackets_in_overrides_are_shown() -> None:
    given = [Job(str(n), {"top_k": f"[{n},5]"}, {"test/ndcg@10": value}) for n, value in enumerate([0.1, None, nan])]
    out = StringIO()
    sweep.report(Summary(given, "train"), Path(), Console(file=out, width=100))
    assert "[1,5]" in out.getvalue()
    assert rows("summary.csv")[1]["test/ndcg@10"] == rows("summary.csv")[2]["test/ndcg@10"] == ""


def test_the_main_metric_is_shown_where_it_is_the_same_in_all_jobs() -> None:
    given = {(each,): {"attacked/ndcg@10": 0.3, "attacked/auc": value} for each, value in {"1": 0.6, "2": 0.5}.items()}
    out = StringIO()
    sweep.report(Summary(jobs(given, "eps"), "attack", "ndcg@10"), Path(), Console(file=out, width=100))
    assert out.getvalue().count("0.3000") == 2
    assert Path("summary.md").read_text().startswith("| eps | attacked/ndcg@10 | attacked/auc |")


def rrec(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_resume_does_again_what_failed_and_only_that() -> None:
    words = ["lr=0.1", "seed=0,1,2"]
    assert launch("train", [*words, "hydra.sweep.dir=whole"], multirun=True) == 0
    BROKEN.update({(0.1, 1), (0.1, 2)})
    assert launch("train", [*words, "hydra.sweep.dir=s"], multirun=True) == 1
    broken = Path("s/summary.csv").read_bytes()
    BROKEN.remove((0.1, 1))
    RAN.clear()
    status, said = rrec("sweep", "resume", "s")
    assert status == 1
    assert RAN == [(0.1, 1), (0.1, 2)]
    assert "jobs that are done: 1;" in said
    assert "job 1, again: the disk is full" in said
    assert "`rrec sweep resume s`" in said
    BROKEN.clear()
    RAN.clear()
    assert rrec("sweep", "resume", "s")[0] == 0
    assert RAN == [(0.1, 2)]
    for name in ("summary.csv", "summary.md", "sweep.csv"):
        assert Path("s", name).read_bytes() == Path("whole", name).read_bytes()
    assert Path("s/summary.csv").read_bytes() != broken
    RAN.clear()
    status, said = rrec("sweep", "resume", "s")
    assert (status, RAN) == (0, [])
    assert "nothing is missing, all 3 jobs are done" in said
    assert "follows" not in said


def test_an_interrupted_sweep_says_how_to_go_on_and_its_table_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(cfg: config.Train, out: Path) -> dict[str, float]:
        if cfg.seed == 2:
            raise KeyboardInterrupt
        return train(cfg, out)

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=stopped))
    assert launch("train", ["seed=0,1,2,3", "hydra.sweep.dir='it\\'s here'"], multirun=True) == 130
    assert "`rrec sweep resume it's here`" in capsys.readouterr().err
    before = Path("it's here/summary.csv").read_bytes()
    Path("it's here/summary.csv").unlink()
    status, shown = rrec("sweep", "show", "it's here")
    assert status == 0
    assert "2 of 3" in shown
    assert "3 of 4 jobs have begun" in shown
    assert Path("it's here/summary.csv").read_bytes() == before
    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=train))
    assert rrec("sweep", "resume", "it's here")[0] == 0
    assert rows("it's here/summary.csv")[0]["done"] == "4"
    assert "have begun" not in rrec("sweep", "show", "it's here")[1]


def test_the_jobs_of_a_sweep_are_counted_as_hydra_makes_them() -> None:
    asked = ["seed=0,1", "model=mf", "seed=range(3)", "top_k=[5,10]", "lr=choice(1,2)", "start='a,b'"]
    assert count(asked) == 6
    assert count(["model=glob(*)"]) is None


def test_a_sweep_that_cannot_be_resumed_is_one_line() -> None:
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    for directory, words, fragment in (
        ("nope", [], "nope is not the directory of a sweep"),
        ("s", ["epochs=3"], "drop 'epochs=3'"),
    ):
        status, said = rrec("sweep", "resume", directory, *words)
        assert (status, said.count("\n")) == (2, 1)
        assert fragment in said
    for broken in ("", "[]", "{}", '{"verb": "nope", "overrides": []}', '{"verb": "train", "overrides": 3}', "{"):
        Path("s/sweep.json").write_text(broken)
        for action in ("resume", "show"):
            status, said = rrec("sweep", action, "s")
            assert (status, said.count("\n")) == (2, 1)
            assert "sweep.json" in said


@pytest.mark.parametrize(
    "word",
    [
        "+hydra.callbacks.x._target_=pandas.read_pickle",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper.custom_search_space=os.system",
        "hydra.launcher.setup=[ls]",
        "--experimental-rerun=job.pickle",
    ],
)
def test_a_sweep_takes_no_code_from_its_directory(word: str) -> None:
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    told = json.loads(Path("s/sweep.json").read_text())
    Path("s/sweep.json").write_text(json.dumps({**told, "overrides": [*told["overrides"], word]}))
    RAN.clear()
    status, said = rrec("sweep", "resume", "s")
    assert (status, said.count("\n"), RAN) == (2, 1, [])
    assert f"the word '{word}'" in said


def test_settings_of_a_launcher_are_taken_from_the_command_line_alone() -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.verbose=0", "hydra.sweep.dir=s"]
    assert launch("train", words, multirun=True) == 0
    status, said = rrec("sweep", "resume", "s")
    assert (status, "the word 'hydra.launcher.verbose=0'" in said) == (2, True)
    assert launch("train", words, multirun=True) == 0
    assert rrec("sweep", "resume", "s", "hydra/launcher=basic")[0] == 0


@pytest.mark.parametrize("told", [{}, {"overrides": "lr=1"}, {"overrides": [], "protocol": "foo"}])
def test_a_job_that_is_not_what_was_written_is_one_line(told: dict[str, object]) -> None:
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    Path("s/1/job.json").write_text(json.dumps(told))
    for action in ("resume", "show"):
        status, said = rrec("sweep", action, "s")
        assert (status, said.count("\n")) == (2, 1)
        assert "s/1/job.json is not what rrec wrote" in said


def test_relative_paths_of_a_resumed_sweep_mean_what_they_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def there(cfg: config.Train, out: Path) -> dict[str, float]:
        seen.append(Path("teacher").read_text())
        return train(cfg, out)

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=there))
    (tmp_path / "begun").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    Path("teacher").write_text("it")
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    Path("s/1/metrics.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert rrec("sweep", "resume", "begun/s")[0] == 0
    assert seen == ["it"] * 3
    Path("begun/s/1/metrics.json").unlink()
    Path("begun/teacher").unlink()
    status, said = rrec("sweep", "resume", "begun/s")
    assert status == 1
    assert "`rrec sweep resume begun/s` does what is missing" in said
    assert Path.cwd() == tmp_path
    Path("begun").rename("moved")
    Path("teacher").write_text("another")
    status, said = rrec("sweep", "resume", "moved/s")
    assert (status, seen[3:]) == (0, ["another"])
    assert f"it was started in {tmp_path}/begun, which is gone" in said


def test_a_job_that_another_process_is_at_is_left_alone() -> None:
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    Path("s/1/metrics.json").unlink()
    RAN.clear()
    with held(Path("s/1/lock")):
        assert "job 1: it is running" in rrec("sweep", "show", "s")[1]
        status, said = rrec("sweep", "resume", "s")
    assert status == 1
    assert "another process is still at it" in said
    assert RAN == []
    assert rrec("sweep", "resume", "s")[0] == 0
    assert RAN == [(0.002, 1)]


def test_a_job_with_other_settings_is_not_taken_for_done() -> None:
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=s"], multirun=True) == 0
    RAN.clear()
    told = json.loads(Path("s/1/job.json").read_text())
    Path("s/1/job.json").write_text(json.dumps({**told, "config": "that of another version"}))
    assert rrec("sweep", "resume", "s")[0] == 1
    assert "holds a job with other settings" in Path("s/1/train.log").read_text()
    assert RAN == []


def test_another_sweep_in_the_same_place_is_refused_and_leaves_the_first_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["seed=0,1", "hydra.sweep.dir=s"]
    assert launch("train", words, multirun=True) == 0
    before = {path: path.read_bytes() for path in Path("s").rglob("*") if path.is_file()}
    capsys.readouterr()
    for other in (["seed=0,2", "hydra.sweep.dir='s'"], ["lr=0.1,0.2", "hydra.sweep.dir=s"]):
        assert launch("train", other, multirun=True) == 2
        out, err = capsys.readouterr()
        assert not out
        assert "s holds another sweep (`rrec train -m seed=0,1`): name another hydra.sweep.dir" in err
    assert before == {path: path.read_bytes() for path in Path("s").rglob("*") if path.is_file()}
    assert launch("train", words, multirun=True) == 0


@pytest.mark.parametrize(
    ("words", "multirun", "told"),
    [
        (["hydra.run.dir=f/x"], False, "f/x: Not a directory"),
        (["seed=0,1", "hydra.sweep.dir=f/x"], True, "f/x: Not a directory"),
        (["hydra.run.dir=f"], False, "f: File exists"),
        (["seed=0,1", "hydra.sweep.dir=f"], True, "f: File exists"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    words: list[str], multirun: bool, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("f").write_text("")
    assert launch("train", words, multirun=multirun) == 2
    assert f"rrec: cannot write {told}; name another place" in capsys.readouterr().err


def test_optuna_takes_up_its_search_where_it_was() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hparams=optuna", "hydra.sweeper.n_trials=3"]
    assert launch("train", [*words, "hydra.sweep.dir=whole"], multirun=True) == 0
    asked = list(RAN)
    assert launch("train", [*words, "hydra.sweep.dir=s"], multirun=True) == 0
    for each in Path("s/2").glob("*.json"):
        each.unlink()
    RAN.clear()
    assert rrec("sweep", "resume", "s")[0] == 0
    assert asked[2:] == RAN
    assert Path("s/summary.csv").read_bytes() == Path("whole/summary.csv").read_bytes()


def test_a_study_needs_no_m_and_its_values_can_be_replaced() -> None:
    assert launch("train", ["experiment=study_noise", "seed=0,1", "noise.level=0,0.5", "hydra.sweep.dir=s"]) == 0
    assert [row["noise.level"] for row in rows("s/summary.csv")] == ["0", "0.5"]
    assert [row["seed"] for row in rows("s/sweep.csv")] == ["0", "1", "0", "1"]
    assert [row["noise robustness"] for row in rows("s/robustness.csv")] == ["1.0"]


def test_keys_of_a_group_that_is_swept_are_keys_of_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default has none of them."""
    found: list[tuple[object, object]] = []

    def fake(cfg: config.Train, out: Path) -> dict[str, float]:
        found.append((cfg.poison["name"], cfg.poison["steps"]))
        return train(cfg, out)

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=fake))
    assert launch("train", ["poison=pga,revadv", "poison.steps=7", "epochs=1"], multirun=True) == 0
    assert found == [("pga", 7), ("revadv", 7)]
    found.clear()
    assert launch("train", ["poison=pga,revadv", "poison.steps=7,8"], multirun=True) == 0
    assert found == [(name, steps) for name in ("pga", "revadv") for steps in (7, 8)]
    alone = ["poison=pga", "poison.steps=7", "seed=1,2", "~clean"]
    assert chosen("train", alone) == alone
    empty = ["poison=pga,revadv", "poison.items="]
    assert chosen("train", empty) == empty


def test_a_level_of_noise_alone_is_one_of_flipped_interactions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def distill(cfg: config.Distill, out: Path) -> dict[str, float]:
        asked.append((cfg.noise["name"], cfg.noise["level"], cfg.distill["weight"]))
        return {"test/ndcg@10": 1 - cfg.noise["level"]}

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.distill", SimpleNamespace(run=distill))
    words = ["distill.weight=0.1,0.5", "noise.level=0,0.1", "teacher=first", "hydra.sweep.dir=s"]
    assert launch("distill", words, multirun=True) == 0
    assert asked == [("label_flip", level, weight) for weight in (0.1, 0.5) for level in (0, 0.1)]
    drawn = {"curve.png", "curve_noise.level.png", "heatmap.png"}
    assert {path.name for path in Path("s").glob("*.png")} == drawn
    assert [row["noise robustness"] for row in rows("s/robustness.csv")] == ["0.95"] * 2


def test_a_level_of_a_noise_that_was_chosen_is_of_that() -> None:
    assert chosen("train", ["noise.level=0.1", "noise=sparsify"]) == ["noise.level=0.1", "noise=sparsify"]
    words = ["experiment=study_noise", "noise.level=0.1"]
    assert chosen("train", words) == words
    assert chosen("train", ["experiment=study_weight", "noise.level=0.1"])[0] == "noise=label_flip"


def test_settings_that_are_no_numbers_give_bars() -> None:
    assert launch("train", ["experiment=study_shift", "seed=0,1", "hydra.sweep.dir=s"]) == 0
    assert {path.name for path in Path("s").glob("*.png")} == {"bars.png"}
    assert [row["noise"] for row in rows("s/summary.csv")][:2] == ["none", "temporal_shift"]


STUDIES = {
    "study_weight": "distill teacher=first distill.weight=0,1 seed=0,1",
    "study_budget": "distill teacher=first epochs=1,2 seed=0,1",
    "study_rank": "train start=body adaptation.rank=1,2 epochs=1 seed=0,1",
    "study_precision": "eval ckpt=first",
    "study_noise": "train epochs=1 seed=0",
    "study_test_noise": "eval ckpt=first noise.level=0,0.2",
    "study_shift": "train epochs=1 seed=0",
}


def test_every_study_is_tested() -> None:
    assert set(STUDIES) == {path.stem for path in (ROOT / "conf/experiment").glob("study_*.yaml")}


@pytest.mark.slow
def test_every_study_is_one_command_that_ends_with_a_table_and_a_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "robustbench_rec.tasks.train")
    short = ["dataset=synthetic", "epochs=3", "data_dir=cache"]
    assert launch("train", [*short, "hydra.run.dir=first"]) == 0
    assert launch("train", [*short, "model=sasrec", "split=leave_one_out", "hydra.run.dir=body"]) == 0
    for name, command in STUDIES.items():
        verb, *words = command.split()
        words += ["dataset=synthetic"] * (verb != "eval") + ["epochs=1"] * (name == "study_weight")
        assert launch(verb, [f"experiment={name}", *words, "data_dir=cache", f"hydra.sweep.dir={name}"]) == 0
        assert {row["failed"] for row in rows(f"{name}/summary.csv")} == {"0"}
        assert list(Path(name).glob("*.png"))
    weighed = {row["distill.weight"]: row for row in rows("study_weight/summary.csv")}
    assert all(float(row["attacked/ndcg@10"]) < float(row["test/ndcg@10"]) for row in weighed.values())
    low = rows("study_precision/summary.csv")[1]
    assert 0 < float(low["divergence/score_rmse"]) < 0.1
    assert 0.5 < float(low["divergence/overlap@10"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_resume_works_the_same_with_other_launchers(launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    python = [sys.executable, "-m", "robustbench_rec"]
    words = ["train", "-m", "dataset=synthetic", "model=pop", "seed=0,1", "prepare.user_core=0,1", "data_dir=cache"]
    subprocess.run([*python, *words, "hydra.sweep.dir=whole"], capture_output=True, check=True)
    subprocess.run(
        [*python, *words, "hydra.sweep.dir=s", f"hydra/launcher={launcher}"], capture_output=True, check=True
    )
    Path("s/1/metrics.json").unlink()
    rmtree("s/3")
    subprocess.run([*python, "sweep", "resume", "s"], capture_output=True, check=True)
    assert Path("s/summary.csv").read_bytes() == Path("whole/summary.csv").read_bytes()


SWEEP = "train -m dataset=synthetic model=mf epochs=8 model.dim=4,8 lr=1e-3,1e-2 seed=0,1,2 data_dir=cache threads=1"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_killed_twice_ends_with_the_summary_of_an_undisturbed_one(launcher: str, here: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    python = [sys.executable, "-m", "robustbench_rec"]
    subprocess.run([*python, *SWEEP.split(), "hydra.sweep.dir=whole"], capture_output=True, check=True)
    begin = [*SWEEP.split(), "hydra.sweep.dir=s", f"hydra/launcher={launcher}"]
    for command, enough in ((begin, 2), (["sweep", "resume", "s"], 6)):
        with subprocess.Popen([*python, *command], stdout=-3, stderr=-3, start_new_session=True) as killed:
            deadline = time.monotonic() + 200
            while len(list(here.glob("s/*/metrics.json"))) < enough and time.monotonic() < deadline:
                time.sleep(0.05)
            os.killpg(killed.pid, signal.SIGKILL)
        assert enough <= len(list(here.glob("s/*/metrics.json"))) < 12
    kept = {path: path.stat().st_mtime_ns for path in here.glob("s/*/metrics.json")}
    subprocess.run([*python, "sweep", "resume", "s"], capture_output=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Path("s/summary.csv").read_bytes() == Path("whole/summary.csv").read_bytes()
    assert Path("s/summary.md").read_bytes() == Path("whole/summary.md").read_bytes()
    assert {path.name for path in Path("s").glob("*.png")} == {"curve.png", "curve_lr.png", "heatmap.png"}
