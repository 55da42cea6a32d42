import ast
import csv
import errno
import json
import logging
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import compose

from robustbench_rec import composing, config
from robustbench_rec.composing.completion import complete
from robustbench_rec.composing.words import chosen, texts
from robustbench_rec.errors import RrecError
from robustbench_rec.files import held
from robustbench_rec.launch import launch
from robustbench_rec.reports import plots
from robustbench_rec.reports.summary import Job, Summary

ROOT = Path(__file__).resolve().parents[1]


def train(cfg: config.Train, out: Path) -> dict[str, float]:
    if cfg.lr < 0:
        raise RrecError("lr must not be negative")
    if cfg.seed == 13:
        raise ValueError("a bug")
    if cfg.seed == 14:
        (out / "resume").mkdir()
        raise KeyboardInterrupt
    return {"valid/ndcg@10": 1 - abs(cfg.lr - 0.01), "test/ndcg@10": cfg.lr, "test/auc": 0.5}


def attack(cfg: config.Attack, out: Path) -> dict[str, float]:
    if cfg.eps < 0:
        raise RrecError("eps must not be negative")
    strength = 2 if cfg.attack["name"] == "pgd" else 1
    return {"clean/ndcg@10": 0.3, "attacked/ndcg@10": 0.3 - strength * cfg.eps, "drop/ndcg@10": -strength * cfg.eps}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and stand-ins for the verbs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for verb, run in {"train": train, "finetune": train, "attack": attack}.items():
        monkeypatch.setitem(sys.modules, f"robustbench_rec.tasks.{verb}", SimpleNamespace(run=run))
    return tmp_path


def only_run(verb: str) -> Path:
    (run,) = Path(f"outputs/{verb}").glob("*/*")
    return run


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file() and path.parent.name != ".hydra"}


def test_a_run_writes_its_metrics_log_and_overrides_into_its_own_directory() -> None:
    assert launch("train", ["lr=0.02", "model=pop"]) == 0
    run = only_run("train")
    assert files(Path("outputs")) == {"metrics.json", "train.log"}
    assert json.loads((run / "metrics.json").read_text())["test/ndcg@10"] == 0.02
    assert (run / ".hydra/overrides.yaml").read_text() == "- lr=0.02\n- model=pop\n"


def test_a_run_leaves_the_process_as_it_was() -> None:
    before = list(sys.argv), list(logging.getLogger().handlers)
    assert launch("train", []) == 0
    assert (sys.argv, logging.getLogger().handlers) == before


def test_two_runs_have_two_directories() -> None:
    assert launch("train", []) == launch("train", []) == 0
    assert len(list(Path("outputs/train").glob("*/*"))) == 2


