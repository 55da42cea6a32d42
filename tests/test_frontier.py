"""The trajectory of a run, and what a defence is worth beside an undefended model that stopped earlier."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import compose
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec import checkpoint, composing
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.frontier import Trace, advantage, best_attacked
from robustbench_rec.reports.page import Table
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.defences import frontiers
from robustbench_rec.reports.sections.summary import summary
from robustbench_rec.significance import bootstrap, estimate, means, resamples
from robustbench_rec.tasks import attack, train
from robustbench_rec.tasks.frontier import _told

SMALL = (
    "dataset=synthetic",
    "dataset.n_users=60",
    "dataset.n_items=40",
    "dataset.events_per_user=12",
    "model.dim=8",
    "device=cpu",
    "epochs=6",
    "batch_size=128",
    "lr=0.02",
)


def trace(clean: list[float], attacked: list[float], *, n: int = 200, noise: float = 0.0, seed: int = 0) -> Trace:
    """States whose users scatter around given means, the same users' luck in all of them."""
    luck = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    luck = noise * (luck - luck.mean())

    def spread(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.double)[:, None] + luck

    return Trace([str(each) for each in range(len(clean))], spread(clean), spread(attacked))


class TestCurves:
    @given(
        st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
        st.lists(st.floats(0, 1), min_size=1, max_size=5),
    )
    def test_a_level_is_met_by_the_best_state_that_is_clean_enough(
        self, states: list[tuple[float, float]], levels: list[float]
    ) -> None:
        clean, attacked = torch.tensor(states, dtype=torch.double).T
        found = best_attacked(clean, attacked, torch.tensor(levels, dtype=torch.double)).tolist()
        assert found == [max((a for c, a in states if c >= level), default=float("-inf")) for level in levels]

    def test_a_run_has_no_advantage_over_itself(self) -> None:
        one = trace([0.1, 0.3, 0.4, 0.38], [0.1, 0.2, 0.15, 0.1], noise=0.1)
        found = advantage(one, one)
        assert (found.value, found.low, found.high) == (0, 0, 0)
        assert found.p == 1
        assert not found.low > 0

    def test_a_constant_gain_is_found_whatever_the_clean_quality(self) -> None:
        base = trace([0.1, 0.3, 0.4], [0.3, 0.2, 0.1], noise=0.1)
        better = trace([0.1, 0.3, 0.4], [0.35, 0.25, 0.15], noise=0.1)
        found = advantage(better, base)
        assert found.value == pytest.approx(0.05)
        assert found.low > 0
        assert advantage(base, better).value == pytest.approx(-0.05)

    def test_training_less_is_no_defence(self) -> None:
        """More robust than the end of the undefended run, and only as robust as its third epoch, which is as clean."""
        base = trace([0.2, 0.3, 0.35, 0.4], [0.2, 0.25, 0.22, 0.1], noise=0.05)
        slow = trace([0.35], [0.22], noise=0.05)
        assert advantage(slow, base).value == pytest.approx(0, abs=1e-12)
        assert not advantage(slow, base).low > 0

    def test_errors_are_compared_over_all_that_lose_a_fifth(self) -> None:
        """Negated errors: from 1.2 times the best undefended one on, and not the best alone."""
        clean = [-1.15, -1.05, -1.0]
        found = advantage(trace(clean, [-1.5, -1.1, -1.5]), trace(clean, [-1.5, -1.2, -1.5]))
        assert found.value == pytest.approx(0.1 * 2 / 3, abs=0.002)  # two thirds of the levels allow the better state

    def test_a_state_that_is_cleaner_than_all_is_held_against_the_cleanest(self) -> None:
        base = trace([0.2, 0.4], [0.3, 0.1])
        assert advantage(trace([0.5], [0.15]), base).value == pytest.approx(0.05)
        assert advantage(trace([0.5], [0.05]), base).value == pytest.approx(-0.05)

    def test_a_state_that_is_less_clean_than_all_is_held_against_the_most_robust(self) -> None:
        base = trace([0.2, 0.4], [0.3, 0.1])
        assert advantage(trace([0.1], [0.32]), base).value == pytest.approx(0.02)

    def test_levels_lie_where_both_runs_have_states(self) -> None:
        one, two = trace([0.35, 0.4], [0.5, 0.1]), trace([0.38, 0.4], [0.2, 0.2])
        assert advantage(one, two).value == pytest.approx(-0.1, abs=1e-9)  # from 0.38 on, above the robust state
        assert advantage(two, one).value == pytest.approx(0.1, abs=1e-9)

    def test_a_gain_among_few_unlike_users_is_not_significant(self) -> None:
        """Each user's own luck differs between the runs here."""
        base = trace([0.4], [0.1], n=20, noise=0.3, seed=1)
        other = trace([0.4], [0.12], n=20, noise=0.3, seed=2)
        found = advantage(other, base)
        assert found.low < 0 < found.high
        assert found.p > 0.05

    def test_a_metric_of_the_whole_has_a_value_without_an_interval(self) -> None:
        found = advantage(trace([0.4], [0.3], n=1), trace([0.4], [0.2], n=1))
        assert found.value == pytest.approx(0.1)
        assert found.p != found.p
        assert not found.low > 0

    def test_without_an_interval_nothing_is_said_to_beat_anything(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = _told([trace([0.4], [0.3], n=1), trace([0.4], [0.2], n=1)], "auc", tmp_path)
        assert "it is not known whether it beats the undefended run" in " ".join(capsys.readouterr().out.split())
        config = {"frontier": "base", "ckpt": "mine", "eps": 0.1}
        run = Found(tmp_path, "attack", config, [], {}, told, None, tmp_path)
        book = Book([run])
        section = frontiers([run], book, "auc")
        assert section is not None
        assert isinstance(section.blocks[0], Table)
        value, *_, verdict = section.blocks[0].rows[0][2:]
        assert (value.mark, verdict.text) == ("", "unknown: one seed")
        (words,) = summary([run], {}, [], [], [run], book, "auc")
        assert words.startswith("At equal clean quality it is not known whether mine beats")

    @pytest.mark.parametrize(
        ("gaps", "verdict", "words"),
        [
            ([(0.3, 0.2, 0.4), (0.32, 0.2, 0.4)], "beats it", "mine beats the undefended run"),
            ([(-0.3, -0.4, -0.2), (-0.32, -0.4, -0.2)], "is worse than it", "mine is worse than the undefended run"),
            ([(0.3, 0.2, 0.4), (-0.2, -0.3, -0.1)], "within seed noise", "mine is not told apart from the undefended"),
            ([(0.3, -0.2, 0.8), (0.32, -0.2, 0.8)], "may be chance", "mine is not told apart from the undefended"),
            ([(0.3, 0.2, 0.4)], "beats it, one seed", "mine beats the undefended run"),
            ([(-0.3, -0.4, -0.2)], "is worse than it, one seed", "mine is worse than the undefended run"),
            ([(0.3, -0.2, 0.8)], "may be chance", "mine is not told apart from the undefended run"),
        ],
    )
    def test_seeds_are_told_together_and_it_beats_only_what_it_beats_beyond_their_noise(
        self, tmp_path: Path, gaps: list[tuple[float, float, float]], verdict: str, words: str
    ) -> None:
        found = []
        for seed, told in enumerate(gaps):
            metrics = dict(zip(("frontier/gap", "frontier/gap/low", "frontier/gap/high"), told, strict=True))
            config = {"frontier": f"base{seed}", "ckpt": "mine", "eps": 0.1, "seed": seed}
            found.append(Found(tmp_path / str(seed), "attack", config, [], {}, metrics, None, tmp_path))
        book = Book(found)
        section = frontiers(found, book, "auc")
        assert section is not None
        assert isinstance(section.blocks[0], Table)
        (row,) = section.blocks[0].rows
        assert (row[5].value, row[6].text) == (len(gaps), verdict)
        assert row[2].number == pytest.approx(sum(each for each, _, _ in gaps) / len(gaps))
        (said,) = summary(found, {}, [], [], found, book, "auc")
        assert said.startswith(f"At equal clean quality {words}")
        assert said.endswith(", one seed).") == (len(gaps) == 1 and verdict != "may be chance")

    def test_one_run_says_that_it_is_one_seed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for mine, words in ((0.3, "it beats"), (0.1, "it is worse than")):
            _told([trace([0.4], [mine], n=30), trace([0.4], [0.2], n=30)], "auc", tmp_path)
            said = " ".join(capsys.readouterr().out.split())
            number = f"{mine - 0.2:+.4f}"
            assert f"At equal clean quality {words} the undefended run stopped early ({number}, one seed)" in said


class TestSignificance:
    def test_a_resample_draws_as_many_users_as_there_are(self) -> None:
        drawn, again = (torch.cat(list(resamples(7, size=50))) for _ in range(2))
        assert drawn.shape == (50, 7)
        assert bool((drawn.sum(1) == 7).all())
        assert torch.equal(drawn, again)

    def test_users_without_a_value_do_not_count(self) -> None:
        values = torch.tensor([[1.0, float("nan"), 3.0]])
        assert means(values, torch.tensor([[1.0, 5.0, 1.0]], dtype=torch.double)).item() == 2

    def test_the_interval_is_that_of_scipy(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        values = torch.randn(300, generator=torch.Generator().manual_seed(3), dtype=torch.double) + 0.1
        ours = estimate(values.mean().item(), bootstrap(values[None], size=9999)[:, 0])
        sample = (values.numpy(),)
        theirs = stats.bootstrap(sample, lambda x, axis: x.mean(axis), method="percentile", n_resamples=9999, rng=0)
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.005)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.005)

    def test_p_is_never_zero(self) -> None:
        assert estimate(1.0, torch.ones(100, dtype=torch.double)).p == 0.01


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, words in {
        "plain": ("trajectory=1",),
        "every": ("trajectory=2", "defense=rawp"),
        "none": (),
        "other": ("trajectory=1", "split.seed=1"),
    }.items():
        out = tmp_path_factory.mktemp(name)
        metrics = train.run(composing.typed(compose("train", *SMALL, *words), "train"), out)
        (out / "metrics.json").write_text(json.dumps(metrics))
        found[name] = out
    return found


