"""rrec leaderboard, with a small attack as the standard one."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_report import BROWSER, Reader, columns, done, dumped
from test_tasks import DATA, JUDGED, MODEL
from typer.testing import CliRunner

from robustbench_rec.cli import app
from robustbench_rec.errors import RrecError
from robustbench_rec.models import models
from robustbench_rec.reports import cards
from robustbench_rec.tasks.leaderboard import LEFT_OUT, add, build, verify

STANDARD = cards.STANDARD
SMALL = {**cards.STANDARD, "attack": {**cards.STANDARD["attack"], "steps": 3, "queries": 3, "rivals": 1}}
GOOD = dict.fromkeys(cards.LIMITS, 0.0)
BUDGET = ("attack=rank_autoattack", "attack.steps=3", "attack.queries=3", "attack.rivals=1")
TRAINED = (*DATA, *JUDGED, *MODEL["mf"], "epochs=4", "batch_size=256", "lr=0.05")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "STANDARD", SMALL)
    monkeypatch.setattr("robustbench_rec.tasks.leaderboard.STANDARD", SMALL)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("board")
    done("train", root / "plain", *TRAINED)
    done("train", root / "apr", *TRAINED, "defense=apr", "defense.eps=0.5")
    for name in ("plain", "apr"):
        done("attack", root / f"{name}-attack", f"ckpt='{root / name}'", *JUDGED, *BUDGET)
    return root


@pytest.fixture(scope="module")
def carded(there: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "STANDARD", SMALL)
        patch.setattr("robustbench_rec.tasks.leaderboard.STANDARD", SMALL)
        for name in ("plain", "apr"):
            add(there / f"{name}-attack", folder)
    return folder


def of(folder: Path, defense: str) -> Path:
    (path,) = folder.glob(f"synthetic-mf-{defense}-*.json")
    return path


def test_a_checkpoint_that_a_defence_did_not_change_gets_no_second_card(
    there: Path, carded: Path, tmp_path: Path
) -> None:
    card = json.loads(of(carded, "none").read_text()) | {"defense": "rawp"}
    (tmp_path / "first.json").write_text(json.dumps(card))
    with pytest.raises(RrecError, match=r"plain-attack: its checkpoint is that of first\.json: .* changed nothing"):
        add(there / "plain-attack", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["first.json"]
    add(there / "apr-attack", tmp_path)
    assert len(cards.load_all(tmp_path)) == 2


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())
    return found


def copied(there: Path, tmp_path: Path) -> Path:
    for name in ("plain", "plain-attack"):
        shutil.copytree(there / name, tmp_path / name)
    return tmp_path


def test_the_standard_is_what_the_command_line_has() -> None:
    composed: Any = OmegaConf.to_container(compose("attack", "ckpt=x", "attack=rank_autoattack"), resolve=True)
    assert cards.unlike(composed, STANDARD) == []
    assert composed.keys() - STANDARD.keys() == {*LEFT_OUT, "seed", "deterministic", "metrics", "top_k"}
    for name in ("goal", "attack"):
        assert composed[name].keys() == STANDARD[name].keys()


def test_the_cards_of_the_repository_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "STANDARD", STANDARD)
    folder = Path(__file__).parents[1] / "leaderboard" / "cards"
    found = cards.load_all(folder)
    assert {each.name for each in found} == {path.name for path in folder.iterdir()}
    assert len(found) >= 60


def test_a_card_keeps_nothing_of_what_the_run_told_beside(there: Path, tmp_path: Path) -> None:
    done(
        "attack", tmp_path / "more", f"ckpt='{there / 'apr'}'", *JUDGED, *BUDGET, f"baseline='{there / 'plain-attack'}'"
    )
    path = add(tmp_path / "more", tmp_path / "cards")
    assert not cards.load(path).config.keys() & {"baseline", "slices", "anonymity"}
    assert verify(path, there / "apr")


def test_a_card_says_what_the_runs_say(there: Path, carded: Path) -> None:
    card = cards.load(of(carded, "apr"))
    found = metrics(there / "apr-attack")
    assert card.reported["attacked/ndcg@10"] == found["attacked/ndcg@10"]
    assert (card.model, card.defense, card.dataset, card.metric) == ("mf", "apr", "synthetic", "ndcg@10")
    assert card.checkpoint == json.loads((there / "apr" / "model.json").read_text())["sha256"]
    assert card.fingerprint == json.loads((there / "apr" / "run.json").read_text())["fingerprint"]
    assert card.threat["surface"] == "embedding"
    assert card.cost["parameters"] == sum(
        each.numel() for each in load_file(there / "apr" / "model.safetensors").values()
    )
    assert card.state == "reported"


@pytest.mark.parametrize(
    ("flag", "value"), [("zero_gradients", 0.5), ("random", 1.0), ("saturated", 0.9), ("black_box", 0.5)]
)
def test_signs_of_masked_gradients_are_refused(there: Path, tmp_path: Path, flag: str, value: float) -> None:
    root = copied(there, tmp_path)
    found = metrics(root / "plain-attack") | {f"flag/{flag}": value}
    (root / "plain-attack" / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(RrecError, match=f"not eligible, {flag.replace('_', ' ')}"):
        add(root / "plain-attack", tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


def test_another_budget_another_attack_and_no_run_are_refused(there: Path, tmp_path: Path) -> None:
    done("attack", tmp_path / "weak", f"ckpt='{there / 'plain'}'", *JUDGED, *BUDGET, "eps=0.01")
    with pytest.raises(RrecError, match=r"eps=0\.01 instead of 0\.1"):
        add(tmp_path / "weak", tmp_path)
    done("attack", tmp_path / "one", f"ckpt='{there / 'plain'}'", *JUDGED, *BUDGET, "goal.k=1")
    with pytest.raises(RrecError, match=r"goal\.k=1 instead of 10"):
        add(tmp_path / "one", tmp_path)
    done("attack", tmp_path / "pgd", f"ckpt='{there / 'plain'}'", *JUDGED, "attack.steps=1")
    with pytest.raises(RrecError, match="is no run of rrec attack attack=rank_autoattack"):
        add(tmp_path / "pgd", tmp_path)
    with pytest.raises(RrecError, match="is no finished run"):
        add(tmp_path, tmp_path)
    with pytest.raises(RrecError, match="nowhere is no run directory"):
        add(tmp_path / "nowhere", tmp_path)


def test_a_checkpoint_that_changed_since_is_refused(there: Path, tmp_path: Path) -> None:
    root = copied(there, tmp_path)
    tensors = load_file(root / "plain" / "model.safetensors")
    save_file({name: each + 1 for name, each in tensors.items()}, root / "plain" / "model.safetensors")
    moved(root)
    with pytest.raises(RrecError, match="is not the file that"):
        add(root / "plain-attack", tmp_path / "cards")


def moved(root: Path) -> None:
    """The attack run points to the copy."""
    config = root / "plain-attack" / ".hydra" / "config.yaml"
    text = re.sub(r"^ckpt: .*$", f"ckpt: {root / 'plain'}", config.read_text(), flags=re.MULTILINE)
    config.write_text(text)


def test_numbers_that_the_checkpoint_does_not_have_are_refused(there: Path, tmp_path: Path) -> None:
    root = copied(there, tmp_path)
    found = metrics(root / "plain-attack") | {"clean/ndcg@10": 0.99}
    (root / "plain-attack" / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(RrecError, match=r"judged again clean ndcg@10 is .*, not 0\.99"):
        add(root / "plain-attack", tmp_path / "cards")


@pytest.mark.parametrize(
    ("how", "message"),
    [("random", "twice gives two results"), ("optimises", "without gradients"), ("changes", "parameters change")],
)
def test_a_model_that_is_random_optimises_or_changes_while_it_ranks_is_refused(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    mf = models["mf"]
    plain = mf.forward

    def forward(self: Any, batch: Any, encoded: Any) -> Any:
        out = plain(self, batch, encoded)
        weight = next(self.parameters())
        if how == "random":
            out.scores.add_(torch.rand_like(out.scores))
        elif how == "optimises":
            with torch.enable_grad():
                torch.autograd.grad((weight**2).sum(), weight)
        else:
            weight.data.add_(0.1)
        return out

    monkeypatch.setattr(mf, "forward", forward)
    with pytest.raises(RrecError, match=message):
        add(there / "plain-attack", tmp_path)


def test_verifying_runs_the_attack_again(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    assert verify(path, there / "plain")
    card = cards.load(path)
    assert card.state == "verified"
    assert card.verified == card.reported
    with pytest.raises(RrecError, match="is not the checkpoint of"):
        verify(path, there / "apr")


def test_a_tolerance_that_is_none_is_refused_before_the_attack(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    before = path.read_bytes()
    for tolerance in (-1.0, float("nan"), float("inf"), 1.0, 0.006):
        with pytest.raises(RrecError, match=r"tolerance=.*: a difference between 0 and 0\.005"):
            verify(path, there / "plain", tolerance=tolerance)
    assert path.read_bytes() == before


def test_a_verified_card_whose_numbers_were_changed_since_is_refused(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    assert verify(path, there / "plain")
    card = json.loads(path.read_text())
    card["reported"]["clean/recall@10"] += 0.2
    path.write_text(json.dumps(card))
    with pytest.raises(RrecError, match=r"is not the drop from|said to be verified, but clean/recall@10 is 0\.2"):
        cards.load(path)
    del card["reported"]["drop/recall@10"]
    path.write_text(json.dumps(card))
    with pytest.raises(RrecError, match=r"said to be verified, but clean/recall@10 is 0\.2"):
        cards.load(path)


def test_no_tolerance_that_a_card_says_it_had_makes_it_verified(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    assert verify(path, there / "plain")
    card = json.loads(path.read_text())
    found = card["verified"]["attacked/recall@10"]
    for name in ("reported", "verified"):
        del card[name]["drop/recall@10"]
    card["reported"]["attacked/recall@10"] = found + 0.1
    path.write_text(json.dumps(card | {"verification": card["verification"] | {"tolerance": 1.0}}))
    with pytest.raises(RrecError, match=r"said to be verified, but attacked/recall@10 is 0\.1.*, at most 0\.005"):
        cards.load(path)


def test_the_board_shows_what_was_verified(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    card = json.loads(path.read_text())
    found = card["reported"]["attacked/ndcg@10"]
    del card["reported"]["drop/ndcg@10"]
    path.write_text(json.dumps(card | {"reported": card["reported"] | {"attacked/ndcg@10": found + 0.1}}))
    assert not verify(path, there / "plain")
    (row,) = cards.board(cards.load_all(tmp_path)).tables[0].rows
    assert row[4].text == f"{found:.4f}"


@pytest.mark.parametrize(
    "words", [["leaderboard", "build", "--cards", "{cards}", "-o"], ["report", "{runs}", "--users", "0", "-o"]]
)
def test_a_place_below_a_file_is_one_line(there: Path, carded: Path, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").write_text("mine")
    asked = [each.format(cards=carded, runs=there / "plain") for each in words]
    told = CliRunner().invoke(app, [*asked, str(tmp_path / "file" / "x.html")])
    assert told.exit_code == 2
    assert told.output.splitlines()[-1].startswith("rrec: cannot write ")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_card_that_boasts_is_found_out(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    card = json.loads(path.read_text())
    card["reported"]["attacked/ndcg@10"] += 0.1
    del card["reported"]["drop/ndcg@10"]  # which would not fit
    path.write_text(json.dumps(card))
    told = CliRunner().invoke(app, ["leaderboard", "verify", str(path), f"ckpt={there / 'plain'}"])
    assert told.exit_code == 1
    assert "differs from what was reported; the largest difference is 0.100000, of attacked/ndcg@10" in told.output
    assert cards.load(path).state == "differs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "sota"}, "its model is mf, the card says sota"),
        ({"defense": "apr"}, "its defense is none, the card says apr"),
        ({"dataset": "ml_100k"}, "its dataset is synthetic, the card says ml_100k"),
        ({"fingerprint": "0" * 64}, "its fingerprint is .*, the card says 0000"),
        ({"recipe": {"epochs": 99}}, "trained with epochs=4 instead of 99"),
        ({"seeds": {"seed": 7}}, "trained with seed=0 instead of 7"),
    ],
)
def test_a_card_about_something_else_is_not_verified(
    there: Path, carded: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(json.loads(of(carded, "none").read_text()) | change))
    with pytest.raises(RrecError, match=message):
        verify(path, there / "plain")
    assert cards.load(path).state == "reported"


def boards(folder: Path) -> list[list[tuple[str, int]]]:
    """Model and number of seeds of every row of every table."""
    made = cards.board(cards.load_all(folder)).tables
    return [[(row[1].text, int(row[6].text)) for row in each.rows] for each in made if not each.folded]


def test_cards_of_other_data_or_settings_are_not_seeds_of_one_entry_and_other_splits_of_one_recipe_are(
    carded: Path, tmp_path: Path
) -> None:
    def write(name: str, **changes: Any) -> None:
        made = {"checkpoint": sha256(name.encode()).hexdigest()}
        (tmp_path / f"{name}.json").write_text(json.dumps({**card, **made, **changes}))

    card = json.loads(of(carded, "none").read_text())
    seeds, recipe = card["seeds"], card["recipe"]
    write("a")
    write("b", seeds=seeds | {"split.seed": 7}, fingerprint="1" * 64)
    assert boards(tmp_path) == [[("mf", 2)]]
    write("c", recipe=recipe | {"epochs": 99})
    assert boards(tmp_path) == [[("mf", 2)], [("mf", 1)]]  # not on the same splits
    write("c2", recipe=recipe | {"epochs": 99}, seeds=seeds | {"split.seed": 7}, fingerprint="1" * 64)
    assert boards(tmp_path) == [[("mf (epochs=4)", 2), ("mf (epochs=99)", 2)]]
    (tmp_path / "c2.json").unlink()
    (tmp_path / "b.json").unlink()
    write("d", recipe=recipe | {"prepare": {"user_core": 9}}, fingerprint="2" * 64)
    assert boards(tmp_path)[1] == [("mf", 1)]
    write("e", recipe=None, fingerprint="3" * 64)
    assert boards(tmp_path)[2] == [("mf", 1)]
    write("b", seeds=seeds | {"split.seed": 7}, fingerprint="1" * 64)
    for name in "cde":
        (tmp_path / f"{name}.json").unlink()
    write("f", fingerprint="4" * 64)
    assert boards(tmp_path) == [[("mf", 1)]] * 3


def test_sampled_negatives_have_a_table_of_their_own(carded: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    done("train", trained, *DATA, "dataset.n_items=200", *MODEL["mf"], "epochs=1", "protocol=sampled")
    done("attack", tmp_path / "attack", f"ckpt='{trained}'", "protocol=sampled", *BUDGET)
    path = add(tmp_path / "attack", tmp_path / "cards")
    assert path.name.startswith("synthetic-sampled-mf-none-")
    shutil.copytree(carded, tmp_path / "cards", dirs_exist_ok=True)
    page = cards.board(cards.load_all(tmp_path / "cards"))
    assert {each.title: len(each.rows) for each in page.tables if not each.folded} == {
        "synthetic, full ranking, ndcg@10": 2,
        "synthetic, 99 sampled negatives, ndcg@10": 1,
    }
    boast = json.loads(path.read_text()) | {"protocol": "full"}
    path.write_text(json.dumps(boast))
    with pytest.raises(RrecError, match="'protocol' of the card is full, its attack had sampled"):
        cards.load(path)


def test_adding_again_keeps_what_was_verified(there: Path, carded: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(of(carded, "none"), tmp_path))
    verify(path, there / "plain")
    assert add(there / "plain-attack", tmp_path) == path
    assert cards.load(path).state == "verified"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "'model' of the card is no str"),
        ({"cost": {"train_seconds": "long"}}, "'cost' of the card is no dict"),
        ({"extra": 1}, "a card has no 'extra'"),
        ({"format": 2}, "format 2 of a card"),
        ({"checkpoint": "../x"}, "is no sha256"),
        ({"verified": []}, "'verified' of the card is no"),
        ({"reported": {}}, "'reported' of the card has no attacked/ndcg@10"),
        ({"reported": {"attacked/ndcg@10": 10**400}}, "'reported' of the card is no"),
        ({"flags": GOOD | {"black_box": 0.5}}, r"not eligible, black box is 0\.5, at most 0\.1"),
        ({"flags": {}}, "not eligible, 'flags' of the card do not tell of zero gradients"),
        ({"flags": {k: v for k, v in GOOD.items() if k != "random"}}, "'flags' of the card do not tell of random"),
        ({"config": {**SMALL, "eps": 1e-4}}, r"not attacked with the standard budget: eps=0\.0001 instead of 0\.1"),
        ({"config": {**SMALL, "attack": {"name": "fgm"}}}, r"attack\.name=fgm instead of rank_autoattack"),
        ({"config": {**SMALL, "goal": {"name": "untargeted", "k": 1}}}, r"goal\.k=1 instead of 10"),
        ({"config": {**SMALL, "precision": "bf16"}}, "precision=bf16 instead of fp32"),
        ({"config": {**SMALL, "frontier": "true"}}, "frontier=true instead of None"),
        ({"config": {**SMALL, "protocol": "clicks"}}, "protocol=clicks instead of full or sampled"),
        ({"config": {**SMALL, "n_negatives": 9}}, "n_negatives=9 instead of None or 99"),
    ],
)
def test_a_bad_card_is_one_line(carded: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    card = json.loads(of(carded, "none").read_text()) | change
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(RrecError, match=message) as caught:
        build(tmp_path, tmp_path / "out.html")
    assert "\n" not in str(caught.value)
    del card["model"]
    (tmp_path / "card.json").write_text(json.dumps({**card, **dict.fromkeys(change)}))
    with pytest.raises(RrecError):
        build(tmp_path, tmp_path / "out.html")


def test_the_board_is_sorted_by_what_is_left_and_escapes_what_cards_say(
    there: Path, carded: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cards"
    shutil.copytree(carded, folder)
    evil = json.loads(of(carded, "none").read_text()) | {"defense": "<script>alert(1)</script>"}
    evil["checkpoint"] = "e" * 64
    (folder / "evil.json").write_text(json.dumps(evil))
    out = tmp_path / "site" / "index.html"
    told = CliRunner().invoke(app, ["leaderboard", "build", "--cards", str(folder), "-o", str(out)])
    assert told.exit_code == 0, told.output
    text = out.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    rows = columns(reader, "synthetic_full_ndcg_10")
    robust = [float(row["robust ndcg@10"][1] or "nan") for row in rows]
    assert robust == sorted(robust, reverse=True)
    values = {row["defence"][0]: row["robust ndcg@10"][1] for row in rows}
    assert float(values["apr"] or "nan") == metrics(there / "apr-attack")["attacked/ndcg@10"]
    assert "<select" in text


def test_a_card_counts_once(carded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cards"
    shutil.copytree(carded, folder)
    first = min(folder.glob("*.json"))
    shutil.copy(first, folder / "copy.json")
    with pytest.raises(RrecError, match=rf"copy\.json and {first.name}|{first.name} and copy\.json"):
        build(folder, tmp_path / "out.html")
    for changed in ({"seeds": {"seed": 1}}, {"recipe": None}, {"defense": "mine"}):
        (folder / "copy.json").write_text(json.dumps(json.loads(first.read_text()) | changed))
        with pytest.raises(RrecError, match="are cards of the same checkpoint: remove one"):
            build(folder, tmp_path / "out.html")


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RrecError, match="has no cards"):
        build(tmp_path, tmp_path / "out.html")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_script_of_the_page_runs_and_offers_what_there_is_to_choose(carded: Path, tmp_path: Path) -> None:
    build(carded, tmp_path / "out.html")
    dump = dumped(tmp_path / "out.html", tmp_path / "browser")
    assert {"mf", "none", "apr"} <= set(re.findall(r'<option value="(.*?)">', dump))