MISTAKES = {
    "unknown model": ("train", ["model=mff"], 2, "unknown model 'mff'; did you mean 'mf'? (choices: "),
    "unknown dataset": ("train", ["dataset=ml_100"], 2, "unknown dataset 'ml_100'; did you mean 'ml_100k'?"),
    "unknown attack": ("attack", ["ckpt=x", "attack=pgdd"], 2, "unknown attack 'pgdd'; did you mean 'pgd'?"),
    "unknown key": ("train", ["epoch=3"], 2, "unknown key 'epoch'; did you mean 'epochs'?"),
    "unknown nested key": ("train", ["model.dimm=3"], 2, "unknown key 'model.dimm'; did you mean 'model.dim'?"),
    "key without its group": ("train", ["user_core=3"], 2, "did you mean 'prepare.user_core'?"),
    "unknown group": ("train", ["modle=mf"], 2, "unknown key 'modle'; did you mean 'model'?"),
    "group of another verb": ("eval", ["ckpt=x", "model=mf"], 2, "unknown key 'model'"),
    "added key": ("train", ["+foo=1"], 2, "unknown key 'foo'"),
    "deleted key": ("train", ["~lr"], 2, "train needs lr=<value>"),
    "text for a number": ("train", ["lr=abc"], 2, "lr: Value 'abc'"),
    "fraction for a whole number": ("train", ["epochs=1.5"], 2, "epochs: Value '1.5'"),
    "number for a list": ("train", ["top_k=5"], 2, "top_k=[a,b]"),
    "number for a group": ("train", ["model=3"], 2, "unknown model '3'"),
    "nothing for a group": ("train", ["noise=null"], 2, "unknown noise 'null'"),
    "nothing for a group of a question": (
        "recommend",
        ["ckpt=x", "user=1", "tracker=null"],
        2,
        "unknown tracker 'null'",
    ),
    "several of a group of one": ("train", ["noise=[label_flip,sparsify]"], 2, "noise is one choice, not a list"),
    "several models": ("train", ["model=[mf,lightgcn]"], 2, "a sweep is -m model=a,b"),
    "a comma in a value": ("train", ["start=a b, c"], 2, """one value 'start="a b, c"')"""),
    "a quote in a value": ("train", ["start=O'Brien"], 2, r'''is quoted inside: "start=\"O'Brien\""'''),
    "quotes in a value": ("train", ['start=a "b"'], 2, r'''is quoted inside: "start='a \"b\"'"'''),
    "the data of a checkpoint": ("attack", ["ckpt=x", "dataset=ml_100k"], 2, "the dataset is that of ckpt"),
    "signs that Hydra does not read": ("train", ["start=été"], 2, """is quoted inside: 'start="été"'"""),
    "a seed that is too large": (
        "train",
        ["seed=99999999999999999999999"],
        2,
        "seed=99999999999999999999999: a seed is",
    ),
    "a seed below 0": (
        "train",
        ["dataset=synthetic", "dataset.seed=-1"],
        2,
        "dataset.seed=-1: a seed is a whole number",
    ),
    "a seed of a part": ("train", ["split.seed=9223372036854775808"], 2, "split.seed=9223372036854775808: a seed is"),
    "a seed that decides nothing": (
        "attack",
        ["ckpt=x", "seed=3"],
        2,
        "seed=3 draws nothing in rrec attack: take attack.seed",
    ),
    "a seed that decides nothing in an evaluation": (
        "eval",
        ["ckpt=x", "seed=1"],
        2,
        "seed=1 draws nothing in rrec eval",
    ),
    "missing checkpoint": ("attack", [], 2, "attack needs ckpt=<run directory>"),
    "gate without a checkpoint": ("gate", [], 2, "gate needs ckpt=<run directory>"),
    "missing teacher": ("distill", [], 2, "distill needs teacher=<run directory>"),
    "part of a list of terms": (
        "distill",
        ["teacher=x", "distill=[listwise,]"],
        2,
        "several are distill=[first,…], each inside the one before",
    ),
    "missing path": ("train", ["dataset=table"], 2, "dataset.path=<value>"),
    "no key": ("train", ["=3"], 2, "cannot read '=3': write key=value"),
    "no place for a run": ("train", ["hydra.run.dir="], 2, "hydra.run.dir= names no directory"),
    "a budget of nothing": ("train", ["eps=0.1"], 2, "eps is the budget of attack=, of which there is none"),
    "no equals sign": ("train", ["foo"], 2, "cannot read 'foo': write key=value"),
    "broken value": ("train", ["top_k=[1"], 2, "cannot read 'top_k=[1'"),
    "unknown interpolation": ("train", ["lr=${nope}"], 2, "nope"),
    "sweep without -m": ("train", ["lr=0.1,0.2"], 2, "add -m"),
    "unknown launcher": ("train", ["hydra/launcher=nope"], 2, "unknown hydra/launcher 'nope'"),
    "refused by the task": ("train", ["lr=-1"], 2, "lr must not be negative"),
    "key of no choice": (
        "train",
        ["defense.eps=1"],
        2,
        "unknown key 'defense.eps': there is no defense yet; add defense=",
    ),
    "key of null": (
        "gate",
        ["ckpt=x", "attack.eps=1"],
        2,
        "unknown key 'attack.eps': there is no attack yet; add attack=",
    ),
    "resume of nothing": ("train", ["resume=nope"], 2, "resume: the run directory nope does not exist"),
}