def asked(ckpt: Path, frontier: Path | str, *words: str) -> Any:
    composed = compose("attack", f"ckpt='{ckpt}'", f"frontier={frontier}", "device=cpu", "attack.steps=2", *words)
    return composing.typed(composed, "attack")


class TestTrajectory:
    def test_it_has_every_nth_epoch(self, runs: dict[str, Path]) -> None:
        kept = {name: checkpoint.epochs(str(out)) for name, out in runs.items()}
        assert kept == {"plain": [1, 2, 3, 4, 5, 6], "every": [2, 4, 6], "none": [], "other": [1, 2, 3, 4, 5, 6]}

    def test_the_best_of_its_states_is_the_checkpoint(self, runs: dict[str, Path]) -> None:
        history = pd.read_csv(runs["plain"] / "history.csv")
        best = int(history["ndcg@10"].idxmax()) + 1
        loaded = checkpoint.load(str(runs["plain"]), data_dir=None, device=torch.device("cpu"))
        before = {name: each.clone() for name, each in loaded.model.state_dict().items()}
        checkpoint.at_epoch(str(runs["plain"]), loaded, 1 if best != 1 else 2)
        assert any(not torch.equal(each, before[name]) for name, each in loaded.model.state_dict().items())
        checkpoint.at_epoch(str(runs["plain"]), loaded, best)
        assert all(torch.equal(each, before[name]) for name, each in loaded.model.state_dict().items())

    def test_keeping_it_changes_nothing(self, runs: dict[str, Path]) -> None:
        assert (runs["plain"] / "metrics.json").read_text() == (runs["none"] / "metrics.json").read_text()

    def test_a_negative_distance_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match="trajectory=-1"):
            train.run(composing.typed(compose("train", *SMALL, "trajectory=-1"), "train"), tmp_path)


