"""Defended models beside the undefended one: whose numbers may be compared, and what a defence gives back."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import compose
from omegaconf import OmegaConf

from robustbench_rec import checkpoint, composing
from robustbench_rec.errors import RrecError
from robustbench_rec.metrics.robustness import exposure_improvement
from robustbench_rec.reports.reading import Book
from robustbench_rec.reports.reading import runs as found_in
from robustbench_rec.reports.sections import page
from robustbench_rec.tasks import attack, finetune, gate, train
from robustbench_rec.tasks import eval as evaluate

DATA = ("dataset=synthetic", "dataset.n_users=120", "dataset.n_items=60", "dataset.events_per_user=14")
SMALL = (*DATA, "model=mf", "model.dim=8", "device=cpu", "epochs=3", "batch_size=256", "lr=0.05")
SEQUENCES = (*DATA, "model=sasrec", "device=cpu", "epochs=1", "split=leave_one_out")
CLEAN = ("clean=degree_sad", "clean.share=0.3")
POISON = ("poison=bandwagon", "poison.size=0.1", "poison.count=2")
VERBS = {"train": train, "attack": attack, "eval": evaluate, "gate": gate, "finetune": finetune}


def run(verb: str, out: Path, *words: str) -> dict[str, float]:
    """A run as `rrec` leaves it."""
    out.mkdir(parents=True, exist_ok=True)
    composed = compose(verb, *{word.partition("=")[0]: word for word in words}.values())
    found: dict[str, float] = VERBS[verb].run(composing.typed(composed, verb), out)
    (out / "metrics.json").write_text(json.dumps({k: v if v == v else None for k, v in found.items()}))
    (out / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(composed, out / ".hydra" / "config.yaml")
    (out / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {verb}}}}}\n")
    return found


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undefended")
    for name, words in {
        "plain": ("trajectory=1",),
        "cleaned": CLEAN,
        "apr": ("defense=apr", "trajectory=1"),
        "cleaned-kept": (*CLEAN, "trajectory=1"),
        "wide": ("trajectory=1", "model.dim=16"),
        "started": ("trajectory=1", f"start='{root}/apr'"),
        "noisy": ("trajectory=1", "noise=embedding", "noise.level=0.1"),
    }.items():
        run("train", root / name, *SMALL, *words)
    for name, words in {"sequences": (), "sequences-cleaned": CLEAN}.items():
        run("train", root / name, *SEQUENCES, *words)
    tuning = ("epochs=1", "alphas=2", "criticality.pairs=100", "attack.steps=1", "batch_size=256", "trajectory=1")
    run("finetune", root / "tuned", f"ckpt='{root}/plain'", "device=cpu", *tuning)
    run("attack", root / "poisoned", f"ckpt='{root}/plain'", *POISON, "device=cpu")
    return root


class TestCleaned:
    def test_eval_compares_with_a_model_that_reads_its_own_data(self, there: Path, tmp_path: Path) -> None:
        for name in ("sequences", "sequences-cleaned"):
            other = "sequences" if name == "sequences-cleaned" else "sequences-cleaned"
            ckpts = f"ckpt='{there / name}'", f"baseline='{there / other}'"
            found = run("eval", tmp_path / name, *ckpts, "device=cpu")
            alone = run("eval", tmp_path / f"{name}-alone", f"ckpt='{there / other}'", "device=cpu")
            difference = found["test/ndcg@10"] - alone["test/ndcg@10"]
            assert found["test/difference/ndcg@10"] == pytest.approx(difference, abs=1e-12)

    def test_a_gate_holds_it_against_a_model_that_reads_its_own_data(self, there: Path, tmp_path: Path) -> None:
        ckpts = f"ckpt='{there}/sequences-cleaned'", f"baseline='{there}/sequences'"
        found = run("gate", tmp_path / "gate", *ckpts, "max_drop={ndcg@10: 100%}", "device=cpu")
        alone = run("eval", tmp_path / "eval", f"ckpt='{there}/sequences'", "device=cpu")
        assert found["baseline/clean/ndcg@10"] == pytest.approx(alone["test/ndcg@10"], abs=1e-12)

    def test_noise_that_chooses_other_test_events_is_refused(self, there: Path, tmp_path: Path) -> None:
        ckpts = f"ckpt='{there}/cleaned'", f"baseline='{there}/plain'"
        with pytest.raises(RrecError, match="other users, candidates or events are judged: there is nothing to"):
            run("eval", tmp_path, *ckpts, "device=cpu", "noise=popularity_shift", "noise.level=1")
        assert run("eval", tmp_path, *ckpts, "device=cpu", "noise=label_flip", "noise.level=0.1")

    @pytest.mark.parametrize("goal", ["untargeted", "promote", "fairness goal.attribute=activity"])
    def test_the_same_attack_on_the_undefended_model_is_its_baseline(
        self, there: Path, tmp_path: Path, goal: str
    ) -> None:
        words = [*f"goal={goal}".split(), "device=cpu", "eps=0.3", "attack.steps=2"]
        base = run("attack", tmp_path / "base", f"ckpt='{there}/plain'", *words)
        told = run("attack", tmp_path / "a", f"ckpt='{there}/cleaned'", *words, f"baseline='{tmp_path}/base'")
        taken = base["clean/ndcg@10"] - base["attacked/ndcg@10"]
        expected = (told["attacked/ndcg@10"] - base["attacked/ndcg@10"]) / taken if taken > 0 else float("nan")
        assert told["improvement/ndcg@10"] == pytest.approx(expected, nan_ok=True)
        if goal == "promote":
            rise = (each["attacked/t_hr@10"] - each["clean/t_hr@10"] for each in (told, base))
            ours, theirs = rise
            assert told["improvement/t_hr@10"] == pytest.approx(1 - ours / theirs)

    def test_a_baseline_on_other_data_is_refused(self, there: Path, tmp_path: Path) -> None:
        run("train", tmp_path / "other", *SMALL, "split.seed=1")
        words = ("device=cpu", "attack.steps=1")
        run("attack", tmp_path / "base", f"ckpt='{tmp_path}/other'", *words)
        with pytest.raises(RrecError, match="not the same attack on the same data, its fingerprint is [0-9a-f]{12}$"):
            run("attack", tmp_path / "a", f"ckpt='{there}/cleaned'", *words, f"baseline='{tmp_path}/base'")
        with pytest.raises(RrecError, match="there is nothing to compare"):
            run("eval", tmp_path / "b", f"ckpt='{there}/cleaned'", f"baseline='{tmp_path}/other'", "device=cpu")

    @pytest.mark.parametrize(
        ("victim", "message"),
        [
            ("apr", "its defense is apr"),
            ("cleaned", "its clean is degree_sad"),
            ("tuned", "it was fine-tuned, or does not say .*"),
            ("wide", "its model.dim is 16, not 8"),
        ],
    )
    def test_the_same_attack_on_another_or_a_defended_model_is_no_baseline(
        self, there: Path, tmp_path: Path, victim: str, message: str
    ) -> None:
        words = ("device=cpu", "attack.steps=1")
        run("attack", tmp_path / "base", f"ckpt='{there / victim}'", *words)
        for ckpt in ("apr", "cleaned", "tuned"):
            told = f"^baseline=.*base is no undefended run of the model of ckpt=.*{ckpt}: {message}$"
            with pytest.raises(RrecError, match=told):
                run("attack", tmp_path / "a", f"ckpt='{there / ckpt}'", *words, f"baseline='{tmp_path}/base'")

    def test_what_it_learnt_from_makes_no_defence_of_a_baseline(self, there: Path, tmp_path: Path) -> None:
        words = ("device=cpu", "attack.steps=1")
        for name in ("started", "noisy"):
            run("attack", tmp_path / name, f"ckpt='{there / name}'", *words)
            told = run("attack", tmp_path / "a", f"ckpt='{there}/apr'", *words, f"baseline='{tmp_path / name}'")
            assert "improvement/ndcg@10" in told

    def test_a_baseline_that_does_not_say_what_it_attacked_is_refused(self, there: Path, tmp_path: Path) -> None:
        words = ("device=cpu", "attack.steps=1")
        run("attack", tmp_path / "base", f"ckpt='{there}/plain'", *words)
        record = json.loads((tmp_path / "base" / "run.json").read_text())
        for victim in ({}, {"victim": 1}, {"victim": {**record["victim"], "settings": None}}):
            told = {key: value for key, value in record.items() if key != "victim"} | victim
            (tmp_path / "base" / "run.json").write_text(json.dumps(told))
            with pytest.raises(RrecError, match="base does not say what it attacked: attack the undefended model agai"):
                run("attack", tmp_path / "a", f"ckpt='{there}/apr'", *words, f"baseline='{tmp_path}/base'")

    def test_a_report_sets_it_beside_the_undefended_one_user_by_user(self, there: Path, tmp_path: Path) -> None:
        for name in ("plain", "cleaned"):
            run("attack", tmp_path / name, f"ckpt='{there / name}'", "device=cpu", "attack.steps=1")
        book = Book(found_in([there / "plain", there / "cleaned", tmp_path / "plain", tmp_path / "cleaned"]))
        (table,) = [each for each in page(book, [], []).tables if each.name == "compared"]
        told = [[cell.value for cell in row] for row in table.rows]
        assert [row[:2] for row in told] == [["mf, clean degree_sad", "mf"]] * 2
        assert {row[9] for row in told} == {"users"}


class TestFrontier:
    def test_a_cleaned_run_is_held_against_the_undefended_one(self, there: Path, tmp_path: Path) -> None:
        words = ("device=cpu", "attack.steps=1", f"frontier='{there}/plain'")
        for name in ("cleaned", "tuned", "noisy"):
            assert "frontier/gap" in run("attack", tmp_path / name, f"ckpt='{there / name}'", *words)

    def test_the_undefended_side_reads_its_own_data(self, there: Path, tmp_path: Path) -> None:
        run("train", tmp_path / "plain", *SEQUENCES, "trajectory=1")
        words = ("device=cpu", "attack.steps=1", f"frontier='{tmp_path}/plain'")
        run("attack", tmp_path / "a", f"ckpt='{there}/sequences-cleaned'", *words)
        frame = pd.read_csv(tmp_path / "a" / "frontier.csv").set_index(["run", "state"])
        alone = run("eval", tmp_path / "b", f"ckpt='{tmp_path}/plain'", "device=cpu")
        assert frame["clean"]["undefended", "best"] == pytest.approx(alone["test/ndcg@10"], abs=1e-12)

    @pytest.mark.parametrize(
        ("frontier", "message"),
        [
            ("apr", "its defense is apr"),
            ("cleaned-kept", "its clean is degree_sad"),
            ("wide", "its model.dim is 16, not 8"),
            ("started", "its start is "),
            ("noisy", "its noise is embedding"),
            ("tuned", "it was fine-tuned, or does not say"),
        ],
    )
    def test_what_is_no_undefended_run_of_the_same_model_is_refused(
        self, there: Path, tmp_path: Path, frontier: str, message: str
    ) -> None:
        words = (f"frontier='{there / frontier}'", "device=cpu", "attack.steps=1")
        told = f"^frontier=.*{frontier} is no undefended run of the model of ckpt=.*cleaned: {message}"
        with pytest.raises(RrecError, match=told) as caught:
            run("attack", tmp_path, f"ckpt='{there}/cleaned'", *words)
        assert "\n" not in str(caught.value)

    def test_a_start_that_both_have_is_no_defence(self, there: Path, tmp_path: Path) -> None:
        words = ("device=cpu", "attack.steps=1", f"frontier='{there}/started'")
        assert run("attack", tmp_path, f"ckpt='{there}/started'", *words)["frontier/gap"] <= 1e-12


class TestPoisoned:
    def test_improvement_is_that_over_the_undefended_model_with_the_same_poison(
        self, there: Path, tmp_path: Path
    ) -> None:
        base = json.loads((there / "poisoned" / "metrics.json").read_text())
        words = (*POISON, "device=cpu", f"baseline='{there}/poisoned'")
        for name, more in {"plain": ("clean=degree_sad", "clean.share=0.1"), "apr": ("poison.seed=1",)}.items():
            told = run("attack", tmp_path / name, f"ckpt='{there / name}'", *words, *more)
            taken = base["clean/ndcg@10"] - base["poisoned/ndcg@10"]
            expected = (told["poisoned/ndcg@10"] - base["poisoned/ndcg@10"]) / taken
            assert told["improvement/ndcg@10"] == pytest.approx(expected)
            assert base["change/t_hr@10"] > 0
            expected = 1 - told["change/t_hr@10"] / base["change/t_hr@10"]
            assert told["improvement/t_hr@10"] == pytest.approx(expected)
            assert told["flag/improvement_undefined/t_hr@10"] == 0
            assert not {"improvement/t_rank", "improvement/gini@10"} & told.keys()

    def test_without_a_defence_nothing_is_repaired(self, there: Path, tmp_path: Path) -> None:
        words = (*POISON, "device=cpu", f"baseline='{there}/poisoned'")
        told = run("attack", tmp_path, f"ckpt='{there}/plain'", *words)
        assert told["improvement/ndcg@10"] == told["improvement/t_hr@10"] == 0

    def test_replayed_fake_users_are_the_same_poison(self, there: Path, tmp_path: Path) -> None:
        words = ("poison=file", f"poison.path='{there}/poisoned'", "device=cpu")
        run("attack", tmp_path / "other", f"ckpt='{there}/plain'", *POISON, "poison.seed=1", "device=cpu")
        told = run("attack", tmp_path / "a", f"ckpt='{there}/apr'", *words, f"baseline='{there}/poisoned'")
        assert "improvement/t_hr@10" in told
        with pytest.raises(RrecError, match="not the same attack on the same data, its poison.name is bandwagon"):
            run("attack", tmp_path / "b", f"ckpt='{there}/apr'", *words, f"baseline='{tmp_path}/other'")

    @pytest.mark.parametrize(
        ("ckpt", "words", "message"),
        [
            ("apr", ("poison.size=0.05",), "its poison.size is 0.1, not 0.05"),
            ("apr", ("poison=random",), "its poison.name is bandwagon, not random"),
            ("apr", ("part=valid",), "its part is test, not valid"),
            ("wide", (), "is no undefended run of the model of ckpt=.*: its model.dim is 8, not 16"),
        ],
    )
    def test_another_poison_or_model_is_no_baseline(
        self, there: Path, tmp_path: Path, ckpt: str, words: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(RrecError, match=message):
            run(
                "attack",
                tmp_path,
                f"ckpt='{there / ckpt}'",
                *(*POISON, *words),
                "device=cpu",
                f"baseline='{there}/poisoned'",
            )
        assert not (tmp_path / "poison.json").exists()

    def test_a_defended_baseline_or_one_without_a_poison_is_refused(self, there: Path, tmp_path: Path) -> None:
        words = (*POISON, "device=cpu")
        run("attack", tmp_path / "cleaned", f"ckpt='{there}/plain'", *words, *CLEAN)
        for baseline, message in {
            tmp_path / "cleaned": "is no undefended run .*: its clean is degree_sad",
            there / "plain": "is no run of rrec attack with a poison",
        }.items():
            with pytest.raises(RrecError, match=message):
                run("attack", tmp_path / "a", f"ckpt='{there}/apr'", *words, f"baseline='{baseline}'")


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "undefined"),
    [
        (0.0, 0.2, 1.0, 0),
        (0.2, 0.2, 0.0, 0),
        (0.3, 0.2, -0.5, 0),
        (-0.1, -0.2, 0.5, 0),  # an attacker who lowers it
        (0.1, 0.0009, float("nan"), 1),
    ],
)
def test_the_improvement_of_exposure_is_the_share_of_its_rise_that_is_prevented(
    ours: float, theirs: float, value: float, undefined: int
) -> None:
    found: Any = exposure_improvement(torch.tensor(ours).double(), torch.tensor(theirs).double())
    assert found.value.item() == pytest.approx(value, nan_ok=True)
    assert found.undefined.item() == undefined


def test_a_checkpoint_tells_the_data_before_its_cleaning(there: Path) -> None:
    plain, cleaned = (
        checkpoint.load(str(there / each), data_dir=None, device=torch.device("cpu")) for each in ("plain", "cleaned")
    )
    record = json.loads((there / "cleaned" / "run.json").read_text())
    assert record["uncleaned_fingerprint"] == plain.data.fingerprint != record["fingerprint"]
    assert checkpoint.fingerprints(plain.data) == {"fingerprint": plain.data.fingerprint}
    assert checkpoint.fingerprints(cleaned.data) == {k: v for k, v in record.items() if k.endswith("fingerprint")}