@pytest.mark.parametrize(("verb", "overrides", "status", "fragment"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_leaves_nothing(
    verb: str, overrides: list[str], status: int, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(verb, overrides) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rrec: ")
    assert err.count("\n") == 1
    assert fragment in err
    assert not files(Path())


def test_experiments_compose_and_no_choice_can_be_said_where_it_is_the_default() -> None:
    assert chosen("train", ["experiment=[ctr,kgat_rawp]"]) == ["experiment=[ctr,kgat_rawp]"]
    assert chosen("gate", ["attack=null", "seed=1"]) == ["seed=1"]
    assert chosen("train", ["defense=[apr,rawp]", "seed=null"])[0] == "defense=apr"


def test_an_error_that_is_no_mistake_keeps_its_traceback_in_the_log() -> None:
    assert launch("train", ["seed=13"]) == 1
    log = (only_run("train") / "train.log").read_text()
    assert "ValueError: a bug" in log
    assert "Traceback" in log
    assert "metrics.json" not in files(Path())


@pytest.mark.parametrize("place", ["", "hydra.run.dir=mine/deep/run", "hydra.run.dir='{}/run'"])
def test_a_refused_run_leaves_nothing_and_takes_nothing_that_was_there(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def refuse(cfg: config.Train, out: Path) -> dict[str, float]:
        raise RrecError("no")

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=refuse))
    other = tmp_path_factory.mktemp("other")
    words = [place.format(other)] if place else []
    assert launch("train", ["seed=1", *words]) == 2
    assert not any(Path().iterdir())
    assert not any(other.iterdir())
    kept = Path("mine/note.txt") if "mine" in place else Path("outputs/note.txt")
    kept.parent.mkdir()
    kept.touch()
    assert launch("train", ["seed=1", *words]) == 2
    assert files(Path()) == {"note.txt"}
    assert [*kept.parent.iterdir()] == [kept]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 240000000000 bytes."),
            "223.5 GiB",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "2.00 GiB"),
        (MemoryError(), "no memory; a smaller"),
    ],
)
def test_what_does_not_fit_into_memory_is_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(cfg: config.Train, out: Path) -> dict[str, float]:
        (out / "resume").mkdir()
        raise error

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=fail))
    assert launch("train", []) == 1
    err = capsys.readouterr().err
    assert err.startswith("rrec: there is no memory")
    assert told in err
    assert err.count("\n") == 1


def test_an_interrupt_is_one_line_that_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["seed=14"]) == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"rrec train resume={only_run('train')}" in err


def test_printing_the_configuration_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["lr=0.5"], cfg="job") == 0
    assert "lr: 0.5" in capsys.readouterr().out
    assert not Path("outputs").exists()


def test_resume_takes_everything_from_the_stored_run_and_writes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch("train", ["lr=0.02", "model=pop", "seed=13", r"hydra.run.dir='it\'s here'"]) == 1
    run, seen = Path("it's here"), []
    stored = {path: path.read_bytes() for path in (run / ".hydra").iterdir()}

    def again(cfg: config.Train, out: Path) -> dict[str, float]:
        assert out == run.resolve()
        seen.append((cfg.lr, cfg.model["name"], cfg.seed, cfg.threads))
        if len(seen) < 3:
            raise RrecError("stopped again")
        return {"test/auc": 0.5}

    monkeypatch.setitem(sys.modules, "robustbench_rec.tasks.train", SimpleNamespace(run=again))
    assert [launch("train", ["resume=it's here", *more]) for more in ([], [], ["threads=2"])] == [1, 1, 0]
    assert seen == [(0.02, "pop", 13, 0)] * 2 + [(0.02, "pop", 13, 2)]
    assert {path: path.read_bytes() for path in (run / ".hydra").iterdir()} == stored
    assert not Path("outputs").exists()


FOREIGN = (
    "+hydra.callbacks.x._target_=pandas.read_pickle",
    "~hydra.callbacks.x",
    "hydra/launcher=joblib",
    "+model@hydra.callbacks.x=mf",
    "hydra.searchpath=[file:///tmp]",
    "--experimental-rerun=job.pickle",
    "--config-dir=/tmp",
    "+attack.x={_target_:os.system}",
)
"""Words that no run stores: Hydra would load or run what they name."""


