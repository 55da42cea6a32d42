"""Detectors of fake users against their definitions, and how what they find is counted."""

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import interactions
from fakes import FAKED, GENUINE, GROUP, find, step
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec.clean import Detector, cleaned, judged, robust, visible
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import burstiness, explicit, implicit, profiles
from robustbench_rec.cleans.fap import FAP, spread, weights
from robustbench_rec.cleans.isolation_forest import IsolationForestDetector
from robustbench_rec.data import Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.metrics import detection
from robustbench_rec.noises._events import joined

DETECTORS = [name for name in cleans if issubclass(cleans[name], Detector)]


@pytest.mark.parametrize("name", DETECTORS)
class TestEveryDetector:
    def test_it_flags_the_share_with_the_largest_suspicion_and_all_their_events(self, name: str) -> None:
        found = find(name, FAKED, share=0.2)
        assert int(found.flagged.sum()) == round(0.2 * FAKED.n_users)
        assert found.scores[found.flagged].min() >= found.scores[~found.flagged].max()
        assert torch.equal(found.removed, found.flagged[FAKED.train.users])

    def test_a_threshold_keeps_who_is_not_far_out(self, name: str) -> None:
        wide, far = (find(name, FAKED, share=1.0, threshold=each) for each in (1.0, 1e9))
        scores = robust(wide.scores[:, None])[:, 0]
        assert torch.equal(wide.flagged, scores > 1.0)
        assert not far.flagged.any()

    def test_with_known_it_flags_as_many_as_there_are_fakes(self, name: str) -> None:
        _, [(_, finding)] = cleaned(FAKED, [step(name, known=True, share=0.5)])
        assert int(finding.flagged.sum()) == 6
        with pytest.raises(RrecError, match=f"clean={name} with known=true: dataset 'tiny' has no fake users"):
            cleaned(GENUINE, [step(name, known=True)])
        with pytest.raises(RrecError, match=f"clean={name} with known=true flags .*: leave out clean.threshold=2.0"):
            step(name, known=True, threshold=2.0)

    def test_a_user_without_events_is_neither_judged_nor_flagged(self, name: str) -> None:
        data = replace(FAKED, train=FAKED.train.where(FAKED.train.users > 2))
        found = find(name, data, share=1.0)
        assert not found.flagged[:3].any()
        assert found.scores[:3].isnan().all()
        assert found.scores[3:].isfinite().all()

    def test_where_users_stand_says_nothing(self, name: str) -> None:
        if name == "isolation_forest":
            pytest.skip("its trees are grown on rows drawn by their places")
        order = torch.randperm(FAKED.n_users, generator=torch.Generator().manual_seed(3))
        moved = replace(FAKED, train=replace(FAKED.train, users=order[FAKED.train.users]))
        one, two = find(name, FAKED).scores, find(name, moved).scores
        torch.testing.assert_close(two[order], one)

    def test_who_likes_nothing_is_suspected_of_nothing(self, name: str) -> None:
        train = Interactions(FAKED.train.users, FAKED.train.items, torch.zeros(len(FAKED.train)))
        assert find(name, replace(FAKED, train=train)).scores.isfinite().all()

    def test_clicks_without_ratings_and_times_are_enough(self, name: str) -> None:
        train = Interactions(FAKED.train.users, FAKED.train.items, torch.ones(len(FAKED.train)))
        assert find(name, replace(FAKED, train=train)).scores.isfinite().all()

    @pytest.mark.parametrize(("changes", "message"), [({"share": 1.5}, "share=1.5"), ({"seed": -1}, "seed=-1")])
    def test_what_makes_no_sense_is_one_line(self, name: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            step(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pca_varselect", {"components": 0}),
        ("fap", {"seeds": 0}),
        ("fap", {"tolerance": 0.0}),
        ("isolation_forest", {"trees": 0}),
        ("dense_block", {"group": 1}),
        ("rules", {"rate": 0}),
        ("rules", {"longest": 1.5}),
        ("rules", {"longest": 0.0}),
        ("sanitise", {"words": 0}),
        ("rgcf", {"share": 1.0}),
        ("graphda", {"ckpt": "x", "items": 0, "users": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=f"clean.{next(iter(set(changes) - {'ckpt'}))}="):
        step(name, **changes)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_and_average_precision_are_those_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, fake = torch.tensor([float(s) for s, _ in rows]), torch.tensor([f for _, f in rows])
    if not bool(fake.any()) or bool(fake.all()):
        assert np.isnan(detection.auroc(scores, fake))
        return
    assert detection.auroc(scores, fake) == pytest.approx(metrics.roc_auc_score(fake, scores))
    assert detection.average_precision(scores, fake) == pytest.approx(metrics.average_precision_score(fake, scores))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_flags_are_counted_as_scikit_learn_counts(rows: list[tuple[bool, bool]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    flagged, fake = (torch.tensor(each) for each in zip(*rows, strict=True))
    found = detection.flags(flagged, fake)
    judge = metrics.precision_recall_fscore_support(fake, flagged, average="binary", zero_division=float("nan"))
    assert [found["precision"], found["recall"]] == pytest.approx(judge[:2], nan_ok=True)
    if found["f1"] == found["f1"] and found["f1"]:
        assert found["f1"] == pytest.approx(judge[2])
    assert found["genuine_lost"] == int((flagged & ~fake).sum())


class TestFeatures:
    """Against loops over users and items."""

    there, ratings = profiles(FAKED, torch.arange(FAKED.n_users), "ratings")

    def rows(self) -> tuple[Any, Any]:
        return self.there.numpy() > 0, self.ratings.numpy()

    def test_those_of_ratings(self) -> None:
        has, r = self.rows()
        n, raters = has.sum(1), has.sum(0)
        mean = [r[has[:, i], i].mean() if raters[i] else 0.0 for i in range(has.shape[1])]
        found = explicit(self.there, self.ratings, 3)
        spread_ = ((n - n.mean()) ** 2).sum()
        centred = np.where(has, r - np.array([[r[u, has[u]].mean()] for u in range(len(r))]), 0)
        for u in range(len(r)):
            items = np.flatnonzero(has[u])
            off = [(abs(r[u, i] - mean[i]), raters[i]) for i in items]
            assert found["rdma"][u] == pytest.approx(sum(d / n_i for d, n_i in off) / n[u])
            assert found["wdma"][u] == pytest.approx(sum(d / n_i**2 for d, n_i in off) / n[u])
            assert found["wda"][u] == pytest.approx(sum(d / n_i for d, n_i in off))
            assert found["length_variance"][u] == pytest.approx(abs(n[u] - n.mean()) / spread_)
            top = r[u, items].max()
            filler = [i for i in items if r[u, i] != top]
            variance = np.mean([(r[u, i] - mean[i]) ** 2 for i in filler]) if filler else 0.0
            assert found["mean_variance"][u] == pytest.approx(variance)
            fmtd = abs(top - np.mean([r[u, i] for i in filler])) if filler else 0.0
            assert found["fmtd"][u] == pytest.approx(fmtd)
            others = [
                centred[u] @ centred[v] / max(np.linalg.norm(centred[u]) * np.linalg.norm(centred[v]), 1e-12)
                for v in range(len(r))
                if v != u
            ]
            assert found["similarity"][u] == pytest.approx(np.mean(sorted(others)[-3:]), abs=1e-9)

    def test_those_of_clicks(self) -> None:
        has, _ = self.rows()
        counts = has.sum(0)
        found = implicit(FAKED, torch.arange(FAKED.n_users), self.there, 4)
        sets = [set(np.flatnonzero(row)) for row in has]
        for u, own in enumerate(sets):
            assert found["length"][u] == len(own)
            assert found["popularity"][u] == pytest.approx(np.mean([counts[i] for i in own]))
            levels = np.bincount([int(np.log2(counts[i])) for i in own]) / len(own)
            assert found["entropy"][u] == pytest.approx(-sum(p * np.log(p) for p in levels if p))
            pairs = [(has[:, i] & has[:, j]).sum() / np.sqrt(counts[i] * counts[j]) for i in own for j in own if i != j]
            assert found["likelihood"][u] == pytest.approx(np.mean(pairs))
            jaccard = sorted(len(own & other) / len(own | other) for v, other in enumerate(sets) if v != u)
            assert found["jaccard"][u] == pytest.approx(np.mean(jaccard[-4:]))
            assert FAKED.train.times is not None
            gaps = np.diff(np.sort(FAKED.train.times[FAKED.train.users == u].numpy()))
            burst = (gaps.std() - gaps.mean()) / (gaps.std() + gaps.mean())
            assert found["burstiness"][u] == pytest.approx(burst, abs=1e-9)

    def test_a_steady_clock_is_minus_one_and_few_events_say_nothing(self) -> None:
        users, times = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([30, 10, 20, 1, 9, 5])
        assert burstiness(users, times, 4).tolist() == [-1.0, 0.0, 0.0, 0.0]

    def test_an_item_rated_again_has_its_mean(self) -> None:
        train = Interactions(torch.tensor([0, 0, 1]), torch.tensor([2, 2, 1]), torch.tensor([1.0, 4.0, 3.0]))
        _, ratings = profiles(replace(GENUINE, train=train), torch.tensor([0, 1]), "auto")
        assert (ratings[0, 2], ratings[1, 1], ratings.sum()) == (2.5, 3.0, 5.5)

    def test_a_refusal_is_no_click(self) -> None:
        values = torch.tensor([1.0, 0.0, 1.0])
        train = Interactions(torch.tensor([0, 0, 1]), torch.tensor([2, 3, 1]), values)
        there, _ = profiles(replace(GENUINE, train=train), torch.tensor([0, 1]), "auto")
        assert there.nonzero().tolist() == [[0, 2], [1, 1]]

    def test_ratings_that_are_not_there_are_refused(self) -> None:
        clicks = replace(FAKED, train=replace(FAKED.train, values=torch.ones(len(FAKED.train))))
        with pytest.raises(RrecError, match="clean.form=ratings"):
            find("pca_varselect", clicks, form="ratings")
        with pytest.raises(RrecError, match="unknown clean.form 'stars'"):
            find("isolation_forest", clicks, form="stars")


class TestDetectors:
    def test_what_an_earlier_step_found_is_not_looked_for_again(self) -> None:
        steps = [step(each, known=True) for each in ("dense_block", "dense_block", "fap")]
        _, found = cleaned(GROUP, steps)
        fake = torch.arange(GROUP.n_users) >= GROUP.n_genuine
        left = fake.clone()
        for _, finding in found:
            assert int(finding.flagged.sum()) == int(left.sum())
            left &= ~finding.flagged

    @pytest.mark.parametrize("known", [False, True])
    def test_where_all_are_equally_suspicious_nobody_is_left_out(
        self, known: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, [(_, found)] = cleaned(FAKED, [step("dense_block", window=1, known=known)])
        assert not found.flagged.any()
        assert "clean=dense_block tells nobody apart" in caplog.text

    def test_as_many_components_as_users_tell_nothing(self) -> None:
        with pytest.raises(RrecError, match="components=500"):
            find("pca_varselect", FAKED, components=500)

    @pytest.mark.parametrize("components", [1, 3])
    def test_pca_varselect_is_that_of_numpy(self, components: int) -> None:
        _, values = profiles(FAKED, torch.arange(FAKED.n_users), "ratings")
        rows = values.numpy()
        z = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
        order = np.argsort(np.linalg.eig(z @ z.T)[0].real)[::-1][:components]
        loadings = np.linalg.eig(z @ z.T)[1].real[:, order]
        found = find("pca_varselect", FAKED, components=components, form="ratings").scores
        np.testing.assert_allclose(found, -(loadings**2).sum(1), atol=1e-8)

    def test_degree_sad_is_that_of_numpy(self) -> None:
        counts = np.bincount(FAKED.train.items)
        rows = []
        for user in range(FAKED.n_users):
            own = np.sort(counts[FAKED.train.items[FAKED.train.users == user].numpy()])
            rows.append([own.mean(), own[-1] - own[0], own[int(np.ceil(0.75 * len(own))) - 1]])
        table = torch.tensor(np.array(rows), dtype=torch.double)
        torch.testing.assert_close(find("degree_sad", FAKED).scores, robust(table).abs().mean(1))

    @pytest.mark.parametrize("name", ["degree_sad", "dense_block"])
    def test_refusals_are_no_clicks(self, name: str) -> None:
        train = replace(GENUINE.train, values=torch.ones(len(GENUINE.train)))
        refused = replace(GENUINE.valid, values=torch.zeros(len(GENUINE.valid)))
        only = interactions(torch.zeros(3, dtype=torch.long), torch.tensor([1, 2, 3]))
        lone = replace(only, values=torch.zeros(3), times=torch.zeros(3, dtype=torch.long))
        likes = replace(GENUINE, train=train.where(train.users > 0))
        more = replace(likes, train=joined(joined(likes.train, refused.where(refused.users > 0)), lone))
        found, expected = (step(name).find(each, None).scores for each in (more, likes))
        torch.testing.assert_close(found[1:], expected if len(expected) < len(found) else expected[1:])
        assert found[0].isfinite()

    def test_who_has_an_item_twice_is_in_no_denser_block(self) -> None:
        again = replace(GROUP, train=joined(GROUP.train, GROUP.train.where(GROUP.train.users < 5)))
        torch.testing.assert_close(find("dense_block", again).scores, find("dense_block", GROUP).scores)

    def test_isolation_forest_is_that_of_scikit_learn_on_the_features(self) -> None:
        ensemble = pytest.importorskip("sklearn.ensemble")
        built = step("isolation_forest", seed=3, trees=20)
        assert isinstance(built, IsolationForestDetector)
        data = visible(FAKED)
        features = built.features(data, torch.arange(FAKED.n_users)).numpy()
        assert features.shape == (66, 13)
        judge = ensemble.IsolationForest(n_estimators=20, random_state=3).fit(features)
        np.testing.assert_allclose(built.find(data, None).scores, -judge.score_samples(features))

    def test_fap_is_the_probability_that_a_walk_meets_a_seed_in_time(self) -> None:
        data, seeds = visible(FAKED), torch.zeros(FAKED.n_users, dtype=torch.bool)
        seeds[[3, 61]] = True
        edge = torch.zeros(data.n_users, data.n_items, dtype=torch.double)
        edge[data.train.users, data.train.items] = weights(data)
        walk = edge / edge.sum(1, keepdim=True) @ (edge / edge.sum(0).clamp_min(1e-12)).T
        free, tolerance = ~seeds, 0.01
        inside, out = walk[free][:, free], walk[free][:, seeds].sum(1)
        alive, met, rounds = torch.eye(int(free.sum()), dtype=torch.double), torch.zeros_like(out), 0
        while True:
            more = alive @ out  # meets a seed in exactly the next round
            alive, met, rounds = alive @ inside, met + more, rounds + 1
            if more.max() <= tolerance:
                break
        found = spread(data, seeds, tolerance)
        assert rounds > 1
        torch.testing.assert_close(found[free], met)
        assert (found[seeds] == 1).all()

    def test_in_the_limit_fap_is_the_hitting_probability(self) -> None:
        """1 wherever a path leads to a seed, which is why the tolerance decides; 0 elsewhere."""
        users, items = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4]), torch.tensor([0, 1, 1, 2, 2, 3, 4, 4])
        data = replace(visible(GENUINE), train=Interactions(users, items, torch.ones(8)), user_ids=list("abcde"))
        seeds = torch.tensor([True, False, False, False, False])
        found = spread(data, seeds, 1e-13)
        torch.testing.assert_close(found, torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.double))
        assert spread(data, seeds, 0.1)[1] > spread(data, seeds, 0.1)[2] > 0

    def test_weights_of_fap_are_those_of_the_paper(self) -> None:
        train = Interactions(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([5.0, 1.0, 3.0]))
        found = weights(replace(visible(GENUINE), train=train))
        expected = [1 + 2 / 3 + 1 / 4 + 2 / 3, 1 + 2 / 3 + 0 + 2 / 3, 1 + 0 + 1 / 4 + 0]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double))

    def test_seeds_that_fap_was_given_do_not_count_in_what_it_is_worth(self) -> None:
        fap = step("fap", known=True, seeds=2)
        assert isinstance(fap, FAP)
        _, [(_, finding)] = cleaned(FAKED, [fap])
        assert finding.told is not None
        assert int(finding.told.sum()) == 2
        assert finding.told[:60].sum() == 0
        worth = judged(finding, FAKED)
        others = (torch.arange(66) >= 60) & ~finding.told
        assert worth["recall"] == int((finding.flagged & others).sum()) / 4  # type: ignore[operator]

    def test_people_who_copy_each_other_are_a_dense_block(self) -> None:
        worth = judged(find("dense_block", GROUP, group=4, share=0.1), GROUP)
        assert worth["auroc"] > 0.95
        assert worth["recall"] > 0.6

    def test_ties_say_nothing_about_where_a_user_stands(self) -> None:
        users, items = torch.arange(20).repeat_interleave(2), torch.tensor([0, 1]).repeat(20)
        users, items = torch.cat([users, torch.tensor([20])]), torch.cat([items, torch.tensor([2])])  # who is no tie
        data = replace(GENUINE, train=Interactions(users, items, torch.ones(41)), user_ids=GENUINE.user_ids[:21])
        scores = find("degree_sad", data).scores
        assert (scores[:20] == scores[0]).all()
        assert scores[0] < scores[20]
        drawn = torch.stack([find("degree_sad", data, share=0.25, seed=seed).flagged for seed in range(40)])
        assert (drawn.sum(1) == 5).all()
        assert drawn[:, 20].all()
        assert drawn[:, :20].any(0).all()

    @pytest.mark.parametrize("window", [None, 50])
    @pytest.mark.parametrize("group", [2, 4])
    def test_dense_block_is_that_of_a_loop_over_pairs(self, group: int, window: int | None) -> None:
        train = GROUP.train
        assert train.times is not None
        slots = train.times * 0 if window is None else (train.times - train.times.min()) // window
        rows = [set() for _ in range(GROUP.n_users)]  # type: ignore[var-annotated]
        for user, item, slot in zip(train.users.tolist(), train.items.tolist(), slots.tolist(), strict=True):
            rows[user].add((item, slot))
        counts = Counter(each for row in rows for each in row)

        def residual(user: int, token: tuple[int, int]) -> float:
            chance = min(len(rows[user]) * counts[token] / len(train), 1 - 1e-3)
            return ((1 - chance) / chance) ** 0.5  # type: ignore[no-any-return]

        shared = [{each: residual(user, each) for each in row if counts[each] > 1} for user, row in enumerate(rows)]
        norms = [sum(value**2 for value in row.values()) ** 0.5 for row in shared]
        found = find("dense_block", GROUP, group=group, window=window).scores
        for user, own in enumerate(shared):
            alike = [
                sum(value * other.get(token, 0.0) for token, value in own.items()) / max(norms[user] * norms[v], 1e-12)
                for v, other in enumerate(shared)
                if v != user
            ]
            assert found[user].item() == pytest.approx(sorted(alike)[-(group - 1)], abs=1e-9)

    def test_without_labels_fap_starts_from_those_who_are_most_like_others(self) -> None:
        sets = [set(GROUP.train.items[GROUP.train.users == user].tolist()) for user in range(GROUP.n_users)]
        likeness = [
            np.mean(sorted(len(own & other) / len(own | other) for v, other in enumerate(sets) if v != u)[-4:])
            for u, own in enumerate(sets)
        ]
        seeds = torch.tensor(likeness) >= sorted(likeness)[-3]
        assert int(seeds.sum()) == 3
        found = find("fap", GROUP, seeds=3, near=4).scores
        torch.testing.assert_close(found, spread(visible(GROUP), seeds, 0.01))

    def test_a_window_wants_the_same_item_at_the_same_time(self) -> None:
        data = GROUP
        assert data.train.times is not None
        together = torch.where(data.train.users >= 60, 10**6 + data.train.items, data.train.times * 10**7)
        data = replace(data, train=replace(data.train, times=together))
        worth = judged(find("dense_block", data, group=3, share=0.1, window=100), data)
        assert worth["recall"] > 0.8
        with pytest.raises(RrecError, match="clean.window=100.*no times"):
            find("dense_block", replace(data, train=replace(data.train, times=None)), window=100)

    def test_data_too_large_for_a_matrix_are_refused(self) -> None:
        with pytest.raises(RrecError, match="too many for a step that holds them as a matrix"):
            profiles(replace(GENUINE, item_ids=[""] * 2**24), torch.arange(60), "clicks")

    def test_without_scikit_learn_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
        with pytest.raises(RrecError, match=r"needs the extra `detect`"):
            find("isolation_forest", FAKED)


def test_robust_deviations_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    table = torch.randn(31, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double) * torch.tensor([1, 5, 9])
    scale = torch.from_numpy(stats.median_abs_deviation(table.numpy(), scale="normal"))
    expected = (table - table.median(0).values) / scale
    torch.testing.assert_close(robust(table), expected, rtol=1e-4, atol=0)


def test_robust_columns_have_median_zero_and_survive_constants() -> None:
    table: Tensor = torch.tensor([[1.0, 3, 0], [2, 3, 0], [3, 3, 0], [100, 3, 9]])
    found = robust(table)
    assert found[1, 0] == 0
    assert (found[:, 1] == 0).all()
    assert found[3, 2] > 1