class TestTask:
    def test_a_run_is_held_against_an_undefended_one(self, runs: dict[str, Path], tmp_path: Path) -> None:
        told = attack.run(asked(runs["every"], runs["plain"]), tmp_path)
        frame = pd.read_csv(tmp_path / "frontier.csv")
        assert frame.groupby("run").size().to_dict() == {"this run": 4, "undefended": 7}
        assert {"frontier/gap", "frontier/gap/p", "frontier/area", "frontier/area/low"} <= told.keys()
        assert (tmp_path / "frontier.png").is_file()
        assert not (tmp_path / "resume").exists()
        plain = attack.run(asked(runs["every"], "null"), tmp_path)
        assert told["attacked/ndcg@10"] == pytest.approx(plain["attacked/ndcg@10"], abs=1e-12)
        assert told["clean/ndcg@10"] == pytest.approx(plain["clean/ndcg@10"], abs=1e-12)

    def test_a_run_without_a_trajectory_is_held_against_one_as_a_point(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        told = attack.run(asked(runs["none"], runs["plain"]), tmp_path)
        assert told["frontier/gap"] <= 1e-12  # it is one of the states of the other
        assert "frontier/area" not in told

    def test_a_trajectory_can_be_seen_alone(self, runs: dict[str, Path], tmp_path: Path) -> None:
        told = attack.run(asked(runs["plain"], "true"), tmp_path)
        assert set(told) == {"clean/ndcg@10", "attacked/ndcg@10"}
        assert len(pd.read_csv(tmp_path / "frontier.csv")) == 7

    def test_an_interrupted_comparison_goes_on(
        self, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = attack.run(asked(runs["every"], runs["plain"]), tmp_path)
        out, calls = tmp_path / "cut", [0]
        out.mkdir()
        original = checkpoint.at_epoch

        def interrupted(*args: Any) -> None:
            calls[0] += 1
            if calls[0] == 4:
                raise KeyboardInterrupt
            original(*args)

        monkeypatch.setattr(checkpoint, "at_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attack.run(asked(runs["every"], runs["plain"]), out)
        assert len(list((out / "resume").glob("*.safetensors"))) == 5
        assert attack.run(asked(runs["every"], runs["plain"]), out) == whole

    @pytest.mark.parametrize(
        ("ckpt", "frontier", "words", "message"),
        [
            ("plain", "none", (), "kept no epochs; train it with trajectory=1"),
            ("none", "true", (), "kept no epochs"),
            ("none", "other", (), "there is nothing to compare"),
            ("none", "plain", ("goal=promote",), "goal=promote: the frontier is about quality"),
            ("none", "plain", ("poison=random",), "frontier and poison"),
            ("none", "plain", ("slices=[activity]",), "slices says nothing with frontier"),
            ("none", "plain", ("labels=some",), "unknown labels"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(
        self, runs: dict[str, Path], tmp_path: Path, ckpt: str, frontier: str, words: tuple[str, ...], message: str
    ) -> None:
        other = runs.get(frontier, frontier)
        with pytest.raises(RrecError, match=message):
            attack.run(asked(runs[ckpt], other, *words), tmp_path)
        assert not list(tmp_path.iterdir())