@pytest.mark.parametrize(
    ("prepare", "verb", "extra", "multirun", "fragment"),
    [
        (lambda run: None, "train", ["epochs=3"], False, "drop 'epochs=3'"),
        (lambda run: None, "train", [], True, "drop -m"),
        (lambda run: None, "finetune", [], False, "is a run of `rrec train`"),
        (lambda run: (run / "metrics.json").write_text("{}"), "train", [], False, "is finished"),
        (lambda run: (run / ".hydra/overrides.yaml").unlink(), "train", [], False, "is not a run directory"),
        (lambda run: (run / ".hydra/overrides.yaml").write_text(""), "train", [], False, "start it anew"),
        (lambda run: (run / ".hydra/overrides.yaml").write_text("- 'a"), "train", [], False, "start it anew"),
        *(
            (lambda run, word=word: (run / ".hydra/overrides.yaml").write_text(f"- seed=13\n- {word}"), *rest)
            for word in FOREIGN
            for rest in (("train", [], False, "which rrec does not take from a file"),)
        ),
    ],
)
def test_a_resume_that_cannot_be_is_one_line(
    prepare: Callable[[Path], object],
    verb: str,
    extra: list[str],
    multirun: bool,
    fragment: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch("train", ["hydra.run.dir=run", "seed=13"]) == 1
    prepare(Path("run"))
    capsys.readouterr()
    assert launch(verb, ["resume=run", *extra], multirun=multirun) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert fragment in err


def contents(directory: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("first", "verb", "words", "fragment"),
    [
        (["lr=0.02"], "train", ["lr=0.03"], "holds a run with other settings (lr is 0.02 there, not 0.03)"),
        (["lr=0.02"], "train", ["lr=0.02", "model=pop"], "(model.name is mf there, not pop)"),
        (["lr=0.02"], "attack", ["ckpt=run"], "holds a run of `rrec train`"),
        (["seed=14"], "train", ["seed=1"], "(seed is 14 there, not 1)"),  # it was interrupted
    ],
)
def test_a_directory_that_holds_another_run_is_refused_and_left_as_it_was(
    first: list[str], verb: str, words: list[str], fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("train", ["hydra.run.dir=run", *first]) in (0, 130)
    before = contents("run")
    capsys.readouterr()
    assert launch(verb, ["hydra.run.dir=run", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert fragment in err
    assert "name another hydra.run.dir" in err
    assert contents("run") == before


def test_a_run_and_a_sweep_do_not_share_a_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["hydra.run.dir=run"]) == 0
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=sweep"], multirun=True) == 0
    before = {**contents("run"), **contents("sweep")}
    capsys.readouterr()
    assert launch("train", ["seed=0,1", "hydra.sweep.dir=run"], multirun=True) == 2
    assert "rrec: run holds a run: name another hydra.sweep.dir" in capsys.readouterr().err
    assert launch("train", ["hydra.run.dir=sweep"]) == 2
    assert "rrec: sweep holds a sweep: name another hydra.run.dir" in capsys.readouterr().err
    assert {**contents("run"), **contents("sweep")} == before
    assert launch("train", ["hydra.run.dir=runs/0"]) == 0
    before = contents("runs")
    assert launch("train", ["model=pop,mf", "hydra.sweep.dir=runs"], multirun=True) == 2
    assert "rrec: runs/0 holds a run: name another hydra.sweep.dir" in capsys.readouterr().err
    assert contents("runs") == before


@pytest.mark.parametrize("words", [["hydra.run.dir=run"], ["resume=run"]])
def test_a_run_that_another_process_is_at_is_left_to_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["hydra.run.dir=run", "seed=14"]) == 130
    metrics = Path("run/metrics.json")
    with held(Path("run/lock")):
        before = contents("run")
        assert launch("train", [*words, "threads=2"] if "resume=run" in words else [*words, "seed=14"]) == 2
        assert contents("run") == before
    assert "run: another process is still at it" in capsys.readouterr().err
    assert not metrics.exists()


def test_a_run_that_another_process_has_just_begun_is_left_to_it() -> None:
    Path("run").mkdir()
    with held(Path("run/lock")):
        assert launch("train", ["hydra.run.dir=run", "model=pop"]) == 2
        assert contents("run") == {Path("run/lock"): b""}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["hydra.run.dir=run", "seed=13"]) == 1
    capsys.readouterr()
    for path in (Path("run"), Path("run/.hydra")):
        path.chmod(0o500)
    try:
        for words in (["hydra.run.dir=run", "seed=13"], ["resume=run"]):
            assert launch("train", words) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1
            assert "cannot write" in err
    finally:
        for path in (Path("run"), Path("run/.hydra")):
            path.chmod(0o700)


def test_what_the_system_refuses_before_a_run_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("Unable to configure handler 'file'") from error

    monkeypatch.setattr("robustbench_rec.composing.register_schemas", full)
    assert launch("train", ["seed=13"]) == 2
    assert "cannot write the directory of the run: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), RuntimeError("a fault of our own")])
def test_what_is_no_refusal_to_write_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/nonexistent")
        except PermissionError:
            raise error  # noqa: B904 - what came before is its context

    monkeypatch.setattr("robustbench_rec.composing.register_schemas", fails)
    with pytest.raises(type(error)):
        launch("train", ["seed=13"])


def test_a_run_whose_settings_cannot_be_read_is_left_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["hydra.run.dir=run"]) == 0
    Path("run/.hydra/config.yaml").write_text("")
    assert launch("train", ["hydra.run.dir=run"]) == 2
    assert "settings cannot be read" in capsys.readouterr().err


