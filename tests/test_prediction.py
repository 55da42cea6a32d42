"""Clicks and ratings: metrics against scikit-learn, who is judged, what is trained on."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, Fixed, interactions, judge, make_data
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as judged
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.config import Prepare
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Result, evaluator, prediction, worth
from robustbench_rec.evaluation.prediction import Clicks
from robustbench_rec.histories import Histories
from robustbench_rec.losses import loss
from robustbench_rec.metrics.prediction import CLICKS, RATINGS, of_clicks, of_ratings
from robustbench_rec.prepare import prepare
from robustbench_rec.raw import Raw
from robustbench_rec.sampling import Events, Labelled
from robustbench_rec.shifted import Shifted
from robustbench_rec.splits import splits

PREPARE = Prepare(threshold=None, label=None, user_core=0, item_core=0, defects="drop")
GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(DATA.n_users, DATA.n_items, generator=GENERATOR)


def drawn(seed: int, size: int, *, levels: int) -> tuple[Tensor, Tensor]:
    """Scores with ties, 0 among them, and labels of both kinds."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-levels, levels + 1, (size,), generator=generator) * (8 / levels)
    labels = torch.randint(2, (size,), generator=generator).float()
    labels[:2] = torch.tensor([0.0, 1.0])
    return scores, labels


@given(seed=st.integers(0, 2**31), size=st.integers(2, 60), levels=st.sampled_from([1, 4, 1000]))
def test_every_metric_of_clicks_agrees_with_scikit_learn_ties_included(seed: int, size: int, levels: int) -> None:
    scores, labels = drawn(seed, size, levels=levels)
    found = {name: metric(scores, labels).item() for name, metric in CLICKS.items()}
    assert found.pop("no_positives") == float(not (scores > 0).any())
    said, sure = scores > 0, torch.sigmoid(scores.double())
    expected = {
        "accuracy": judged.accuracy_score(labels, said),
        "auc": judged.roc_auc_score(labels, scores),
        "f1": judged.f1_score(labels, said, zero_division=0),
        "logloss": judged.log_loss(labels, sure, labels=[0, 1]),
        "precision": judged.precision_score(labels, said, zero_division=0),
        "recall": judged.recall_score(labels, said, zero_division=0),
    }
    assert found == pytest.approx(expected, abs=1e-9)


@given(seed=st.integers(0, 2**31), size=st.integers(1, 60))
def test_every_metric_of_ratings_agrees_with_scikit_learn(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, labels = 3 + torch.randn(2, size, generator=generator)
    assert {name: metric(scores, labels).item() for name, metric in RATINGS.items()} == pytest.approx(
        {"mae": judged.mean_absolute_error(labels, scores), "rmse": judged.root_mean_squared_error(labels, scores)}
    )


@given(seed=st.integers(0, 2**31), size=st.integers(2, 60))
def test_metrics_that_are_means_over_events_are_the_means_of_their_values(seed: int, size: int) -> None:
    scores, labels = drawn(seed, size, levels=1000)
    for known, values in ((Clicks.known, of_clicks(scores, labels)), (RATINGS, of_ratings(scores, labels))):
        for name, each in values.items():
            assert each.mean().item() == pytest.approx(known[name](scores, labels).item())


def test_without_both_kinds_of_labels_auc_is_undefined() -> None:
    for labels in (torch.ones(3), torch.zeros(3)):
        assert math.isnan(CLICKS["auc"](torch.arange(3.0), labels).item())


def test_where_nothing_is_predicted_or_nothing_is_true_shares_are_0() -> None:
    nothing, something = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, -1.0])
    for name in ("precision", "recall", "f1"):
        assert CLICKS[name](nothing, torch.tensor([1.0, 0.0])) == 0
        assert CLICKS[name](something, torch.zeros(2)) == 0


def test_sure_and_wrong_is_expensive_but_finite() -> None:
    assert CLICKS["logloss"](torch.tensor([-200.0]), torch.ones(1)).item() == pytest.approx(200)


def valued(seed: int = 0, low: int = 0, high: int = 1, data: Data = DATA) -> Data:
    """The same events with labels or ratings between low and high."""
    generator = torch.Generator().manual_seed(seed)

    def part(events: Interactions) -> Interactions:
        values = torch.randint(low, high + 1, (len(events),), generator=generator).float()
        return replace(events, values=values)

    return replace(data, train=part(data.train), valid=part(data.valid), test=part(data.test))


def ask(protocol: str, **changes: Any) -> Any:
    return judge(protocol=protocol, **({"metrics": None, "n_negatives": None} | changes))


