"""The README and the pages of docs/: commands run or compose, outputs look as shown, files and links are there."""

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner

from robustbench_rec import composing, launch
from robustbench_rec.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTENSIONS = ROOT / "docs" / "extending.md"
LONG = "# long"
SMALLER = ["dataset.n_users=80", "dataset.n_items=60"]
"""What the commands of the pages, but for the README, are run with: the size of the data is not what they show."""


@dataclass(frozen=True)
class Command:
    """A line `$ …` of a page. long: not for CI to run. shown: the lines of its output that the page has."""

    line: str
    long: bool
    shown: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def commands(page: Path) -> list[Command]:
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = []
    for block in blocks:
        assert block.startswith("$ "), f"{page}: a console block begins with a command"
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, *shown = each.splitlines()
            found.append(Command(line, LONG in line, tuple(shown)))
    return found


def files(page: Path) -> dict[str, str]:
    """Blocks under a line that is their path."""
    text = page.read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w/.-]+)`:\n\n```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


ALL = {page: commands(page) for page in PAGES}
UNRUN = {each.line: each for found in ALL.values() for each in found if each.long}


def composed(words: list[str]) -> list[list[str]]:
    """Single runs in which everything that a sweep chooses comes up; of its numbers only the first."""
    choices = []
    for word in words:
        key, _, values = word.partition("=")
        several = [f"{key}={each}" for each in values.split(",")] if values and "[" not in values else [word]
        group = (composing.conf_dir() / key.lstrip("+").partition("@")[0]).is_dir()
        if word != "-m" and key != "resume":
            choices.append(several if group else several[:1])
    first = [each[0] for each in choices]
    others = [[*first[:at], other, *first[at + 1 :]] for at, each in enumerate(choices) for other in each[1:]]
    return [first, *others]


def spoken(line: str) -> str:
    """A line of output without what may differ from machine to machine: numbers, which item it is, frames, widths."""
    words = re.sub(r"[^\w\s@./:+…-]", " ", re.sub(r"-?\d+([.,:-]\d+)*", "0", line))
    return re.sub(r"[A-Z][a-z]+ [a-z]+ 0", "title", " ".join(words.split()))


def test_every_command_of_the_pages_is_rrec() -> None:
    assert len(ALL[ROOT / "README.md"]) >= 5
    assert {each.words[0] for found in ALL.values() for each in found} == {"rrec"}


def test_the_make_targets_of_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = {page: set(re.findall(r"^make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES}
    assert {"demo", "test"} <= said[ROOT / "README.md"]
    assert set().union(*said.values()) <= targets


@pytest.mark.parametrize("command", UNRUN.values(), ids=lambda each: each.line)
def test_a_long_command_composes(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    _, verb, *words = command.words
    if verb == "data":
        with composing.session():
            composing.typed(composing.hydra.compose("data", words[1:]), "data")
    elif verb in composing.config.ROOTS:
        for overrides in composed(words):
            assert launch.launch(verb, overrides, cfg="job") == 0
    else:
        told = CliRunner().invoke(app, [verb, words[0], "--help"] if verb in ("leaderboard", "sweep") else [verb, "-h"])
        assert told.exit_code == 0
        assert {word for word in words if word.startswith("-")} <= set(re.findall(r"(?<=\s)--?[\w-]+", told.output))


@pytest.mark.parametrize("page", [each for each in PAGES if any(not one.long for one in ALL[each])], ids=named)
def test_the_other_commands_of_a_page_run_in_their_order_and_say_what_it_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RREC_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    given = files(page)
    parts = {path: path.split("/") for path in given}
    for path, text in given.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    if any(each[0] == "conf" for each in parts.values()):
        conf = copytree(composing.conf_dir(), tmp_path / "conf", dirs_exist_ok=True)
        monkeypatch.setattr(composing, "conf_dir", lambda: conf)
    modules = [".".join(each).removesuffix(".py") for each in parts.values() if each[0] == "robustbench_rec"]
    for module in modules:
        package = import_module(module.rpartition(".")[0])
        there = [*package.__path__, str(tmp_path / package.__name__.replace(".", "/"))]
        monkeypatch.setattr(package, "__path__", there)
    try:
        for command in ALL[page]:
            if not command.long:
                smaller = SMALLER if "dataset=synthetic" in command.words and page.parent != ROOT else []
                done = CliRunner().invoke(app, [*command.words[1:], *smaller])
                assert done.exit_code == 0, f"{command.line}\n{done.output}"
                output = {spoken(line) for line in done.output.splitlines()}
                for line in command.shown:
                    assert line.strip() in ("", "…") or spoken(line) in output, f"{command.line}\n{line}\n{done.output}"
    finally:
        for module in modules:
            sys.modules.pop(module, None)


@pytest.mark.parametrize("group", ["models", "attacks", "defenses", "datasets"])
def test_the_page_on_extending_has_each_kind_in_two_files_and_uses_it(group: str) -> None:
    given = files(EXTENSIONS)
    kind = group.removesuffix("s")
    (name,) = [Path(path).stem for path in given if path.startswith(f"robustbench_rec/{group}/")]
    first = given[f"conf/{kind}/{name}.yaml"].splitlines()[0]
    assert first.startswith("# rrec ")
    assert f"{kind}={name}" in first
    used = {word for command in ALL[EXTENSIONS] if not command.long for word in command.words}
    assert f"{kind}={name}" in used


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{named(page)}: {link}"


@pytest.mark.parametrize("folder", [ROOT / "docs", ROOT / "docs" / "results"], ids=named)
def test_the_index_of_the_pages_is_complete(folder: Path) -> None:
    index = folder / "README.md"
    linked = {(folder / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", index.read_text("utf-8"))}
    below = [page for page in PAGES if page.is_relative_to(folder) and page != index]
    indexed = [each.parent for each in below if each.name == "README.md"]  # these name their pages themselves
    assert {page for page in below if page.parent not in indexed or page.name == "README.md"} <= linked