def test_the_same_run_can_be_done_again_and_a_failed_one_with_other_settings() -> None:
    words = ["lr=0.02", "hydra.run.dir=run"]
    assert launch("train", words) == 0
    Path("run/metrics.json").write_text("{}")
    assert launch("train", [*words, "threads=2", "data_dir=elsewhere"]) == 0
    assert json.loads(Path("run/metrics.json").read_text())["test/ndcg@10"] == 0.02
    assert launch("train", ["lr=-1", "hydra.run.dir=failed"]) == 2
    assert launch("train", ["lr=0.02", "hydra.run.dir=failed"]) == 0


def sweep_rows(verb: str) -> list[dict[str, str]]:
    (path,) = Path(f"outputs/{verb}/multirun").glob("*/*/sweep.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_goes_on_after_a_failed_job_and_ends_with_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["model=pop", "lr=0.01,-1,0.02", "seed=0,13"], multirun=True) == 1
    rows = sweep_rows("train")
    assert [(row["lr"], row["seed"]) for row in rows][:2] == [("0.01", "0"), ("0.01", "13")]
    assert "model" not in rows[0]
    assert [row["error"] for row in rows] == [
        "",
        "ValueError: a bug",
        "lr must not be negative",
        "lr must not be negative",
        "",
        "ValueError: a bug",
    ]
    assert [row["test/ndcg@10"] for row in rows] == ["0.01", "", "", "", "0.02", ""]
    out, err = capsys.readouterr()
    assert "rrec: job 2 (model=pop lr=-1 seed=0): lr must not be negative\n" in err
    assert out.count("1 of 2 │") == 2
    assert out.count("failed │") == 1
    assert "ndcg@10" in out
    assert "auc" not in out, "a metric that is the same in all jobs"


def test_many_security_curves_have_a_panel_for_each_value_of_the_longest_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[str]] = {}
    draw = plots.panels

    def spy(found: Mapping[str, Sequence[plots.Curve]], *words: Any, **more: Any) -> None:
        seen.update({name: [f"{each.label} {each.color}" for each in of] for name, of in found.items()})
        draw(found, *words, **more)

    monkeypatch.setattr(plots, "panels", spy)
    assert launch("attack", ["ckpt=x,y", "eps=0,0.1", "attack=pgd,fgsm,fgm,bim"], multirun=True) == 0
    told = ["attacked ckpt=x 0", f"clean {plots.GREY}", "attacked ckpt=y 1"]
    assert seen == {f"attack={name}": told for name in ("pgd", "fgsm", "fgm", "bim")}
    (curve,) = Path("outputs/attack/multirun").glob("*/*/security_curve.png")
    assert curve.stat().st_size > 10_000


