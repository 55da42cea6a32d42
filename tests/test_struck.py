"""A training that ends with an attack."""

from pathlib import Path

import pytest
from conftest import compose

from robustbench_rec import composing
from robustbench_rec.errors import RrecError
from robustbench_rec.tasks import attack, distill, train

VERBS = {"train": train, "attack": attack, "distill": distill}
DATA = ("dataset=synthetic", "dataset.n_users=120", "dataset.n_items=50", "dataset.events_per_user=12")
JUDGED = ("device=cpu", "top_k=[5,10]")
FIT = (*DATA, *JUDGED, "epochs=4", "batch_size=128", "lr=0.02")


def run(verb: str, out: Path, *overrides: str) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = VERBS[verb].run(composing.typed(compose(verb, *overrides), verb), out)
    return metrics


@pytest.mark.parametrize(
    ("attacked", "model"),
    [
        (("attack=noise", "eps=0.5"), "mf"),
        (("attack=pgd", "attack.surface=weight", "eps=0.05"), "sasrec"),
        (("attack=rank_autoattack", "attack.steps=3", "attack.queries=6", "eps=0.1"), "mf"),
    ],
    ids=["noise", "pgd", "rank_autoattack"],
)
def test_what_is_left_is_what_an_attack_on_the_run_leaves(
    tmp_path: Path, attacked: tuple[str, ...], model: str
) -> None:
    trained = run("train", tmp_path / "run", *FIT, f"model={model}", "model.dim=8", *attacked)
    plain = run("train", tmp_path / "plain", *FIT, f"model={model}", "model.dim=8")
    assert {name: trained[name] for name in plain} == plain
    assert (tmp_path / "run/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    found = run("attack", tmp_path / "attack", f"ckpt='{tmp_path / 'run'}'", *JUDGED, *attacked)
    names = {name for name in found if name.startswith(("attacked/", "drop/", "offset/", "rise/"))}
    assert {name: found[name] for name in names} == {name: trained[name] for name in set(trained) - set(plain)}
    assert trained["attacked/ndcg@10"] < trained["test/ndcg@10"]


def test_a_student_is_attacked_too(tmp_path: Path) -> None:
    run("train", tmp_path / "teacher", *FIT, "model=mf", "model.dim=16")
    words = (*FIT, "model=mf", "model.dim=4", f"teacher='{tmp_path / 'teacher'}'", "distill.top=5", "distill.uniform=5")
    student = run("distill", tmp_path / "student", *words, "attack=noise", "eps=0.5")
    found = run("attack", tmp_path / "attack", f"ckpt='{tmp_path / 'student'}'", *JUDGED, "attack=noise", "eps=0.5")
    assert student["attacked/ndcg@10"] == found["attacked/ndcg@10"]
    assert student["drop/ndcg@10"] > 0
    assert "agreement/kendall" in student


def test_lists_shorter_than_ten_are_attacked_whole(tmp_path: Path) -> None:
    short = ("protocol=sampled", "n_negatives=6", "top_k=[5]", "split=leave_one_out")
    found = run("train", tmp_path / "run", *FIT, *short, "model=mf", "model.dim=8", "attack=pgd", "eps=0.5")
    assert found["attacked/ndcg@5"] < found["test/ndcg@5"]


def test_an_attack_that_has_nothing_to_move_is_told_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(RrecError, match="ease"):
        run("train", tmp_path / "run", *DATA, *JUDGED, "model=ease", "attack=pgd", "eps=0.1")
    assert not (tmp_path / "run/model.safetensors").exists()
    with pytest.raises(RrecError, match="eps"):
        run("train", tmp_path / "run", *FIT, "model=mf", "attack=noise", "eps=-1")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=lstm_text", "attack=hotflip"), "hotflip edits the texts of given items: goal=promote"),
        (("model=lstm_text", "attack=text_search"), "text_search edits the texts of given items: goal=promote"),
        (("model=lstm_text", "attack=flips", "attack.surface=feature"), "flips.* other numbers than 0 and 1"),
        (("model=mf", "attack=flips", "attack.surface=embedding"), "flips.* other numbers than 0 and 1"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_before_the_training(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RrecError, match=message):
        run("train", tmp_path, *FIT, *words)
    assert not (tmp_path / "run.json").exists()