def result(data: Data, protocol: str, part: str = "test", scores: Tensor = SCORES, **changes: Any) -> Result:
    return evaluator(data, ask(protocol, **changes)).evaluate(Shifted(Fixed(scores)), part)


class TestLabelledClicks:
    @pytest.mark.parametrize("part", ["valid", "test"])
    @pytest.mark.parametrize("rows", [1, 5, 2**16])
    def test_every_event_is_judged_by_its_own_label(
        self, part: str, rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prediction, "ROWS", rows)
        data = valued()
        events = data.part(part)
        found = SCORES[events.users, events.items]
        expected = {name: Clicks.known[name](found, events.values).item() for name in Clicks.metrics}
        assert result(data, "clicks", part).metrics == pytest.approx(expected, abs=1e-12)
        assert result(data, "clicks", part).metrics["auc"] == pytest.approx(
            judged.roc_auc_score(events.values, found), abs=1e-12
        )

    def test_the_batches_of_an_attack_are_those_that_are_judged(self) -> None:
        data = valued()
        judging = evaluator(data, ask("clicks"))
        (batch,) = judging.batches(Fixed(SCORES), "test")
        assert batch.items is not None
        assert torch.equal(batch.items[:, 0], data.test.items)
        assert torch.equal(batch.labels[:, 0], data.test.values)
        assert judging.climbed(None) is loss("bce")
        with pytest.raises(RrecError, match="margin"):
            judging.climbed("margin")

    def test_a_part_of_clicks_only_gets_no_made_up_non_clicks(self) -> None:
        data = valued()
        few = replace(data, valid=replace(data.valid, values=torch.ones(len(data.valid))))
        (portion,) = evaluator(few, ask("clicks")).portions("valid")
        assert portion.items.shape == (len(data.valid), 1)

    def test_context_goes_with_the_events(self) -> None:
        data = valued()
        context = torch.arange(len(data.test))[:, None]
        data = replace(data, test=replace(data.test, context=context))
        (portion,) = evaluator(data, ask("clicks")).portions("test")
        assert torch.equal(portion.context, context)


CLICKED = valued(low=1, high=1)


class TestClicksOnly:
    @pytest.mark.parametrize("part", ["valid", "test"])
    @pytest.mark.parametrize("n", [None, 1, 4])
    def test_every_click_stands_beside_items_that_the_user_has_neither_in_the_part_nor_in_those_before_it(
        self, part: str, n: int | None
    ) -> None:
        (portion,) = evaluator(CLICKED, ask("clicks", n_negatives=n)).portions(part)
        events = CLICKED.part(part)
        assert portion.items.shape == portion.labels.shape == (len(events), 1 + (n or 1))
        assert torch.equal(portion.items[:, 0], events.items)
        assert (portion.labels[:, 0] == 1).all()
        assert not portion.labels[:, 1:].any()
        owned = {
            pair
            for each in (CLICKED.train, CLICKED.valid, events)[:: 1 if part == "test" else 2]
            for pair in zip(each.users.tolist(), each.items.tolist(), strict=True)
        }
        pairs = zip(
            portion.users.repeat_interleave(n or 1).tolist(), portion.items[:, 1:].flatten().tolist(), strict=True
        )
        assert not owned & set(pairs)

    def test_they_are_drawn_once_from_the_seed(self) -> None:
        def items(seed: int) -> Tensor:
            found: Tensor = evaluator(CLICKED, ask("clicks"), seed=seed).portions("test")[0].items
            return found

        assert torch.equal(items(0), items(0))
        assert not torch.equal(items(0), items(1))

    def test_they_are_the_same_when_each_click_is_attacked_by_itself(self) -> None:
        asked = ask("clicks", n_negatives=3)
        found = [evaluator(CLICKED, asked, alone=alone).portions("test") for alone in (False, True)]
        together, apart = (torch.cat([each.items for each in one if each.items is not None]) for one in found)
        assert len(found[1]) == len(CLICKED.test)
        assert torch.equal(together, apart)

    def test_values_are_over_all_pairs(self) -> None:
        (portion,) = evaluator(CLICKED, ask("clicks", n_negatives=3)).portions("test")
        found = SCORES[portion.users[:, None], portion.items].flatten()
        assert result(CLICKED, "clicks", n_negatives=3).metrics["auc"] == pytest.approx(
            judged.roc_auc_score(portion.labels.flatten(), found), abs=1e-12
        )

    def test_an_oracle_is_perfect_and_a_constant_is_a_coin(self) -> None:
        oracle = torch.full_like(SCORES, -9.0)
        oracle[CLICKED.test.users, CLICKED.test.items] = 9.0
        perfect = result(CLICKED, "clicks", scores=oracle).metrics
        assert [perfect[name] for name in ("auc", "accuracy", "f1", "precision", "recall")] == [1.0] * 5
        coin = result(CLICKED, "clicks", scores=torch.zeros_like(SCORES)).metrics
        assert (coin["auc"], coin["logloss"]) == pytest.approx((0.5, math.log(2)))

    def test_without_negatives_there_is_nothing_to_tell_apart(self) -> None:
        with pytest.raises(RrecError, match="n_negatives=0.*at least 1"):
            evaluator(CLICKED, ask("clicks", n_negatives=0)).portions("test")