def test_runs_are_called_by_their_model_and_what_sets_their_path_apart(capsys: pytest.CaptureFixture[str]) -> None:
    for name, stored in {"0": '{"model": {"name": "mf"}}', "kgat": '{"model": {"name": "kgat"}}', "2": "{"}.items():
        Path("runs/kept", name).mkdir(parents=True)
        Path("runs/kept", name, "model.json").write_text(stored)
    there = Path("runs/kept/kgat").absolute()
    assert launch("attack", [f"ckpt=runs/kept/0,{there},runs/kept/2", "attack=pgd,fgsm"], multirun=True) == 0
    out = capsys.readouterr().out
    assert [out.count(f" {each} ") for each in ("mf (0)", "kgat", "2", "runs/kept")] == [2, 2, 3, 0]  # and job 2
    assert {row["ckpt"] for row in sweep_rows("attack")} == {"runs/kept/0", str(there), "runs/kept/2"}
    (told,) = Path("outputs/attack/multirun").glob("*/*/summary.md")
    assert "| mf (0) | fgsm |" in told.read_text()


def test_fake_users_are_called_by_what_sets_their_path_apart(capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        Path("fakes", name).mkdir(parents=True)
    assert launch("attack", ["ckpt=x", "poison=file", "poison.path=fakes/a,fakes/b"], multirun=True) == 0
    out = capsys.readouterr().out
    assert [out.count(f"│ {each} ") for each in ("a", "b", "fakes")] == [1, 1, 0]


def test_a_sweep_of_an_attack_over_eps_draws_the_security_curve() -> None:
    assert launch("attack", ["ckpt=x", "eps=0,0.05,0.1", "attack=pgd,fgsm"], multirun=True) == 0
    (curve,) = Path("outputs/attack/multirun").glob("*/*/security_curve.png")
    assert curve.read_bytes().startswith(b"\x89PNG")
    assert len(sweep_rows("attack")) == 6


def test_a_sweep_with_a_wrong_name_runs_no_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train", ["model=pop,nope"], multirun=True) == 2
    assert capsys.readouterr().err.endswith("\n")
    assert files(Path()) == set()
    assert not Path("outputs").exists()


def test_the_swept_keys_are_those_that_differ() -> None:
    jobs = [Job(str(n), {"model": "mf", "lr": lr}, {}) for n, lr in enumerate(["1", "2"])]
    assert Summary(jobs, "train").swept == ["lr"]
    assert Summary(jobs[:1], "train").swept == ["model", "lr"]


def test_the_optuna_sweeper_maximises_the_monitor_and_outlives_failed_trials() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["hparams=optuna", "hydra.sweeper.n_trials=3", "~hydra.sweeper.params.weight_decay"]
    assert launch("train", [*words, "hydra.sweeper.params.lr='range(-0.01,0.02,step=0.01)'"], multirun=True) in (0, 1)
    (found,) = Path("outputs/train/multirun").glob("*/*/optimization_results.yaml")
    best = max((row for row in sweep_rows("train") if not row["error"]), key=lambda row: float(row["valid/ndcg@10"]))
    assert f"best_value: {best['valid/ndcg@10']}" in found.read_text()


def test_optuna_trials_that_all_fail_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert launch("train", ["hparams=optuna", "hydra.sweeper.n_trials=2", "lr=-1"], multirun=True) == 1
    assert "rrec: the sweep stopped: " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_parallel_launchers_give_the_same_table_and_status(launcher: str, here: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    words = f"train -m dataset=synthetic model=pop seed=0 monitor=ndcg@10,nope hydra/launcher={launcher}"
    command = [sys.executable, "-m", "robustbench_rec", *words.split(), "data_dir=cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [bool(row["error"]) for row in sweep_rows("train")] == [False, True], done.stderr
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "words", "word", "expected"),
    [
        ("train", [], "model=mf", ["model=mf"]),
        ("train", [], "epo", ["epochs=200"]),
        ("train", [], "top", ["top_k=[10,20]"]),
        ("train", ["model=kgat"], "model.la", ["model.layers="]),
        ("train", ["model", "="], "mf", ["mf"]),
        ("attack", [], "ck", ["ckpt="]),
        ("attack", [], "model=", []),
        ("train", ["nonsense"], "mod", []),
        ("train", ["seed=0,1", "model=kgat,mf", "top_k=[5,10]"], "model.la", ["model.layers="]),
        ("gate", [], "cert", ["certain=false"]),
        ("gate", ["max_drop.ndcg@10=5%"], "attack=pg", ["attack=pgd"]),
        ("explain", [], "hop", ["hops=2"]),
        ("train", [], "hydra.r", ["hydra.run.dir="]),
        ("recommend", [], "hydra.r", []),
    ],
)
def test_completion_offers_choices_and_keys_of_the_composed_configuration(
    verb: str, words: list[str], word: str, expected: list[str]
) -> None:
    found = complete(verb, words, word)
    assert [each[: len(want)] for each, want in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize("verb", sorted(config.ROOTS))
def test_every_verb_completes_its_keys_and_choices(verb: str) -> None:
    found = complete(verb, [], "")
    assert not [each for each in found if set(each.partition("=")[2]) & set("${}\\\"'")]
    roots = {each.partition("=")[0].partition(".")[0] for each in found}
    assert roots >= {each.name for each in fields(config.ROOTS[verb])}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("user=1e5", "1e5"),
        ("user=1_000", "1_000"),
        ("user=true", "true"),
        ("user=007", "007"),
        ("user=a b (c)", "a b (c)"),
        ("user='x=y'", "x=y"),
        ("user=[0x1F, 1.0]", ["0x1F", "1.0"]),
        ("user=null", None),
    ],
)
@pytest.mark.parametrize("verb", ["recommend", "explain"])
def test_an_id_is_what_was_written(verb: str, said: str, wanted: object) -> None:
    found = compose(verb, *texts(verb, [said, "ckpt=x"])).user
    assert found == wanted


