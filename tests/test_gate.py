"""rrec gate: limits are held against what is measured, the status says how it went, and machines can read it."""

import csv
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from conftest import DATA, Fixed, compose, judge

from robustbench_rec import launch
from robustbench_rec.composing.words import limits
from robustbench_rec.config import Gate
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.evaluation.base import Result
from robustbench_rec.reports.junit import Check, junit, markdown
from robustbench_rec.reports.tables import show
from robustbench_rec.shifted import Shifted
from robustbench_rec.significance import resamples
from robustbench_rec.tasks.gate import Side, _checks, _limit

LIMITS: dict[str, dict[str, float]] = {"max_drop": {}, "max_harm": {}, "at_least": {}}


def result(seed: int, *, noise: float = 0.0) -> Result:
    scores = torch.rand(DATA.n_users, DATA.n_items, generator=torch.Generator().manual_seed(seed))
    scores[DATA.test.users, DATA.test.items] += 1 - noise
    return evaluator(DATA, judge()).evaluate(Shifted(Fixed(scores)), "test")


def gate(**changes: Any) -> Gate:
    values = {"ckpt": "a", "baseline": "b", "part": "test", "certain": False, "attack": None, "eps": 0.1, "loss": None}
    values |= {"max_drop": None, "max_harm": None, "at_least": None, "seed": 0, "goal": {}}
    return Gate(**(values | changes))


@pytest.mark.parametrize("metric", ["ndcg@5", "auc", "hr@5"])
def test_a_drop_is_the_share_of_the_baseline_that_is_lost(metric: str) -> None:
    old, new = result(0), result(1, noise=0.8)
    drop = 1 - new.metrics[metric] / old.metrics[metric]
    assert drop > 0.02
    sides = {"ckpt": Side(new, None), "baseline": Side(old, None)}
    for limit, passes in ((drop + 1e-6, True), (drop - 1e-6, False)):
        (check,) = _checks(gate(), {**LIMITS, "max_drop": {metric: limit}}, sides, frozenset())
        assert check.passed is passes
        assert check.found == f"{drop:.2%} lost"
        assert f"{old.metrics[metric]:.4f} → {new.metrics[metric]:.4f}" in check.detail


def test_where_less_is_better_a_rise_is_what_is_lost() -> None:
    users = torch.arange(3)
    old, new = (Result({"rmse": value}, users, {}) for value in (1.0, 1.2))
    sides = {"ckpt": Side(new, None), "baseline": Side(old, None)}
    limits = {**LIMITS, "max_drop": {"rmse": 0.1}, "at_least": {"rmse": 1.3}}
    drop, least = _checks(gate(), limits, sides, frozenset({"rmse"}))
    assert not drop.passed
    assert drop.found == "20.00% lost"
    assert least.passed
    assert least.wanted == "at most 1.3"


def test_a_certain_limit_is_one_for_the_whole_interval() -> None:
    old, new = result(0, noise=0.6), result(1, noise=0.62)
    sides = {"ckpt": Side(new, None), "baseline": Side(old, None)}
    limits = {**LIMITS, "max_drop": {"ndcg@5": 1 - new.metrics["ndcg@5"] / old.metrics["ndcg@5"] + 0.01}}
    assert _checks(gate(), limits, sides, frozenset())[0].passed
    (sure,) = _checks(gate(certain=True), limits, sides, frozenset())
    assert not sure.passed
    assert re.fullmatch(r"-?[\d.]+% lost \(-?[\d.]+% to -?[\d.]+%\)", sure.found)
    same = {"ckpt": Side(old, None), "baseline": Side(old, None)}
    assert _checks(gate(certain=True), {**LIMITS, "max_drop": {"ndcg@5": 0.0}}, same, frozenset())[0].passed


def test_the_interval_is_that_of_the_share_in_samples_of_the_users() -> None:
    old, new = result(0, noise=0.6), result(1, noise=0.7)
    sides = {"ckpt": Side(new, None), "baseline": Side(old, None)}
    (check,) = _checks(gate(), {**LIMITS, "max_drop": {"ndcg@5": 0.1}}, sides, frozenset())
    before, after = (each.per_user["ndcg@5"].double() for each in (old, new))
    lost = [1 - (weights @ after / (weights @ before)).item() for each in resamples(len(before)) for weights in each]
    low, high = np.quantile(lost, [0.025, 0.975])
    assert f"95 % from {low:+.2%} to {high:+.2%}" in check.detail


