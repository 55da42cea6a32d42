"""rrec leaderboard fill."""

from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
from test_tasks import DATA

from robustbench_rec.errors import RrecError
from robustbench_rec.filling import fill
from robustbench_rec.launch import launch
from robustbench_rec.reports import cards

WORDS = [*DATA, "model.dim=8", "device=cpu", "threads=1"]


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of the steps, none of which is run."""
    commands: list[list[str]] = []

    def stopped(command: list[str], **_: Any) -> CompletedProcess[str]:
        commands.append(command[3:])
        return CompletedProcess(command, 1, "", "rrec: stopped")

    monkeypatch.setattr("robustbench_rec.filling.subprocess", SimpleNamespace(run=stopped))
    return commands


@pytest.mark.parametrize("finished", [True, False])
def test_filling_does_not_take_a_run_of_other_settings_for_what_is_asked(
    tmp_path: Path, began: list[list[str]], finished: bool
) -> None:
    out = tmp_path / "work" / "mf-none-0"
    assert launch("train", ["model=mf", "defense=none", "seed=0", *WORDS, "epochs=1", f"hydra.run.dir={out}"]) == 0
    if not finished:
        (out / "metrics.json").unlink()
        (out / "resume").mkdir()
    asked = (tmp_path / "cards", tmp_path / "work", ["mf"], ["none"], [0])
    for words, message in (
        ([*WORDS, "epochs=20"], "holds a run with other settings (epochs is 1 there, not 20)"),
        ([*WORDS, "epochs=1", "lr=0.05"], "(lr is 0.002 there, not 0.05)"),
        ([*WORDS, "epochs=1", "lrr=0.05"], "unknown key 'lrr'"),
    ):
        (failed,) = fill(*asked, words)
        assert failed.startswith("mf-none-0: ")
        assert message in failed
    assert not began
    (failed,) = fill(*asked, [*WORDS, "epochs=1", "threads=2"])
    assert failed == "mf-none-0: stopped"
    (went_on,) = began
    assert went_on[0] == ("attack" if finished else "train")
    assert finished or went_on[1] == f"resume='{out}'"


def test_what_an_event_is_ranked_against_is_said_to_every_step(tmp_path: Path, began: list[list[str]]) -> None:
    out = tmp_path / "work" / "mf-none-0"
    judged = [*WORDS, "dataset.n_items=200", "epochs=1", "protocol=sampled", "split=leave_one_out"]
    assert launch("train", ["model=mf", "defense=none", "seed=0", *judged, f"hydra.run.dir={out}"]) == 0
    fill(tmp_path / "cards", tmp_path / "work", ["mf"], ["none", "rawp_ft"], [0], judged)
    assert [each[0] for each in began] == ["attack", "finetune"]
    assert all("protocol=sampled" in each and "split=leave_one_out" not in each for each in began)


def test_a_fine_tuning_is_of_what_is_named_before_it(tmp_path: Path, began: list[list[str]]) -> None:
    work = tmp_path / "work"
    for defense in ("none", "rawp"):
        words = ["model=mf", f"defense={defense}", "seed=0", *WORDS, "epochs=1"]
        assert launch("train", [*words, f"hydra.run.dir={work / f'mf-{defense}-0'}"]) == 0
    fill(tmp_path / "cards", work, ["mf"], ["rawp_ft", "rawp+rawp_ft", "rawp+apr"], [0], [*WORDS, "epochs=1"])
    verbs = [(each[0], each[1], each[-1]) for each in began]
    assert verbs == [
        ("finetune", f"ckpt='{work}/mf-none-0'", f"hydra.run.dir='{work}/mf-rawp_ft-0'"),
        ("finetune", f"ckpt='{work}/mf-rawp-0'", f"hydra.run.dir='{work}/mf-rawp+rawp_ft-0'"),
        ("train", "model=mf", f"hydra.run.dir='{work}/mf-rawp+apr-0'"),
    ]
    assert "defense=[rawp,apr]" in began[2]


@pytest.mark.slow
def test_filling_trains_tunes_attacks_and_adds_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "LIMITS", {})
    words = [*DATA, "epochs=2", "model.dim=8", "device=cpu", "threads=1"]
    asked = (tmp_path / "cards", tmp_path / "work", ["mf", "pop"], ["none", "rawp_ft", "rawp+rawp_ft"], [0], words)
    failed = fill(*asked)
    assert {each.partition(":")[0] for each in failed} == {"pop-none-0", "pop-rawp_ft-0", "pop-rawp+rawp_ft-0"}
    assert all("\n" not in each for each in failed)
    made = {cards.load(each).defense for each in (tmp_path / "cards").iterdir()}
    assert made == {"none", "rawp_ft", "rawp+rawp_ft"}
    stamps = {each: each.stat().st_mtime_ns for each in (tmp_path / "work").glob("mf-*/metrics.json")}
    assert len(stamps) == 7  # one of them the training with rawp alone
    fill(*asked)
    assert stamps == {each: each.stat().st_mtime_ns for each in (tmp_path / "work").glob("mf-*/metrics.json")}


@pytest.mark.parametrize(
    ("chosen", "defenses", "message"),
    [
        (["mff"], ["none"], "unknown model 'mff'"),
        (["mf"], ["rawp_fd"], "unknown defense or fine-tuning 'rawp_fd'"),
        (["mf"], ["rawp+rawp_fd"], "unknown defense or fine-tuning 'rawp_fd'"),
        (["mf"], ["rawp_ft+rawp"], "defences first, then what fine-tunes"),
    ],
)
def test_a_name_that_is_none_is_said_before_anything_runs(
    tmp_path: Path, chosen: list[str], defenses: list[str], message: str
) -> None:
    with pytest.raises(RrecError, match=message):
        fill(tmp_path / "cards", tmp_path / "work", chosen, defenses, [0], [])
    assert not list(tmp_path.iterdir())
