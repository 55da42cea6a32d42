"""Cleaning of training data: what every step keeps to, the rules, what a run keeps."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import batch_for, build, buildable, compose, configured, gradients, make_data, question
from fakes import FAKED, GENUINE, find, step

from robustbench_rec import checkpoint, cleanings, composing
from robustbench_rec.clean import cleaned
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Cleaning, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import edges_of
from robustbench_rec.losses import loss
from robustbench_rec.models import models
from robustbench_rec.objective import Plain
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import attack, distill, train
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.tasks.train import cleaning

STEPS = [name for name in cleans if name not in ("none", "graphda")]


def same(one: Any, two: Any) -> bool:
    scores = one.scores is None or torch.equal(one.scores.nan_to_num(), two.scores.nan_to_num())
    edges = one.edges is None or torch.equal(one.edges, two.edges)
    return bool(torch.equal(one.removed, two.removed) and one.texts == two.texts and scores and edges)


@pytest.mark.parametrize("name", STEPS)
class TestEveryStep:
    def test_it_finds_something_and_the_same_again(self, name: str) -> None:
        torch.manual_seed(1)
        one = find(name, FAKED)
        torch.manual_seed(2)
        assert same(one, find(name, FAKED))
        assert bool(one.removed.any()) or one.edges is not None or one.texts

    def test_it_knows_nothing_about_who_is_fake_or_of_the_other_parts(self, name: str) -> None:
        other = make_data(n_users=60, n_items=50, train=12, valid=4, test=7, seed=5)
        blind = replace(
            FAKED,
            fakes=None,
            truth={},
            valid=other.valid,
            test=other.test,
            user_ids=[f"x{each}" for each in range(FAKED.n_users)][::-1],
            user_table=None,
        )
        (_, one), (_, two) = (cleaned(each, [step(name)])[1][0] for each in (FAKED, blind))
        assert same(one, two)

    def test_ids_sizes_and_the_other_parts_stay_and_what_goes_is_hidden(self, name: str) -> None:
        data, [(_, finding)] = cleaned(FAKED, [step(name)])
        assert (data.user_ids, data.item_ids) == (FAKED.user_ids, FAKED.item_ids)
        assert data.valid is FAKED.valid
        assert data.test is FAKED.test
        assert data.fakes is FAKED.fakes
        assert data.fingerprint != FAKED.fingerprint
        assert len(data.train) == len(FAKED.train) - int(finding.removed.sum())
        if data.hidden is not None:
            assert torch.equal(data.hidden.users, FAKED.train.users[finding.removed])
            assert torch.equal(data.hidden.items, FAKED.train.items[finding.removed])

    def test_it_is_applied_again_from_its_file(self, name: str, tmp_path: Path) -> None:
        data, _ = cleaned(FAKED, [step(name)])
        assert data.cleaning is not None
        cleanings.save(tmp_path, data.cleaning)
        again = cleanings.apply(FAKED, cleanings.load(str(tmp_path), "ckpt"))
        assert again.fingerprint == data.fingerprint
        assert torch.equal(again.train.items, data.train.items)
        if data.edges is not None and again.edges is not None:
            assert torch.equal(again.edges, data.edges)
        if data.item_table is not None and again.item_table is not None:
            pd.testing.assert_frame_equal(again.item_table, data.item_table)


class TestRules:
    def run(self, users: list[int], items: list[int], times: list[int], values: list[float], **on: Any) -> Any:
        train = Interactions(*(torch.tensor(each) for each in (users, items, values, times)))
        off = {"repeat": None, "rate": None, "longest": None, "constant": None}
        return find("rules", replace(GENUINE, train=train), **{**off, **on})

    def test_near_duplicates_go_and_the_first_stays(self) -> None:
        found = self.run([0, 0, 0, 0, 1], [1, 1, 1, 2, 1], [100, 100 + 61, 100 + 60, 110, 100], [1.0] * 5, repeat=60)
        assert found.removed.tolist() == [False, True, True, False, False]
        assert found.counts["near_duplicates"] == 2
        assert self.run([0, 0], [1, 1], [100, 161], [1.0] * 2, repeat=60).counts["near_duplicates"] == 0

    def test_impossible_times_say_nothing_about_rates_and_duplicates(self) -> None:
        for far in (4 * 10**15, 9 * 10**15, -(9 * 10**15)):
            times = [1_700_000_000] * 3 + [far, far]
            found = self.run([0, 5, 5, 1, 1], [0, 1, 2, 3, 3], times, [1.0] * 5, rate=1, repeat=60)
            assert found.flagged.nonzero().flatten().tolist() == [5]
            assert found.removed.tolist() == [False, True, True, True, True]
            assert found.counts["near_duplicates"] == 0

    def test_who_is_faster_than_the_rate_in_any_minute_is_a_bot(self) -> None:
        users, times = [0] * 4 + [1] * 4, [30, 50, 70, 89, 100, 121, 140, 160]
        found = self.run(users, list(range(8)), times, [1.0] * 8, rate=3)
        assert found.flagged.nonzero().flatten().tolist() == [0]
        assert found.removed.tolist() == [True] * 4 + [False] * 4
        assert not self.run(users, list(range(8)), times, [1.0] * 8, rate=4).flagged.any()

    def test_the_longest_profiles_are_bots(self) -> None:
        users = [user for user in range(10) for _ in range(1 + 9 * (user == 4))]
        found = self.run(users, list(range(19)), [1] * 19, [1.0] * 19, longest=0.9)
        assert found.flagged.nonzero().flatten().tolist() == [4]

    def test_the_quantile_is_over_those_who_have_events(self) -> None:
        users = [user for user in range(10) for _ in range(user + 1)]
        found = self.run(users, list(range(50)) + list(range(5)), [1] * 55, [1.0] * 55, longest=0.5)
        assert found.flagged.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]

    def test_who_rates_everything_the_same_is_a_constant_rater(self) -> None:
        users, values = [0, 0, 0, 1, 1, 1, 2, 2], [5.0, 5, 5, 5, 5, 4, 3, 3]
        found = self.run(users, list(range(8)), [1] * 8, values, constant=3)
        assert found.flagged.nonzero().flatten().tolist() == [0]
        assert "constant_raters" not in self.run(users, list(range(8)), [1] * 8, [1.0] * 8, constant=3).counts

    def test_impossible_times_go(self) -> None:
        found = self.run([0, 0, 0], [1, 2, 3], [0, 10**9, 10**11], [1.0] * 3)
        assert found.removed.tolist() == [True, False, True]
        assert found.counts == {"impossible_times": 2}

    def test_data_without_times_have_fewer_rules(self) -> None:
        found = find("rules", replace(FAKED, train=replace(FAKED.train, times=None)))
        assert set(found.counts) == {"bots_by_length", "constant_raters"}


class TestCleaned:
    def test_no_step_changes_nothing(self) -> None:
        data, found = cleaned(FAKED, cleaning({"name": "none"}))
        assert data is FAKED
        assert not found

    def test_steps_follow_one_another(self) -> None:
        config = {**configured("clean", "rules", longest=0.9), "inner": configured("clean", "degree_sad", share=0.1)}
        steps = cleaning(config)
        assert [each.name for each in steps] == ["rules", "degree_sad"]
        both, [(_, one), (_, two)] = cleaned(FAKED, steps)
        first, _ = cleaned(FAKED, steps[:1])
        second, _ = cleaned(first, steps[1:])
        assert torch.equal(both.train.users, second.train.users)
        assert len(one.removed) == len(FAKED.train)
        assert len(two.removed) == len(first.train)
        assert both.cleaning is not None
        assert [each["config"]["name"] for each in both.cleaning.about["steps"]] == ["rules", "degree_sad"]
        again = cleanings.apply(FAKED, both.cleaning)
        assert again.fingerprint == both.fingerprint
        with pytest.raises(RrecError, match="clean.inner=rules: the config of the next step"):
            cleaning({"name": "none", "inner": "rules"})

    def test_the_truth_of_events_that_go_goes_with_them(self) -> None:
        data = replace(FAKED, truth={"train/noise": torch.arange(len(FAKED.train)), "user/taste": torch.arange(66)})
        found, [(_, finding)] = cleaned(data, [step("degree_sad")])
        assert found.truth["train/noise"].tolist() == (~finding.removed).nonzero().flatten().tolist()
        assert torch.equal(found.truth["user/taste"], torch.arange(66))

    def test_what_fits_other_data_or_leaves_nothing_is_refused(self) -> None:
        with pytest.raises(RrecError, match="the cleaning was made for 3 training events"):
            cleanings.apply(GENUINE, Cleaning(torch.ones(3, dtype=torch.bool)))
        with pytest.raises(RrecError, match="cleaning leaves no training event"):
            cleaned(GENUINE, [step("degree_sad", share=1.0)])

    @pytest.mark.parametrize("name", [each for each in models if buildable(each)])
    def test_every_model_lives_with_users_who_lost_everything(self, name: str) -> None:
        data = cleanings.apply(GENUINE, Cleaning(GENUINE.train.users > 3))
        model = build(name, data)
        asked = question(model.eval(), torch.arange(6), None, data)
        assert Shifted(model)(asked).scores.isfinite().all()
        if model.trainable:
            value = Plain(loss(model.loss))(Shifted(model), batch_for(model, data))
            assert all(each.isfinite().all() for each in gradients(model, value).values())


WORDS = (
    "dataset=synthetic",
    "dataset.n_users=120",
    "dataset.n_items=60",
    "dataset.events_per_user=14",
    "model=mf",
    "model.dim=8",
    "device=cpu",
    "top_k=[5,10]",
    "epochs=3",
    "batch_size=256",
)
POISON = ("poison=copy", "poison.size=0.1", "poison.count=2")
TASKS = {"train": train, "attack": attack, "eval": evaluate, "distill": distill}


def run(verb: str, out: Path, *words: str) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = TASKS[verb].run(composing.typed(compose(verb, *words), verb), out)
    return metrics


@pytest.fixture(scope="module")
def cleaned_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("cleaned")
    return out, run("train", out, *WORDS, *POISON, "clean=dense_block", "clean.group=5", "clean.share=0.1")


class TestRuns:
    def test_a_run_says_what_was_found_and_keeps_it(self, cleaned_run: tuple[Path, dict[str, float]]) -> None:
        out, metrics = cleaned_run
        worth = {key.rpartition("/")[2]: value for key, value in metrics.items() if key.startswith("cleaning/")}
        assert set(worth) == {"users", "events", "precision", "recall", "f1", "genuine_lost", "auroc", "ap"}
        assert worth["users"] == 13
        assert worth["genuine_lost"] == 13 * (1 - worth["precision"])
        frame = pd.read_csv(out / "suspicion.csv")
        assert list(frame.columns) == ["user", "dense_block", "dense_block_flagged"]
        assert len(frame) == 132
        told = json.loads((out / "cleaning.json").read_text())["steps"][0]
        assert told["config"]["name"] == "dense_block"
        assert set(told["users"]) == set(frame["user"][frame["dense_block_flagged"]])

    def test_a_step_that_is_taken_twice_is_told_twice(self, tmp_path: Path) -> None:
        steps = [step("degree_sad", share=0.2), step("rules"), step("degree_sad", share=0.1)]
        _, found = cleaned(FAKED, steps)
        told = train.suspects(found, FAKED, tmp_path)
        names = ("degree_sad", "rules", "degree_sad_2")
        assert [told[f"cleaning/{each}/events"] for each in names] == [int(each.removed.sum()) for _, each in found]
        frame = pd.read_csv(tmp_path / "suspicion.csv")
        assert list(frame.columns) == ["user", *(f"{each}{end}" for each in names for end in ("", "_flagged"))]
        assert frame["degree_sad_2_flagged"].tolist() == found[2][1].flagged.tolist()  # type: ignore[union-attr]

    def test_its_checkpoint_has_the_same_data_again(self, cleaned_run: tuple[Path, dict[str, float]]) -> None:
        out, _ = cleaned_run
        loaded = checkpoint.load(str(out), data_dir=None, device=torch.device("cpu"))
        told = json.loads((out / "model.json").read_text())
        assert loaded.data.fingerprint == told["fingerprint"] != loaded.uncleaned.fingerprint
        flagged = json.loads((out / "cleaning.json").read_text())["steps"][0]["users"]
        present = {loaded.data.user_ids[each] for each in loaded.data.train.users.tolist()}
        assert not present & set(flagged)
        assert {loaded.data.user_ids[each] for each in loaded.uncleaned.train.users.tolist()} > set(flagged)

    def test_eval_agrees_and_who_lost_events_is_still_judged(
        self, cleaned_run: tuple[Path, dict[str, float]], tmp_path: Path
    ) -> None:
        out, metrics = cleaned_run
        again = run("eval", tmp_path, f"ckpt='{out}'", "device=cpu", "top_k=[5,10]", "per_user=true")
        assert again == {key: value for key, value in metrics.items() if key.startswith("test/")}
        judged_users = set(pd.read_csv(tmp_path / "per_user-test.csv")["user"])
        flagged = set(json.loads((out / "cleaning.json").read_text())["steps"][0]["users"])
        genuine = {each for each in flagged if not each.startswith("fake/")}
        assert genuine <= judged_users

    def test_it_can_be_attacked(self, cleaned_run: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
        out, metrics = cleaned_run
        found = run("attack", tmp_path, f"ckpt='{out}'", "device=cpu", "top_k=[5,10]")
        assert found["clean/ndcg@10"] == pytest.approx(metrics["test/ndcg@10"])

    @pytest.mark.parametrize("file", ["cleaning.json", "cleaning.safetensors"])
    def test_a_file_that_is_missing_or_changed_is_one_line(
        self, cleaned_run: tuple[Path, dict[str, float]], tmp_path: Path, file: str
    ) -> None:
        for number, spoil in enumerate((lambda path: path.unlink(), lambda path: path.write_bytes(b"{}"))):
            run_ = copytree(cleaned_run[0], tmp_path / str(number))
            spoil(run_ / file)
            with pytest.raises(RrecError, match="cleaning|fingerprint|trained on data") as caught:
                checkpoint.load(str(run_), data_dir=None, device=torch.device("cpu"))
            assert "\n" not in str(caught.value)

    def test_retraining_on_poison_cleans_as_it_is_told_or_as_the_checkpoint_was(self, tmp_path: Path) -> None:
        run("train", tmp_path / "plain", *WORDS)
        run("train", tmp_path / "cleaned", *WORDS, "clean=degree_sad", "clean.share=0.1")
        judged_ = ("device=cpu", "top_k=[5,10]", *POISON)
        told = run("attack", tmp_path / "a", f"ckpt='{tmp_path / 'plain'}'", *judged_, "clean=dense_block")
        assert told["cleaning/dense_block/recall"] >= 0
        same_ = run("attack", tmp_path / "b", f"ckpt='{tmp_path / 'cleaned'}'", *judged_)
        assert same_["cleaning/degree_sad/users"] == round(0.1 * 132)
        nothing = run("attack", tmp_path / "c", f"ckpt='{tmp_path / 'plain'}'", *judged_)
        assert not [key for key in nothing if key.startswith("cleaning/")]
        retrained = checkpoint.load(str(tmp_path / "b"), data_dir=None, device=torch.device("cpu"))
        assert retrained.data.fakes is not None
        assert retrained.data.cleaning is not None

    def test_cleaning_without_a_training_is_refused(self, tmp_path: Path) -> None:
        run("train", tmp_path / "plain", *WORDS)
        with pytest.raises(RrecError, match="clean=rules is for a training"):
            run("attack", tmp_path / "x", f"ckpt='{tmp_path / 'plain'}'", "device=cpu", "clean=rules")

    def test_a_student_has_the_cleaned_data_of_its_teacher(self, tmp_path: Path) -> None:
        words = (*WORDS, "clean=rules", "clean.longest=0.9")
        run("train", tmp_path / "teacher", *words)
        teacher = f"teacher='{tmp_path / 'teacher'}'"
        assert run("distill", tmp_path / "student", *words, teacher)["cleaning/rules/bots_by_length"] > 0
        assert "cleaning/rules/users" not in run("distill", tmp_path / "other", *WORDS, teacher)
        with pytest.raises(RrecError, match="teacher="):  # fake users are users of the student alone
            run("distill", tmp_path / "third", *WORDS, teacher, "poison=random")

    def test_graphda_makes_the_graph_of_the_scores_of_a_run(self, tmp_path: Path) -> None:
        words = [each for each in WORDS if not each.startswith("model")] + ["model=lightgcn", "model.dim=8"]
        run("train", tmp_path / "first", *words)
        graph = ("clean=graphda", f"clean.ckpt='{tmp_path / 'first'}'", "clean.items=5", "clean.users=4")
        metrics = run("train", tmp_path / "second", *words, *graph)
        first, second = (
            checkpoint.load(str(tmp_path / each), data_dir=None, device=torch.device("cpu"))
            for each in ("first", "second")
        )
        scores = Shifted(first.model.eval())(question(first.model, torch.arange(120), None, first.data)).scores
        users, items = edges_of(second.data)
        wanted = torch.zeros(120, 60, dtype=torch.bool).scatter(1, scores.topk(5, 1).indices, True)
        wanted |= torch.zeros(120, 60, dtype=torch.bool).scatter(0, scores.topk(4, 0).indices, True)
        assert torch.equal(wanted.nonzero().T, torch.stack([users, items]))
        assert metrics["cleaning/graphda/events"] == 0
        assert torch.equal(second.data.train.items, first.data.train.items)
        again = run("eval", tmp_path / "eval", f"ckpt='{tmp_path / 'second'}'", "device=cpu", "top_k=[5,10]")
        assert again["test/ndcg@10"] == metrics["test/ndcg@10"]
        with pytest.raises(RrecError, match="its graph was made by cleaning, which noise=edge_drop"):
            run("eval", tmp_path / "x", f"ckpt='{tmp_path / 'second'}'", "device=cpu", "noise=edge_drop")
        with pytest.raises(RrecError, match="clean=graphda needs clean.ckpt="):
            run("train", tmp_path / "z", *words, "clean=graphda")
        with pytest.raises(RrecError, match="clean.ckpt=.* was trained on data"):
            run("train", tmp_path / "y", *words, *graph, "split.seed=9")

    def test_known_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run("train", tmp_path, *WORDS, *POISON, "clean=degree_sad", "clean.known=true")
        assert "which was told the truth" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.parametrize("name", ["mf", "deepcf_mlp", "kgcn"])
    def test_a_model_that_reads_no_graph_is_refused_a_cleaned_one(self, name: str, tmp_path: Path) -> None:
        words = [each for each in WORDS if not each.startswith("model")] + [f"model={name}", "clean=rgcf"]
        told = (
            f"clean=rgcf changes the graph alone, and model '{name}' reads none .*kgat, lightgcn, structure_aware_kgat"
        )
        with pytest.raises(RrecError, match=told):
            run("train", tmp_path, *words)