class TestRatings:
    def test_scores_are_ratings(self) -> None:
        data = valued(low=1, high=5)
        events = data.test
        error = SCORES[events.users, events.items].double() - events.values
        assert result(data, "ratings").metrics == pytest.approx(
            {"rmse": error.square().mean().sqrt().item(), "mae": error.abs().mean().item()}
        )

    def test_less_is_better(self) -> None:
        judging, asked = evaluator(valued(low=1, high=5), ask("ratings")), ask("ratings")
        assert judging.watched(None) == "rmse"
        assert judging.smaller >= {"rmse", "mae"}
        metrics = {"valid/rmse": 0.9, "valid/mae": 0.7, "test/rmse": 1.0}
        assert worth(asked, None, metrics) == -0.9
        assert worth(asked, "mae", metrics) == -0.7
        assert worth(ask("clicks"), None, {"valid/auc": 0.8, "valid/logloss": 0.6}) == 0.8
        assert worth(ask("clicks"), "logloss", {"valid/auc": 0.8, "valid/logloss": 0.6}) == -0.6

    def test_ratings_are_no_clicks(self) -> None:
        with pytest.raises(RrecError, match=r"has ratings; prepare\.label=<rating> makes clicks of them"):
            evaluator(valued(low=1, high=5), ask("clicks")).portions("test")


class TestMistakes:
    def test_metrics_of_another_protocol_are_refused(self) -> None:
        for protocol, name, known in (
            ("clicks", "rmse", "auc"),
            ("ratings", "auc", "rmse"),
            ("ratings", "ndcg", "mae"),
        ):
            with pytest.raises(RrecError, match=f"metric of protocol '{protocol}'.*{name}.*{known}"):
                evaluator(DATA, ask(protocol, metrics=[name]))

    def test_an_unknown_monitor_lists_the_metrics(self) -> None:
        with pytest.raises(RrecError, match="monitor.*accuracy"):
            evaluator(DATA, ask("clicks")).watched("ndcg@10")

    def test_a_score_that_is_no_number_is_refused(self) -> None:
        broken = SCORES.clone()
        broken[DATA.test.users[0], DATA.test.items[0]] = float("nan")
        with pytest.raises(RrecError, match="NaN"):
            result(CLICKED, "clicks", scores=broken)

    def test_an_empty_part_is_refused(self) -> None:
        empty = replace(DATA, valid=interactions([], []))
        with pytest.raises(RrecError, match="no valid events"):
            evaluator(empty, ask("ratings")).portions("valid")


@given(st.integers(0, 2**31))
def test_mse_is_the_mean_squared_error_of_what_counts(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.randn(2, 5, 4, generator=generator)
    mask = torch.rand(5, 4, generator=generator) > 0.5
    mask[0] = False
    batch = Batch(torch.arange(5), None, labels)
    torch.testing.assert_close(loss("mse")(Output(scores), batch), ((scores - labels) ** 2).mean(1))
    found = loss("mse")(Output(scores), replace(batch, mask=mask)).tolist()
    for row in range(5):
        errors = [(scores[row, c] - labels[row, c]).item() ** 2 for c in range(4) if mask[row, c]]
        assert found[row] == pytest.approx(sum(errors) / max(len(errors), 1), rel=1e-4)


class TestLabel:
    def ready(self, **changes: Any) -> Data:
        rows = [(f"u{u}", f"i{i}", float(1 + (u + i) % 5), 100 + i) for u in range(5) for i in range(10)]
        frame = pd.DataFrame(rows, columns=["user", "item", "rating", "time"])
        split = splits.build({"name": "ratio", "valid": 0.1, "test": 0.2, "order": "time", "seed": 0})
        return prepare(Raw(frame, scale=(1.0, 5.0)), "mine", split, replace(PREPARE, **changes))

    def test_at_least_so_many_stars_are_a_click_and_fewer_are_none(self) -> None:
        stars, clicks = self.ready(), self.ready(label=4.0)
        for part in ("train", "valid", "test"):
            one, two = stars.part(part), clicks.part(part)
            assert torch.equal(one.items, two.items)
            assert torch.equal(two.values, (one.values >= 4).float())
        assert clicks.report["clicks"] == 20

    def test_a_threshold_before_it_leaves_clicks_only(self) -> None:
        data = self.ready(threshold=4.0, label=4.0)
        assert sum(len(data.part(part)) for part in ("train", "valid", "test")) == 20
        assert all((data.part(part).values == 1).all() for part in ("train", "valid", "test"))

    def test_without_ratings_there_is_nothing_to_turn(self) -> None:
        frame = pd.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "x"]})
        split = splits.build({"name": "leave_one_out"})
        with pytest.raises(RrecError, match=r"no ratings that prepare\.label=4 could turn"):
            prepare(Raw(frame), "mine", split, replace(PREPARE, label=4.0))