def test_under_attack_the_baseline_is_attacked_too_and_harm_is_of_the_own_quality() -> None:
    clean, hit, weak = result(0), result(1, noise=0.7), result(2, noise=0.9)
    sides = {"ckpt": Side(clean, hit), "baseline": Side(clean, weak)}
    limits = {**LIMITS, "max_drop": {"ndcg@5": 0.05}, "max_harm": {"ndcg@5": 0.05}}
    checks = _checks(gate(attack={"name": "pgd"}), limits, sides, frozenset())
    assert [(each.group, each.name) for each in checks] == [
        ("clean", "ndcg@5 against the baseline"),
        ("robust", "ndcg@5 against the baseline under pgd"),
        ("robust", "ndcg@5 under pgd"),
    ]
    assert [each.passed for each in checks] == [True, True, False]


def test_harm_is_none_of_what_the_baseline_had() -> None:
    ours, weak = result(0, noise=0.5), result(2, noise=0.9)
    sides = {"ckpt": Side(ours, ours), "baseline": Side(weak, weak)}
    (check,) = _checks(gate(attack={"name": "pgd"}), {**LIMITS, "max_harm": {"ndcg@5": 0.0}}, sides, frozenset())
    assert check.passed
    assert check.found == "0.00% lost"


def test_what_cannot_be_measured_does_not_pass() -> None:
    nothing = Result({"ndcg@5": 0.0}, torch.arange(2), {})
    sides = {"ckpt": Side(nothing, None), "baseline": Side(nothing, None)}
    (check,) = _checks(gate(), {**LIMITS, "max_drop": {"ndcg@5": 0.05}}, sides, frozenset())
    assert not check.passed


def test_a_certain_value_is_the_whole_interval() -> None:
    model = result(0, noise=0.6)
    value = model.metrics["ndcg@5"]
    sides = {"ckpt": Side(model, None)}
    for limit, certain, passes in ((value - 1e-6, False, True), (value - 1e-6, True, False), (0.0, True, True)):
        (check,) = _checks(gate(certain=certain), {**LIMITS, "at_least": {"ndcg@5": limit}}, sides, frozenset())
        assert check.passed is passes
        assert check.wanted.startswith("surely") is certain
        assert (f"({value:.4f}" not in check.found and " to " in check.found) is certain
    (check,) = _checks(
        gate(certain=True), {**LIMITS, "at_least": {"ndcg@5": value + 1e-6}}, sides, frozenset({"ndcg@5"})
    )
    assert not check.passed, "of an error the upper end counts"


@pytest.mark.parametrize(("new", "smaller", "passes"), [(0.2, False, True), (0.2, True, False), (0.0, False, False)])
def test_what_is_better_than_nothing_passes(new: float, smaller: bool, passes: bool) -> None:
    users = torch.arange(4)
    before, after = (Result({"m": value}, users, {"m": torch.full((4,), value)}) for value in (0.0, new))
    sides = {"ckpt": Side(after, None), "baseline": Side(before, None)}
    for certain in (False, True):
        limits = {**LIMITS, "max_drop": {"m": 0.05}}
        (check,) = _checks(gate(certain=certain), limits, sides, frozenset({"m"} if smaller else ()))
        assert check.passed is passes
        assert check.found == f"from 0 to {new:.4f}"


def test_junit_is_xml_with_a_failure_for_each_check_that_failed() -> None:
    checks = [Check("clean", "ndcg@10 <&>", "a", "b", True), Check("robust", 'x "y" | z', "c", "d", False, "e")]
    root = ET.fromstring(junit("rrec gate", checks, 1.5))
    assert (root.tag, root.get("tests"), root.get("failures")) == ("testsuites", "2", "1")
    cases = list(root.iter("testcase"))
    assert [case.get("name") for case in cases] == ["ndcg@10 <&>", 'x "y" | z']
    assert [len(case.findall("failure")) for case in cases] == [0, 1]
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "wanted c, found d"
    page = markdown("Gate", checks, ["note"])
    assert "**FAIL**: 1 of 2 checks" in page
    assert 'x "y" \\| z' in page