def test_ids_are_quoted_for_the_keys_of_the_verb_alone() -> None:
    assert texts("recommend", ["k=10", "item=1e5"]) == ["k=10", "item=1e5"]
    assert texts("train", ["user=1e5"]) == ["user=1e5"]


@pytest.mark.parametrize("said", ["true", "own", '"true"'])
def test_true_labels_are_a_word(said: str) -> None:
    found = composing.typed(compose("attack", *texts("attack", ["ckpt=x", f"labels={said}"])), "attack")
    assert found.labels == said.strip('"')


def test_words_are_quoted_one_by_one_in_a_sweep() -> None:
    assert texts("attack", ["labels=true,own"]) == ['labels="true","own"']
    assert texts("attack", ["labels=choice(true,own)"]) == ["labels=choice(true,own)"]


@pytest.mark.slow
def test_the_wheel_works_from_another_environment_outside_the_repository(here: Path) -> None:
    checkout = here / "checkout"
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in listed:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())

    def quiet(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    quiet(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", checkout)
    (wheel,) = (here / "dist").glob("*.whl")
    assert list((here / "dist").glob("*.tar.gz"))
    quiet(sys.executable, "-m", "venv", "other")
    scripts = here / "other" / "bin"
    quiet(scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    # the dependencies are those of this environment; an editable install in it does not count
    site = quiet(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = quiet(
        scripts / "python", "-c", "from robustbench_rec import composing; print(composing.conf_dir())"
    ).strip()
    assert Path(where) == Path(site) / "robustbench_rec" / "conf"
    assert "train" in quiet(scripts / "rrec", "--help")
    assert "mf" in quiet(scripts / "rrec", "ls", "models")
    words = "train dataset=synthetic model=mf epochs=1 data_dir=cache hydra.run.dir=run"
    quiet(scripts / "rrec", *words.split())
    assert json.loads((here / "run" / "metrics.json").read_text())


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: each for name, each in project["optional-dependencies"].items() if name != "test"}
    declared = [*project["dependencies"], *(each for extra in extras.values() for each in extra)]
    names = {re.split(r"[<>=\[;]", each)[0].lower().replace("_", "-") for each in declared}
    imported: set[str] = set()
    for path in (ROOT / "robustbench_rec").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    owners = packages_distributions()
    for package in imported - set(sys.stdlib_module_names) - {"robustbench_rec"}:
        assert {each.lower().replace("_", "-") for each in owners.get(package, [package])} & names, (
            f"{package} is not in dependencies"
        )
