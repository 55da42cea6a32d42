"""Cleaning of training data: what every step keeps to, the detectors against their definitions, what a run keeps."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any
from unittest.mock import ANY

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    Fixed,
    batch_for,
    build,
    buildable,
    compose,
    configured,
    gradients,
    interactions,
    make_data,
    question,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec import checkpoint, cleanings, composing
from robustbench_rec.clean import Detector, cleaned, judged, robust, visible
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import burstiness, explicit, implicit, profiles
from robustbench_rec.cleans.fap import FAP, spread, weights
from robustbench_rec.cleans.graphda import GraphDA, rebuilt
from robustbench_rec.cleans.isolation_forest import IsolationForestDetector
from robustbench_rec.cleans.rgcf import structural
from robustbench_rec.data import Cleaning, Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import clicked, edges_of, normalised
from robustbench_rec.losses import loss
from robustbench_rec.metrics import detection
from robustbench_rec.models import models
from robustbench_rec.noises._events import joined
from robustbench_rec.objective import Plain
from robustbench_rec.poisons import poisons
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import attack, distill, train
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.tasks.train import cleaning
from robustbench_rec.text.rules import RULES, TextRules

GENUINE = make_data(n_users=60, n_items=50, train=12, valid=2, test=3)
DETECTORS = [name for name in cleans if issubclass(cleans[name], Detector)]
STEPS = [name for name in cleans if name not in ("none", "graphda")]
SETTINGS: dict[str, dict[str, Any]] = {"rules": {"constant": 2, "longest": 0.9}, "sanitise": {"words": 2}}
NOTHING = torch.zeros(0, dtype=torch.long)


def poisoned(name: str = "copy", data: Data = GENUINE, **changes: Any) -> Data:
    settings = {"count": 2, "size": 0.1, "length": 10, **changes}
    return poisons.build(configured("poison", name, **settings))(data)  # type: ignore[no-any-return]


def step(name: str, **changes: Any) -> Any:
    return cleans.build({**configured("clean", name), **SETTINGS.get(name, {}), **changes})


def find(name: str, data: Data, **changes: Any) -> Any:
    return step(name, **changes).find(visible(data), None)


FAKED = poisoned()
GROUP = poisoned("covisit")


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
        users = torch.arange(20).repeat_interleave(2)
        train = Interactions(users, torch.tensor([0, 1]).repeat(20), torch.ones(40))
        data = replace(GENUINE, train=train, user_ids=GENUINE.user_ids[:20])
        drawn = torch.stack([find("degree_sad", data, share=0.25, seed=seed).flagged for seed in range(40)])
        assert (drawn.sum(1) == 5).all()
        assert drawn.any(0).all()

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


class TestSanitise:
    def texts(self, titles: list[str], **changes: Any) -> tuple[list[str], dict[str, int]]:
        table = pd.DataFrame({"title": [*titles, *["x"] * (50 - len(titles))], "year": 1.0})
        data, [(_, finding)] = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=None, **changes)])
        assert data.item_table is not None
        return data.item_table["title"].tolist()[: len(titles)], dict(finding.counts)

    def test_each_rule_is_counted_and_its_disguise_goes(self) -> None:
        disguised = [
            "<b>Toy</b> &amp; Story",
            "see https://spam.example/x now",
            "T\u200boy",
            "ｆull",
            "good good Good film",
        ]
        found, counts = self.texts(disguised)
        assert found == ["Toy & Story", "see now", "Toy", "full", "good film"]
        assert counts == {
            "disguises": 3,
            "html_or_links": 2,
            "repeated_signs": 0,
            "contacts": 0,
            "repeated_words": 1,
            "too_long": 0,
            "texts": 5,
        }

    @pytest.mark.parametrize(
        "text",
        [
            "see http://evil.com now",
            "see ht\u200btp://evil.com now",
            "see \uff48\uff54\uff54\uff50\uff1a\uff0f\uff0fevil.com now",
            "see htt\u0440://evil.com now",
            "see \uff57\uff57\uff57.evil.com now",
            "see \uff1cb\uff1enow",
            "see &amp;lt;b&amp;gt;now",
            "see \uff06lt;b\uff06gt;now",
            "see jo@@mail.example.org now",
        ],
    )
    def test_a_disguise_hides_nothing_from_the_rules(self, text: str) -> None:
        assert TextRules(None)(text) == "see now"

    @given(st.text(st.sampled_from("abp \u0440\u200b\uff1c\uff1e\uff06<>&;lt/:.@w!+1-5"), max_size=24))
    def test_no_text_changes_when_it_passes_again(self, text: str) -> None:
        clear = TextRules(None)(text)
        assert TextRules(None)(clear) == clear

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("write to jo.do+x@mail.example.org now", "write to now"),
            ("call +49 30 901820-0 or +1 (555) 123-4567", "call or"),
            ("call (555) 123-4567, 555-123-4567", "call ,"),
            ("555.123.4567 555 123 4567", ""),
        ],
    )
    def test_no_address_or_number_leads_to_a_person(self, text: str, left: str) -> None:
        assert self.texts([text]) == ([left], {**dict.fromkeys(RULES, 0), "contacts": 1, "texts": 1})

    @pytest.mark.parametrize(
        "text",
        [
            "2001: A Space Odyssey (1968)",
            "1984-1985-1986",
            "ISBN 978-3-16-148410-0",
            "Ticket 12345678901",
            "100 000 000 views",
            "1994 - 1995",
            "@home",
            "C++ 11 22 33",
            "555-1234",
        ],
    )
    def test_other_numbers_stay(self, text: str) -> None:
        assert self.texts([text])[1]["contacts"] == 0

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("buy buy, buy now", "buy now"),
            ("Windows 3.3", "Windows 3.3"),
            ("24/24 hours", "24/24 hours"),
            ("Model 1-1/2", "Model 1-1/2"),
            ("Catch-22: 22", "Catch-22: 22"),
        ],
    )
    def test_numbers_are_no_repeated_words(self, text: str, left: str) -> None:
        table = pd.DataFrame({"title": [text, *["x"] * 49]})
        data, _ = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=5)])
        assert data.item_table is not None
        assert data.item_table["title"][0] == left

    def test_what_the_rules_take_away_does_not_count_for_the_cap(self) -> None:
        assert TextRules(3).judged("&amp;lt;b one two&amp;gt; Toy Story Two")[0] == "Toy Story Two"
        assert TextRules(2).judged("Toy Story Two") == ("Toy Story", {"too_long"})

    def test_a_cap_cuts_and_an_honest_text_stays(self) -> None:
        table = pd.DataFrame({"title": ["one two three", "a < b and c > d", None, *["x"] * 47]})
        data, [(_, finding)] = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=5)])
        assert data.item_table is not None
        assert finding.counts["texts"] == 1
        assert data.item_table["title"].tolist()[:2] == ["one two three", "a < b and c"]
        assert pd.isna(data.item_table["title"][2])

    def test_a_column_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(RrecError, match="unknown text column of dataset 'tiny' 'titel'"):
            find("sanitise", GENUINE, columns=["titel"])

    @pytest.mark.parametrize(
        ("names", "told"),
        [(["year"], "has no column of prose; clean.columns takes any of year"), ([], "has no column of prose$")],
    )
    def test_data_without_prose_are_refused(self, names: list[str], told: str) -> None:
        table = pd.DataFrame({name: ["1990s"] * GENUINE.n_items for name in names}, index=range(GENUINE.n_items))
        with pytest.raises(RrecError, match=told):
            find("sanitise", replace(GENUINE, item_table=table))

    def test_no_column_at_all_is_refused(self) -> None:
        with pytest.raises(RrecError, match=r"clean.columns=\[\]: a column at least, or null for those of prose"):
            step("sanitise", columns=[])

    def test_it_changes_nothing_when_done_again(self) -> None:
        once, _ = cleaned(GENUINE, [step("sanitise")])
        again, _ = cleaned(once, [step("sanitise")])
        assert again is once

    def test_rules_stay_where_nothing_was_found_and_change_nothing_then(self, tmp_path: Path) -> None:
        table = pd.DataFrame({"title": ["one two"] * 50, "plot": ["three"] * 50, "year": 1.0})
        data = replace(GENUINE, item_table=table)
        found, _ = cleaned(data, [step("sanitise", words=2), step("sanitise", words=None, columns=["plot"])])
        assert found.cleaning is not None
        assert found.cleaning.rules == {"title": (TextRules(2),), "plot": (TextRules(2), TextRules(None))}
        assert found.fingerprint == data.fingerprint
        assert torch.equal(found.train.items, data.train.items)
        cleanings.save(tmp_path, found.cleaning)
        assert cleanings.load(str(tmp_path), "ckpt").rules == found.cleaning.rules

    def test_a_file_from_before_there_were_rules_leaves_none(self, tmp_path: Path) -> None:
        found, _ = cleaned(GENUINE, [step("sanitise")])
        assert found.cleaning is not None
        cleanings.save(tmp_path, found.cleaning)
        card = json.loads((tmp_path / "cleaning.json").read_text())
        del card["rules"]
        (tmp_path / "cleaning.json").write_text(json.dumps(card))
        assert cleanings.load(str(tmp_path), "ckpt") == replace(found.cleaning, kept=ANY, rules={})

    def test_a_text_that_is_written_later_passes_them_and_one_that_stands_there_does_not(self) -> None:
        table = pd.DataFrame({"title": ["x &amp; y", *["x"] * 49], "genres": "<b>z</b>"})
        data, _ = cleaned(replace(GENUINE, item_table=table), [step("sanitise", words=None)])
        assert data.item_table is not None
        data.item_table.loc[0, "title"] = standing = "x x y"  # which the rules would change
        assert cleanings.as_read(data, "title", [0, 0, 1], [standing, "a a b", standing]) == [standing, "a b", "x y"]
        assert cleanings.as_read(data, "genres", [0], ["<i>z</i>"]) == ["<i>z</i>"]
        assert cleanings.as_read(GENUINE, "title", [0], ["a a b"]) == ["a a b"]


class TestGraph:
    def test_rgcf_drops_the_least_alike_and_a_user_keeps_an_edge(self) -> None:
        users, _items = clicked(GENUINE)
        found = find("rgcf", GENUINE, share=0.3)
        assert found.edges.shape[1] == len(users) - round(0.3 * len(users))
        assert not found.removed.any()
        extreme = find("rgcf", GENUINE, share=0.99)
        assert torch.unique(extreme.edges[0]).tolist() == list(range(60))

    def test_its_likeness_is_the_cosine_of_audiences(self) -> None:
        users, items = clicked(GENUINE)
        matrix = torch.zeros(60, 50, dtype=torch.double).index_put_((users, items), torch.ones(1, dtype=torch.double))
        share = matrix / matrix.sum(0).clamp_min(1).sqrt()
        expected = []
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            audience = matrix[:, item].clone()
            own = (share[:, matrix[user] > 0]).sum(1) - share[:, item]
            audience[user] = 0
            expected.append(torch.nn.functional.cosine_similarity(audience, own, dim=0))
        torch.testing.assert_close(structural(users, items, 60, 50), torch.stack(expected))

    def test_the_portions_of_its_likeness_fit_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = structural(*clicked(GENUINE), 60, 50)
        monkeypatch.setattr("robustbench_rec.cleans.rgcf.CELLS", 7 * 60)
        torch.testing.assert_close(structural(*clicked(GENUINE), 60, 50), whole)

    def test_it_finds_edges_across_communities(self) -> None:
        draw = torch.Generator().manual_seed(0)
        together = (torch.arange(60)[:, None] < 30) == (torch.arange(40) < 20)
        inside = (torch.rand(60, 40, generator=draw) < 0.5) & together
        across = (torch.rand(60, 40, generator=draw) < 0.03) & ~together
        users, items = (inside | across).nonzero().unbind(1)
        train = Interactions(users, items, torch.ones(len(users)))
        data = replace(GENUINE, train=train, item_ids=GENUINE.item_ids[:40], item_table=None)
        wrong = across[users, items]
        found = find("rgcf", data, share=float(wrong.float().mean()))
        left = torch.isin(users * 40 + items, found.edges[0] * 40 + found.edges[1])
        assert (~left & wrong).sum() > 0.9 * wrong.sum()

    def test_where_users_stand_does_not_say_which_of_many_alike_go(self) -> None:
        """Every user has an item of its own, whose edge is like nothing: all these are level."""
        users = torch.arange(60).repeat_interleave(2)
        items = torch.stack([torch.arange(60) + 5, torch.arange(60) % 5], 1).flatten()
        train = Interactions(users, items, torch.ones(120))
        data = replace(GENUINE, train=train, item_ids=[f"i{each}" for each in range(65)], item_table=None)
        edges = find("rgcf", data, share=0.25).edges
        lost = 2 - torch.bincount(edges[0], minlength=60)
        assert lost.sum() == 30
        assert 5 < lost[:30].sum() < 25

    def test_models_on_a_graph_have_the_edges_and_learn_from_all_events(self) -> None:
        data, _ = cleaned(GENUINE, [step("rgcf", share=0.3)])
        assert data.edges is not None
        assert len(data.train) == len(GENUINE.train)
        for name in ("lightgcn", "kgat", "structure_aware_kgat"):
            assert build(name, data).n_edges == build(name, GENUINE).n_edges - 216
        one, two = (build("structure_aware_kgat", each).eval() for each in (data, GENUINE))
        asked = question(one, torch.arange(60), None, GENUINE)
        assert not torch.equal(Shifted(one)(asked).scores, Shifted(two)(asked).scores)
        assert len(edges_of(data)[0]) == len(edges_of(GENUINE)[0]) - 216
        dense = normalised(data).csr.dense(110)
        torch.testing.assert_close(dense, dense.T)

    @pytest.mark.parametrize("name", [each for each in models if buildable(each)])
    def test_models_say_whether_they_read_the_graph(self, name: str) -> None:
        data, _ = cleaned(GENUINE, [step("rgcf", share=0.3)])
        one, two = (dict(build(name, each).named_buffers()) for each in (data, GENUINE))
        alike = one.keys() == two.keys() and all(torch.equal(each, two[key]) for key, each in one.items())
        assert alike != models[name].reads_graph

    @pytest.mark.parametrize("name", ["mf", "deepcf_mlp", "kgcn"])
    def test_a_model_that_reads_no_graph_is_refused(self, name: str, tmp_path: Path) -> None:
        words = [each for each in WORDS if not each.startswith("model")] + [f"model={name}", "clean=rgcf"]
        told = (
            f"clean=rgcf changes the graph alone, and model '{name}' reads none .*kgat, lightgcn, structure_aware_kgat"
        )
        with pytest.raises(RrecError, match=told):
            run("train", tmp_path, *words)

    def test_a_step_after_it_is_refused(self) -> None:
        with pytest.raises(RrecError, match="clean=rules follows a step that changes the graph"):
            cleaned(GENUINE, [step("rgcf"), step("rules")])


@pytest.mark.parametrize("cells", [1, 2**25])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_graphda_takes_the_best_of_every_row_and_column(
    cells: int, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(GENUINE.n_users, GENUINE.n_items, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("robustbench_rec.cleans.graphda.CELLS", cells)
    config = GraphDA.Config(ckpt=None, items=3, users=4, threshold=threshold)
    wanted = set()
    for user, row in enumerate(scores.tolist()):
        wanted |= {(user, item) for item in sorted(range(len(row)), key=lambda item: -row[item])[:3]}
    for item, column in enumerate(scores.T.tolist()):
        wanted |= {(user, item) for user in sorted(range(len(column)), key=lambda user: -column[user])[:4]}
    wanted = {(user, item) for user, item in wanted if threshold is None or scores[user, item] > threshold}
    found = rebuilt(Shifted(Fixed(scores)), GENUINE, config)
    assert [tuple(each) for each in found.T.tolist()] == sorted(wanted)


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