class TestTrainingBatches:
    def data(self) -> Data:
        data = valued(low=1, high=5, data=make_data())
        keys = data.train.users * data.n_items + data.train.items
        return replace(data, train=replace(data.train, context=torch.stack([keys, -keys], 1)))

    def test_every_event_comes_once_with_its_own_label_and_context(self) -> None:
        data = self.data()
        sampler = Labelled(data, batch_size=7)
        batches = list(sampler.epoch(torch.Generator().manual_seed(0)))
        assert len(batches) == len(sampler) == math.ceil(len(data.train) / 7)
        found = {}
        for batch in batches:
            assert batch.items is not None
            assert batch.items.shape == batch.labels.shape == (len(batch), 1)
            keys = batch.users * data.n_items + batch.items[:, 0]
            assert batch.context is not None
            assert torch.equal(batch.context, torch.stack([keys, -keys], 1))
            found |= dict(zip(keys.tolist(), batch.labels[:, 0].tolist(), strict=True))
        keys = data.train.users * data.n_items + data.train.items
        assert found == dict(zip(keys.tolist(), data.train.values.tolist(), strict=True))

    @pytest.mark.parametrize("negatives", [0, 2])
    def test_beside_sampled_items_too_an_event_keeps_its_context(self, negatives: int) -> None:
        data = self.data()
        for batch in Events(data, batch_size=7, negatives=negatives).epoch(torch.Generator().manual_seed(0)):
            positives = batch.targets if batch.items is None else batch.items[:, 0]
            assert positives is not None
            assert batch.context is not None
            assert torch.equal(batch.context[:, 0], batch.users * data.n_items + positives)


def test_a_click_that_was_refused_is_no_positive_anywhere_but_in_its_own_label() -> None:
    values = (torch.arange(len(DATA.train)) % 2).float()
    data = replace(
        DATA, train=replace(DATA.train, values=values), test=replace(DATA.test, values=values[: len(DATA.test)])
    )
    refused = set(zip(data.train.users[values == 0].tolist(), data.train.items[values == 0].tolist(), strict=True))
    liked = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
    for window in (0, 9):
        for batch in Events(data, batch_size=9, negatives=2, window=window).epoch(torch.Generator().manual_seed(0)):
            assert batch.items is not None
            assert not refused & set(zip(batch.users.tolist(), batch.items[:, 0].tolist(), strict=True))
    seen = 0
    for batch in Labelled(data, batch_size=9, window=9).epoch(torch.Generator().manual_seed(0)):
        assert batch.items is not None
        assert batch.history is not None
        for user, item, label, row, size in zip(
            batch.users.tolist(),
            batch.items[:, 0].tolist(),
            batch.labels[:, 0].tolist(),
            batch.history.items.tolist(),
            batch.history.lengths.tolist(),
            strict=True,
        ):
            assert ((user, item) in refused) == (label == 0)
            own = liked.items[liked.starts[user] : liked.starts[user + 1]].tolist()
            assert row[:size] == (own[: own.index(item)] if label else row[:size])
            assert set(row[:size]) <= set(own)
            seen += 1
    assert seen == len(data.train)
    scores = torch.zeros(data.n_users, data.n_items)
    kept = data.test.liked()
    scores[kept.users, kept.items] = 1.0
    assert evaluator(data, judge()).evaluate(Shifted(Fixed(scores)), "test").metrics["recall@5"] == 1.0
