import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_rec import __version__
from robustbench_rec.metrics import uncertainty

VERBS = ["train", "attack", "finetune", "distill", "eval", "recommend", "explain", "gate"]


def rrec(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robustbench_rec", *words]
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | plain | env)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["data", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = {"torch", "hydra", "omegaconf", "pandas", "numpy", "matplotlib"}
    code = f"""
import sys
from robustbench_rec.cli import app
try:
    app({words!r}, prog_name="rrec")
except SystemExit as end:
    assert not end.code, end.code
found = {heavy!r} & set(sys.modules)
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_packages() -> None:
    assert rrec("--version").stdout.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_shows_examples_on_lines_of_their_own(verb: str) -> None:
    examples = re.findall(rf"^ +rrec {verb} .*$", rrec(verb, "--help").stdout, re.MULTILINE)
    assert 2 <= len(examples) <= 5


def test_no_verb_shows_the_help_and_a_wrong_one_is_refused() -> None:
    assert "train" in rrec().stdout + rrec().stderr
    wrong = rrec("trian")
    assert wrong.returncode == 2
    assert "train" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--epochs", "3"], "no option --epochs; a setting has no dashes: epochs=<value>"),
        (["attack", "-m", "--eps=0.1"], "no option --eps; a setting has no dashes: eps=0.1"),
        (["train", "-model=mf"], "no option --model; a setting has no dashes: model=mf"),
        (["recommend", "ckpt=x", "-k=3"], "no option -k; a setting has no dashes: k=3"),
        (["data", "info", "--dataset=ml_100k"], "no option --dataset; a setting has no dashes: dataset=ml_100k"),
    ],
)
def test_a_setting_with_dashes_is_told_how_it_is_written(words: list[str], told: str) -> None:
    done = rrec(*words)
    assert (done.returncode, done.stderr) == (2, f"rrec: {told}\n")


def test_ls_shows_all_groups_with_their_names_and_counts() -> None:
    done = rrec("ls")
    assert done.returncode == 0
    assert re.search(r"^models +\d+ +.*kgat.*mf", done.stdout, re.MULTILINE)
    assert re.search(r"^losses +\d+ +.*bpr", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("models", "mf"),
        ("attacks", "pgd"),
        ("defenses", "awp"),
        ("datasets", "synthetic"),
        ("losses", "bpr"),
        ("metrics", "ndcg"),
        ("metrics", "gini"),
        ("metrics", "pru"),
        ("metrics", "rmse"),
        *(("metrics", name) for name in uncertainty.OF_CLICKS),
    ],
)
def test_ls_of_a_group_has_one_described_line_for_each_name(group: str, name: str) -> None:
    lines = rrec("ls", group, COLUMNS="40").stdout.splitlines()
    if group == "attacks":  # each followed by the threat that it declares
        assert all(
            re.fullmatch(r" +surface: .+ goal: .+ knowledge: .+ scope: .+ budget: .+", each) for each in lines[1::2]
        )
        lines = lines[::2]
    assert all(re.fullmatch(r"\w+ +\S.{10,}", line) for line in lines), lines
    assert not any("`[" in line for line in lines)  # a shape says nothing to who chooses
    assert name in [line.split()[0] for line in lines]


def test_ls_of_an_unknown_group_is_one_line_with_the_choices() -> None:
    done = rrec("ls", "model")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "rrec: unknown group 'model'; did you mean 'models'? (choices: adaptations, attacks, "
    )
    assert done.stderr.count("\n") == 1


def test_a_mistake_in_rrec_data_is_one_line(tmp_path: Path) -> None:
    done = rrec("data", "info", "dataset=table", f"data_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == "rrec: data info needs dataset.path=<value>\n"
    done = rrec("data", "info", "dataset=nope")
    assert done.returncode == 2
    assert done.stderr.startswith("rrec: unknown dataset 'nope'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "cursor", "expected"),
    [
        ("rrec tr", 1, {"train"}),
        ("rrec train model=kga", 2, {"model=kgat"}),
        ("rrec train model = kga", 4, {"kgat"}),
        ("rrec train -m model = kgat epo", 6, {"epochs=200"}),
        ("rrec data info dataset = syn", 5, {"synthetic"}),
        ("rrec ls mod", 2, {"models"}),
    ],
)
def test_bash_completes_verbs_choices_and_keys(line: str, cursor: int, expected: set[str]) -> None:
    done = rrec(_RREC_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(cursor))
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_complete_choices(shell: str) -> None:
    env = {"_RREC_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert "model=kgat" in rrec(**env, _TYPER_COMPLETE_ARGS="rrec train model=k").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_can_be_shown_for_every_shell(shell: str) -> None:
    done = rrec("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_RREC_COMPLETE" in done.stdout, done.stderr


def test_the_configuration_can_be_printed() -> None:
    printed = rrec("train", "--cfg", "job", "model=kgat").stdout
    assert "name: kgat" in printed


def test_a_run_whose_output_nobody_reads_to_its_end_has_its_results(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "train",
        "dataset=synthetic",
        "dataset.n_users=40",
        "dataset.n_items=30",
        "epochs=1",
        f"hydra.run.dir={out}",
    ]
    command = [sys.executable, "-m", "robustbench_rec", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        running.stdout.close()
    assert running.returncode == 0
    assert (out / "metrics.json").is_file()
