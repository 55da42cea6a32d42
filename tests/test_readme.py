import re
import shlex
import sys
from itertools import product
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner

import robustbench_rec.models
from robustbench_rec import composing, launch
from robustbench_rec.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(line[2:], comments=True) for block in BLOCKS for line in block.splitlines() if line[:2] == "$ "]
QUICK_WITH = "dataset=synthetic"


def composed(words: list[str]) -> list[list[str]]:
    """The single runs that a command stands for."""
    plain = [word for word in words if word != "-m"]
    values = [word.split(",") if "=" in word and "[" not in word else [word] for word in plain]
    choices = [[each[0], *(f"{each[0].partition('=')[0]}={rest}" for rest in each[1:])] for each in values]
    return [list(each) for each in product(*choices)]


def test_the_readme_has_commands_and_all_of_them_are_rrec() -> None:
    assert len(COMMANDS) >= 5
    assert {command[0] for command in COMMANDS} == {"rrec"}


def test_the_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) <= targets
    assert set(re.findall(r"^make ([a-z]+)", contributing, re.MULTILINE)) <= targets


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[1] in composing.config.ROOTS], ids=" ".join)
def test_every_command_of_the_readme_composes(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = command[3:] if command[1] == "data" else command[2:]
    if command[1] == "data":
        with composing.session():
            composing.typed(composing.hydra.compose("data", words), "data")
        return
    for overrides in composed([each for each in words if not each.startswith("resume=")]):
        assert launch.launch(command[1], overrides, cfg="job") == 0


@pytest.mark.parametrize("command", [each for each in COMMANDS if each[1] == "leaderboard"], ids=" ".join)
def test_the_options_of_the_leaderboard_commands_exist(command: list[str]) -> None:
    told = CliRunner().invoke(app, [*command[1:3], "--help"])
    assert told.exit_code == 0
    assert {word for word in command if word.startswith("-")} <= set(re.findall(r"(?<=\s)--?\w+", told.output))


def test_the_quick_commands_of_the_readme_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RREC_DATA", str(tmp_path / "cache"))
    ran = 0
    for command in COMMANDS:
        source = [word.partition("=")[2] for word in command if word.startswith("ckpt=")]
        judged = (
            command[1] in ("attack", "eval", "recommend", "explain", "gate") and source and Path(source[0]).is_dir()
        )
        if "-m" not in command and (QUICK_WITH in command or judged or command[1] in ("ls", "report")):
            done = CliRunner().invoke(app, command[1:])
            assert done.exit_code == 0, f"{' '.join(command)}\n{done.output}"
            ran += 1
    assert ran >= 4


def test_the_model_in_two_files_of_the_contributing_page_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    (module,) = [path for path in files if path.startswith("robustbench_rec/models/")]
    (yaml,) = [path for path in files if path.startswith("conf/model/")]
    assert len(files) == 2
    conf = copytree(composing.conf_dir(), tmp_path / "conf")
    (conf / "model" / Path(yaml).name).write_text(files[yaml], encoding="utf-8")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / Path(module).name).write_text(files[module], encoding="utf-8")
    monkeypatch.setattr(composing, "conf_dir", lambda: conf)
    monkeypatch.setattr(
        robustbench_rec.models, "__path__", [*robustbench_rec.models.__path__, str(tmp_path / "models")]
    )
    monkeypatch.chdir(tmp_path)
    name = Path(module).stem
    words = [f"model={name}", QUICK_WITH, "epochs=1", "data_dir=cache", "hydra.run.dir=run"]
    try:
        assert launch.launch("train", words) == 0
    finally:
        sys.modules.pop(f"robustbench_rec.models.{name}", None)
    assert (tmp_path / "run" / "metrics.json").is_file()
