"""An attack that was killed goes on where it was, and ends as an undisturbed one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import compose
from torch import Tensor

from robustbench_rec import composing
from robustbench_rec.batch import Batch
from robustbench_rec.evaluation.base import Keeper
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import attack, journal, train
from robustbench_rec.tasks.journal import Journal

DATA = ("dataset=synthetic", "dataset.n_users=40", "dataset.n_items=30", "dataset.events_per_user=10", "device=cpu")
MODELS = {
    "mf": ("model=mf", "model.dim=8"),
    "lightgcn": ("model=lightgcn", "model.dim=8"),
    "sasrec": ("model=sasrec", "model.dim=8", "split=leave_one_out"),
    "lstm_text": ("model=lstm_text", "model.token_dim=6", "model.state_dim=5", "model.field_dim=4"),
}
ATTACKS = {
    "pgd": ("mf", "attack=pgd", "attack.restarts=2", "attack.momentum=0.9"),
    "pgd of each user": ("mf", "attack=pgd", "attack.steps=2", "attack.scope=user"),
    "pgd on activations": ("sasrec", "attack=pgd", "attack.surface=activation"),
    "apgd": ("mf", "attack=apgd", "attack.steps=6", "attack.restarts=2"),
    "cw": ("mf", "attack=cw", "attack.searches=2", "attack.steps=10", "attack.surface=weight"),
    "fab": ("sasrec", "attack=fab", "attack.steps=5", "attack.surface=activation"),
    "square": ("mf", "attack=square", "attack.queries=20"),
    "simba": ("mf", "attack=simba", "attack.queries=20"),
    "history_flip": ("sasrec", "attack=history_flip", "attack.edits=2"),
    "edges": ("lightgcn", "attack=edges", "attack.op=rewire", "attack.share=0.1", "attack.steps=4"),
    "hotflip": ("lstm_text", "attack=hotflip", "attack.words=0.5", "goal=promote", "goal.count=1"),
    "text_search": ("lstm_text", "attack=text_search", "attack.recipe=stuffing", "goal=promote", "goal.count=1"),
}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is written as soon as it is there."""
    monkeypatch.setattr(journal, "SAVE_EVERY", -1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            train.run(composing.typed(compose("train", *DATA, *MODELS[name], "epochs=2"), "train"), made[name])
        return made[name]

    return of


def struck(ckpt: Path, out: Path, *words: str) -> str:
    """Its metrics to the last digit, and what it says that it did."""
    out.mkdir(exist_ok=True)
    words = (f"ckpt='{ckpt}'", "device=cpu", "top_k=[5]", *words)
    found = attack.run(composing.typed(compose("attack", *words), "attack"), out)
    return json.dumps([found, json.loads((out / "run.json").read_text())["threat"]], indent=0)


def limited(monkeypatch: pytest.MonkeyPatch, most: float) -> list[dict[str, Tensor]]:
    """What is found, until it is interrupted before the (most + 1)-th time."""
    answers: list[dict[str, Tensor]] = []
    once = Journal.once

    def kept(self: Journal, question: Tensor, found: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def answering() -> dict[str, Tensor]:
            if len(answers) >= most:
                raise KeyboardInterrupt
            answers.append(found())
            return answers[-1]

        return once(self, question, answering)

    monkeypatch.setattr(Journal, "once", kept)
    return answers


@pytest.mark.parametrize("name", ATTACKS)
def test_a_killed_attack_goes_on_and_ends_as_an_undisturbed_one(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, *words = ATTACKS[name]
    with monkeypatch.context() as patch:
        whole = limited(patch, float("inf"))
        undisturbed = struck(trained(model), tmp_path / "whole", *words)
    part = len(whole) // 2
    assert part >= 2
    with monkeypatch.context() as patch:
        limited(patch, part)
        with pytest.raises(KeyboardInterrupt):
            struck(trained(model), tmp_path / "cut", *words)
    with monkeypatch.context() as patch:
        rest = limited(patch, float("inf"))
        assert struck(trained(model), tmp_path / "cut", *words) == undisturbed
    assert len(rest) == len(whole) - part
    assert not (tmp_path / "cut" / "resume").exists()


def test_one_that_is_not_kept_is_told_the_same_bit_for_bit(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (model, *words) in enumerate(ATTACKS.values()):
        found = struck(trained(model), tmp_path / f"{number}", *words)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "of", Keeper.of)
            patch.setattr(Journal, "once", Keeper.once)
            assert struck(trained(model), tmp_path / f"{number}-bare", *words) == found


def test_of_a_user_attacked_by_itself_no_gradients_are_written(
    trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, *words = ATTACKS["pgd of each user"]
    found = limited(monkeypatch, float("inf"))
    struck(trained(model), tmp_path / "whole", *words)
    assert len(found) == 40
    assert {name for each in found for name in each} == {"scores", "norm", "relative"}
    assert all(each["scores"].shape == (1, 30) for each in found)


def asked_of(path: Path, identity: str, points: list[float]) -> tuple[list[float], list[float]]:
    """What a journal says at some points of x², and where it asked the objective."""
    asked: list[float] = []

    def square(at: Shifted, batch: Batch) -> Tensor:
        asked.append(at.delta["x"].item())
        return at.delta["x"].square().sum()

    objective = Journal(path, identity, torch.device("cpu")).of(square)
    batch = Batch.unlabelled(torch.zeros(1, dtype=torch.long), None)
    told = []
    for each in points:
        x = torch.tensor([each], requires_grad=True)
        value = objective(Shifted(torch.nn.Module(), {"x": x}), batch)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(value, x)
        assert slope.item() == 2 * each
        told.append(value.item())
    return told, asked


class TestJournal:
    def test_answers_are_those_of_the_objective(self, tmp_path: Path) -> None:
        assert asked_of(tmp_path / "a", "one", [1.0, 2.0]) == ([1.0, 4.0], [1.0, 2.0])
        assert asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0]) == ([1.0, 4.0, 9.0], [3.0])

    def test_another_question_ends_what_is_known(self, tmp_path: Path) -> None:
        asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0])
        assert asked_of(tmp_path / "a", "one", [1.0, 5.0, 3.0]) == ([1.0, 25.0, 9.0], [5.0, 3.0])
        assert asked_of(tmp_path / "a", "one", [1.0, 5.0, 3.0]) == ([1.0, 25.0, 9.0], [])

    def test_answers_to_another_attack_are_removed(self, tmp_path: Path) -> None:
        asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0])
        assert asked_of(tmp_path / "a", "two", [1.0])[1] == [1.0]
        assert asked_of(tmp_path / "a", "two", [1.0, 2.0])[1] == [2.0]

    def test_a_file_that_was_cut_short_is_asked_again(self, tmp_path: Path) -> None:
        asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0])
        (tmp_path / "a-000001.safetensors").write_bytes(b"\x08")
        assert asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0]) == ([1.0, 4.0, 9.0], [2.0, 3.0])

    def test_no_more_than_the_limit_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal, "LIMIT", 70)  # three numbers of two doubles and two floats take 24 bytes each
        asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0, 4.0])
        assert asked_of(tmp_path / "a", "one", [1.0, 2.0, 3.0, 4.0])[1] == [3.0, 4.0]