def test_both_forms_of_a_limit_go_together_and_two_limits_of_one_metric_do_not() -> None:
    words = ["max_drop={recall@10: 1%, auc: 2%}", "max_drop.ndcg@10=5%", "max_drop.auc=2%"]
    assert limits(words) == ["max_drop={recall@10: 1%, auc: 2%, ndcg@10: 5%}"]
    assert compose("gate", *limits(words)).max_drop == {"recall@10": "1%", "auc": "2%", "ndcg@10": "5%"}
    with pytest.raises(RrecError, match=r"max_drop\.ndcg@10 has two limits, 5% and 1%"):
        limits(["max_drop.ndcg@10=5%", "max_drop.ndcg@10=1%"])


def test_an_error_may_more_than_double() -> None:
    assert _limit("max_harm", "logloss", "200%") == 2
    with pytest.raises(RrecError, match="write a share"):
        _limit("max_harm", "ndcg@10", "200%")


def test_the_dotted_form_is_the_mapping() -> None:
    words = ["max_drop.ndcg@10=5%", "ckpt=x", "max_drop.recall@20=0.1", "at_least.auc=0.6"]
    assert limits(words) == ["ckpt=x", "max_drop={ndcg@10: 5%, recall@20: 0.1}", "at_least={auc: 0.6}"]
    composed = compose("gate", *limits(words))
    assert composed.max_drop == {"ndcg@10": "5%", "recall@20": 0.1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    base = ["dataset=synthetic", "dataset.n_users=80", "dataset.n_items=60", f"data_dir={folder}/cache", "model=mf"]
    assert launch.launch("train", [*base, "epochs=15", "lr=0.02", f"hydra.run.dir={folder}/good"]) == 0
    assert launch.launch("train", [*base, "epochs=1", "lr=1e-6", f"hydra.run.dir={folder}/bad"]) == 0
    other = [each for each in base if "n_users" not in each]
    assert launch.launch("train", [*other, "dataset.n_users=70", "epochs=1", f"hydra.run.dir={folder}/other"]) == 0
    return folder


def run(runs: Path, out: Path, ckpt: str, baseline: str | None, *words: str) -> int:
    named = [f"ckpt={runs / ckpt}", *([] if baseline is None else [f"baseline={runs / baseline}"])]
    return launch.launch("gate", [*named, f"data_dir={runs}/cache", f"hydra.run.dir={out}", *words])


def test_the_better_model_passes_and_the_worse_one_does_not(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["max_drop.ndcg@10=5%", "attack=pgd", "eps=0.1"]
    assert run(runs, tmp_path / "yes", "good", "bad", "max_drop.ndcg@10=5%") == 0
    assert run(runs, tmp_path / "same", "good", "good", *words, "certain=true") == 0
    capfd.readouterr()
    assert run(runs, tmp_path / "no", "bad", "good", *words) == 1
    err = capfd.readouterr().err
    assert "the gate is shut" in err
    assert err.count("\n") == 1
    for name, failed in (("yes", 0), ("same", 0), ("no", 1)):
        out = tmp_path / name
        root = ET.parse(out / "junit.xml").getroot()
        metrics = json.loads((out / "metrics.json").read_text())
        assert int(str(root.get("failures"))) == metrics["gate/failed"] >= failed
        assert ("**PASS**" if not failed else "**FAIL**") in (out / "gate.md").read_text()
        assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_a_gate_that_is_shut_is_a_failed_job_of_a_sweep_however_often_it_is_asked(runs: Path, tmp_path: Path) -> None:
    words = [f"ckpt={runs / 'good'},{runs / 'bad'}", f"data_dir={runs}/cache", f"hydra.sweep.dir={tmp_path}/swept"]
    words += ["max_drop.ndcg@10=5%", f"baseline={runs / 'good'}"]
    for _ in range(2):
        assert launch.launch("gate", words, multirun=True) == 1
        found = list(csv.DictReader((tmp_path / "swept" / "summary.csv").open()))
        assert [(each["done"], each["failed"]) for each in found] == [("1", "0"), ("0", "1")]
        told = list(csv.DictReader((tmp_path / "swept" / "sweep.csv").open()))
        assert ["the gate is shut" in each["error"] for each in told] == [False, True]


def test_an_attack_is_about_all_places_that_are_judged(runs: Path, tmp_path: Path) -> None:
    words = ["max_harm.recall@20=99%", "attack=pgd", "attack.steps=3", "eps=0.1"]
    for name, more in (("own", []), ("said", ["goal.k=20"])):
        assert run(runs, tmp_path / name, "good", None, *words, *more) == 0
    own, said = (json.loads((tmp_path / each / "metrics.json").read_text()) for each in ("own", "said"))
    assert own["ckpt/attacked/recall@20"] == said["ckpt/attacked/recall@20"]
    assert "attack: pgd, eps 0.1, on the first 20 places" in (tmp_path / "own" / "gate.md").read_text()


def test_the_numbers_are_those_of_rrec_eval_and_rrec_attack(runs: Path, tmp_path: Path) -> None:
    words = ["max_harm.ndcg@10=99%", "at_least.ndcg@10=0", "attack=pgd", "attack.steps=3", "eps=0.1"]
    assert run(runs, tmp_path / "gate", "good", None, *words) == 0
    attack = [f"ckpt={runs / 'good'}", f"data_dir={runs}/cache", "attack=pgd", "attack.steps=3", "eps=0.1"]
    assert launch.launch("attack", [*attack, f"hydra.run.dir={tmp_path}/attack"]) == 0
    ours, theirs = (json.loads((tmp_path / each / "metrics.json").read_text()) for each in ("gate", "attack"))
    assert ours["ckpt/clean/ndcg@10"] == theirs["clean/ndcg@10"]
    assert ours["ckpt/attacked/ndcg@10"] == pytest.approx(theirs["attacked/ndcg@10"], abs=1e-12)


def test_no_attack_can_be_said(runs: Path, tmp_path: Path) -> None:
    assert run(runs, tmp_path / "run", "good", None, "at_least.ndcg@10=0", "attack=null") == 0


@pytest.mark.parametrize(
    ("baseline", "words", "told"),
    [
        (None, [], "gate checks nothing yet"),
        (None, ["max_drop.ndcg@10=5%"], "add baseline="),
        (None, ["at_least.ndcg@10=0", "attack=pgd"], "attack=pgd: nothing is checked under it"),
        ("bad", ["at_least.ndcg@10=0"], "nothing is compared with it"),
        (None, ["max_harm.ndcg@10=5%", "attack=pgd", "goal=fairness"], "goal=fairness: a gate is about quality"),
        (None, ["max_harm.ndcg@10=5%"], "add attack="),
        (None, ["at_least.colour=1"], "unknown metric 'colour'"),
        (None, ["at_least=1"], "name the metric, at_least.ndcg@10=1"),
        ("bad", ["max_drop.ndcg@10=5"], "write a share, 5% or 0.05"),
        ("bad", ["max_drop.ndcg@10=much"], "write a share, 5% or 0.05"),
        ("other", ["max_drop.ndcg@10=5%"], "there is nothing to compare"),
        ("bad", ["max_drop.gini@10=5%"], "max_drop.gini@10: neither more nor less of it is better"),
        (None, ["at_least.coverage@10=0", "certain=true"], "coverage@10 is no mean over users"),
    ],
)
def test_a_mistake_is_one_line(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], baseline: str | None, words: list[str], told: str
) -> None:
    capfd.readouterr()
    assert run(runs, tmp_path / "run", "good", baseline, *words) == 2  # 1 is the verdict of a gate that is shut
    err = capfd.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_table_that_is_wider_than_the_terminal_breaks_sentences_and_keeps_numbers_and_verdicts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show("t", ["check", "found", ""], [["the quality against that of the baseline", 0.12345, "pass"]])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert {"baseline", "0.1235", "pass"} <= set(printed.replace("│", " ").split())


def test_numbers_that_do_not_fit_side_by_side_are_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show("t", [f"column{number}" for number in range(8)], [[number + 0.12345 for number in range(8)]])
    printed = capsys.readouterr().out
    assert {f"{number}.1235" for number in range(8)} <= set(printed.replace("│", " ").split())
