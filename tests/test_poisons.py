"""Poisons: what every one of them keeps to, the fake users in the data, the files that keep them, and retraining."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DATA, Toy, compose, configured, fit, make_data
from conftest import judge as judged
from torch import Tensor

from robustbench_rec import checkpoint, composing, profiles, savepoint
from robustbench_rec.data import Interactions, Profiles
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full
from robustbench_rec.factors import Factorisation, alternate, misfit, start
from robustbench_rec.poison import Shilling, View, _rated, nearest, rivals, sample
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import profile, reach, trained
from robustbench_rec.poisons.aush import _layers, patched
from robustbench_rec.poisons.clear import CLeaR
from robustbench_rec.poisons.rl import ClusterPolicy
from robustbench_rec.savepoint import Savepoint
from robustbench_rec.shifted import Shifted
from robustbench_rec.targets import targets
from robustbench_rec.tasks import attack, distill, finetune, train
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.threat import KNOWLEDGE

BIG = make_data(n_users=60, n_items=50, train=12, valid=2, test=3)
MAKERS = [name for name in poisons if issubclass(poisons[name], Shilling)]
HEURISTICS = [name for name in MAKERS if "steps" not in configured("poison", name)]
NUKES = ("love_hate", "reverse_bandwagon")
FEW = {"steps": 3, "sweeps": 4, "unroll": 2, "warm": 5}


def maker(name: str, **changes: Any) -> Shilling:
    """A poison of the registry with few steps, two targets and ten events a fake user."""
    config = configured("poison", name)
    config |= {key: value for key, value in FEW.items() if key in config}
    built = poisons.build({**config, "count": 2, "size": 0.1, "length": 10, **changes})
    assert isinstance(built, Shilling)
    return built


def rows(made: Profiles) -> list[list[int]]:
    return [made.events.items[made.events.users == row].tolist() for row in range(made.n)]


def values_of(made: Profiles, items: Tensor) -> Tensor:
    return made.events.values[torch.isin(made.events.items, items)]


def same(one: Profiles, two: Profiles) -> bool:
    return profiles.digest(one) == profiles.digest(two)


def events(users: list[int], items: list[int], values: list[float] | None = None) -> Interactions:
    given = torch.ones(len(users)) if values is None else torch.tensor(values)
    return Interactions(torch.tensor(users), torch.tensor(items), given)


@pytest.mark.parametrize("name", MAKERS)
class TestEveryPoison:
    def test_it_keeps_to_its_budget_and_has_the_targets_in_every_profile(self, name: str) -> None:
        made = maker(name).profiles(BIG)
        assert made.n == 6
        pushed = maker(name).view(BIG, made.targets).pushed.tolist()
        assert len(made.targets) == 2
        for row in rows(made):
            assert set(pushed) <= set(row)
            assert len(set(row)) == len(row) <= 10
        assert 0 <= int(made.events.items.min()) <= int(made.events.items.max()) < BIG.n_items
        assert set(made.events.values.tolist()) <= set(BIG.train.values.tolist())

    @pytest.mark.parametrize("stratum", ["popular", "unpopular"])
    @pytest.mark.parametrize("length", [10, 48])
    def test_fake_users_who_demote_by_clicks_never_click_a_target(self, name: str, stratum: str, length: int) -> None:
        made = maker(name, direction="nuke", feedback="clicks", stratum=stratum, length=length).profiles(BIG)
        assert len(made.events)
        assert not torch.isin(made.events.items, made.targets).any()

    def test_a_seed_makes_one_set_of_profiles(self, name: str) -> None:
        torch.manual_seed(1)
        one = maker(name, seed=3).profiles(BIG)
        torch.manual_seed(2)
        assert same(one, maker(name, seed=3).profiles(BIG))
        assert not same(one, maker(name, seed=4).profiles(BIG))

    def test_it_sees_neither_validation_nor_test_nor_the_truth(self, name: str) -> None:
        other = make_data(n_users=60, n_items=50, train=12, valid=4, test=7, seed=5)
        altered = replace(BIG, valid=other.valid, test=other.test, truth={"user/secret": torch.rand(60)})
        assert same(maker(name).profiles(BIG), maker(name).profiles(altered))

    def test_it_sees_the_training_events_of_the_users_that_it_knows_alone(self, name: str) -> None:
        half = maker(name, knowledge=0.5, items=["i3", "i4"])
        known = half.view(BIG, half.aims(BIG)).data
        assert known.n_users == 30
        there = torch.tensor([each in known.user_ids for each in BIG.user_ids])
        hidden = ~there[BIG.train.users]
        scrambled = replace(BIG.train, items=torch.where(hidden, 49 - BIG.train.items, BIG.train.items))
        assert same(half.profiles(BIG), half.profiles(replace(BIG, train=scrambled)))

    def test_it_says_what_it_may_do(self, name: str) -> None:
        made = maker(name)
        assert made.threat.knowledge in KNOWLEDGE
        words = made.profiles(BIG).about["threat"]
        assert words["surface"] == "training data"
        assert words["budget"] == "6 fake users (10.0%), 10 events each; sees the events of 60 users (100.0%)"

    def test_times_lie_in_the_genuine_range_and_rise(self, name: str) -> None:
        made = maker(name).profiles(BIG)
        assert BIG.train.times is not None
        assert made.events.times is not None
        assert BIG.train.times.min() <= made.events.times.min()
        assert made.events.times.max() <= BIG.train.times.max()
        for row in range(made.n):
            assert (made.events.times[made.events.users == row].diff() >= 0).all()

    def test_clicks_without_ratings_and_times_stay_so(self, name: str) -> None:
        plain = replace(BIG, train=Interactions(BIG.train.users, BIG.train.items, torch.ones(len(BIG.train))))
        made = maker(name).profiles(plain)
        assert made.events.times is None
        assert (made.events.values == 1).all()
        assert "rating" not in profiles.inject(plain, made).has

    def test_a_profile_may_hold_nothing_but_targets(self, name: str) -> None:
        pushed = 4 if name in NUKES else 2  # two rivals for each
        made = maker(name, length=pushed).profiles(BIG)
        assert all(len(row) == pushed for row in rows(made))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size": 0.0}, "size=0.0"),
            ({"knowledge": 1.5}, "knowledge=1.5"),
            ({"direction": "pull"}, "unknown direction of a poison 'pull'|direction=pull"),
            ({"feedback": "likes"}, "unknown feedback of a poison 'likes'"),
            ({"length": 1}, "poison.length=1"),
            ({"length": 50}, "poison.length=50"),
            ({"items": ["i99"]}, "has no item 'i99'"),
            ({"items": ["i3", "i4", "i3"]}, "item 'i3' is named twice"),
            ({"stratum": "rare"}, "unknown stratum"),
        ],
    )
    def test_what_makes_no_sense_is_one_line(self, name: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message) as caught:
            maker(name, **changes).profiles(BIG)
        assert "\n" not in str(caught.value)

    def test_knowing_only_users_without_events_is_one_line(self, name: str) -> None:
        known = torch.randperm(60, generator=torch.Generator().manual_seed(0))[0]
        data = replace(BIG, train=BIG.train.where(BIG.train.users != known))
        with pytest.raises(RrecError, match=r"poison.knowledge=0.01, poison.seed=0: the 1 users who are known"):
            maker(name, knowledge=0.01, items=["i3", "i4"]).profiles(data)


@pytest.mark.parametrize("name", HEURISTICS)
class TestRatings:
    def test_targets_get_the_extreme_rating_of_the_direction(self, name: str) -> None:
        for direction in ("push", "nuke") if name not in NUKES else ("nuke",):
            made = maker(name, direction=direction, feedback="ratings", stratum="random").profiles(BIG)
            assert set(values_of(made, made.targets).tolist()) == {5.0 if direction == "push" else 1.0}
            assert all(set(made.targets.tolist()) <= set(row) for row in rows(made))

    def test_clicks_demote_by_promoting_rivals(self, name: str) -> None:
        made = maker(name, direction="nuke", stratum="popular").profiles(BIG)
        pushed = maker(name, direction="nuke", stratum="popular").view(BIG, made.targets).pushed
        assert not set(pushed.tolist()) & set(made.targets.tolist())


def test_no_click_is_a_low_rating() -> None:
    values = BIG.train.values.new_ones(len(BIG.train)).index_fill(0, torch.tensor([0, 5]), 0.0)
    data = replace(BIG, train=replace(BIG.train, values=values))
    for name in ("random", "love_hate"):
        with pytest.raises(RrecError, match="has clicks, and none of them is low; use feedback=clicks"):
            maker(name, direction="nuke", feedback="ratings").profiles(data)


def test_a_policy_learns_which_clusters_are_rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards: list[float] = []

    def reward(self: ClusterPolicy, view: View, chosen: Tensor, clean: Any) -> float:
        rewards.append((chosen < 25).float().mean().item())  # whichever clusters these are in
        return rewards[-1]

    monkeypatch.setattr(ClusterPolicy, "_reward", reward)
    maker("rl", steps=30, draws=8, clusters=10, lr=1.0).profiles(BIG)
    assert np.mean(rewards[-8:]) > np.mean(rewards[:8]) + 0.1


def test_more_fake_users_who_lift_the_targets_are_rewarded_more() -> None:
    built = maker("rl")
    assert isinstance(built, ClusterPolicy)
    view = built.view(BIG, built.aims(BIG))
    draw = torch.Generator().manual_seed(0)
    clean = alternate(view.clicks, start(60, 50, built.config, draw, view.device), built.config, 5)
    liked = view.counts.masked_fill(~view.open, -1).topk(view.room).indices
    many, one = (built._reward(replace(view, n=n), liked.expand(n, -1), clean) for n in (30, 1))
    assert many > one


def test_the_fake_users_with_the_best_reward_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards: list[float] = []
    shown: list[Tensor] = []

    def reward(self: ClusterPolicy, view: View, chosen: Tensor, clean: Any) -> float:
        shown.append(chosen)
        rewards.append(float(len(rewards) * 7 % 12))
        return rewards[-1]

    monkeypatch.setattr(ClusterPolicy, "_reward", reward)
    built = maker("rl", steps=3, draws=4)
    _, best = built.choose(built.view(BIG, built.aims(BIG)), torch.Generator().manual_seed(0))
    assert torch.equal(best, shown[rewards.index(max(rewards))])
    assert rewards.index(max(rewards)) not in (0, 11)


def test_a_poison_model_spreads_the_targets_and_fakes_do_not_repeat_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaps: list[float] = []

    def watched(*args: Any, **more: Any) -> Tensor:
        gaps.append((found := reach(*args, **more)).item())
        return found

    monkeypatch.setattr("robustbench_rec.poisons.dlattack.reach", watched)
    built = maker("dlattack", weight=30.0, warm=20, decay=1e-6)
    fakes = [set(row) - set(built.aims(BIG).tolist()) for row in rows(built.profiles(BIG))]
    assert gaps[19] < gaps[0]
    assert sum(map(len, fakes[:5])) == len(set.union(*fakes[:5])) == 40


def test_dispersal_is_the_mean_of_the_peak_of_the_spectrum() -> None:
    built, none = (maker("clear", weight=weight) for weight in (2.0, 0.0))
    assert isinstance(built, CLeaR)
    assert isinstance(none, CLeaR)
    view = built.view(BIG, built.aims(BIG))
    fakes = profile(view, built.top(view, built.begin(view, torch.Generator().manual_seed(1))))
    draw = torch.Generator().manual_seed(built.shill.seed)
    h = torch.cat(trained(view, fakes, built.config, draw)).numpy()
    r = h.T @ (h @ torch.randn(h.shape[1], generator=draw).numpy())
    peak = np.abs(h @ np.outer(r, r) / (r @ r)).mean()
    assert (built.loss(view, fakes, 0) - none.loss(view, fakes, 0)).item() == pytest.approx(2 * peak, rel=1e-3)


def test_a_budget_is_told_as_it_is_and_with_what_is_seen() -> None:
    told = maker("average", size=0.001, knowledge=0.3).profiles(BIG).about["threat"]["budget"]
    assert told == "1 fake users (1.7%), 10 events each; sees the events of 18 users (30.0%)"


@pytest.mark.parametrize("name", ["pga", "revadv", "clear"])
def test_a_search_tries_two_profiles_at_least(name: str) -> None:
    with pytest.raises(RrecError, match="steps >= 2"):
        maker(name, steps=1)


@pytest.mark.parametrize("name", [name for name in MAKERS if poisons[name].threat.knowledge == "transfer"])
def test_a_surrogate_of_clicks_cannot_nuke_by_ratings(name: str) -> None:
    with pytest.raises(RrecError, match="its surrogate reads clicks"):
        maker(name, direction="nuke", feedback="ratings")


def test_fake_users_do_not_change_who_is_unpopular() -> None:
    poisoned = maker("random", size=0.5, length=30)(BIG)
    assert poisoned.n_users > BIG.n_users
    for stratum in ("unpopular", "popular"):
        one, two = (targets(each, None, stratum=stratum, count=4, seed=0) for each in (BIG, poisoned))
        assert torch.equal(one, two)


def test_too_many_targets_to_have_rivals_is_one_line() -> None:
    many = [f"i{each}" for each in range(30)]
    with pytest.raises(RrecError, match="nuke of 30 targets by clicks needs 60 other items"):
        maker("random", direction="nuke", items=many, length=49).profiles(BIG)


def test_what_is_disliked_is_the_mean_over_all_events() -> None:
    generator = torch.Generator().manual_seed(0)
    stars = (torch.rand(len(BIG.train), generator=generator) > 0.5) * 4.0 + 1.0
    rated = replace(BIG, train=replace(BIG.train, values=stars))
    built = maker("reverse_bandwagon", feedback="ratings", disliked=3)
    view = built.view(rated, built.aims(rated))
    selected, _ = built.choose(view, generator)
    frame = pd.DataFrame({"item": rated.train.items.numpy(), "value": rated.train.values.numpy()})
    told = frame[~frame["item"].isin(built.aims(rated).tolist())].groupby("item")["value"].agg(["mean", "size"])
    popular = told[told["size"] >= told["size"].sort_values().iloc[-10]]
    assert told["mean"][selected.tolist()].max() <= popular["mean"].sort_values().iloc[2] + 1e-6


class TestTable:
    """Who selects what and rates it how, as the literature has it."""

    def chosen(self, name: str, **changes: Any) -> tuple[Profiles, View, Tensor, Tensor]:
        built = maker(name, **changes)
        view = built.view(BIG, built.aims(BIG))
        return built.profiles(BIG), view, *built.choose(view, torch.Generator().manual_seed(0))

    def test_bandwagon_takes_the_most_popular_items(self) -> None:
        made, view, selected, fillers = self.chosen("bandwagon", popular=3, feedback="ratings")
        assert view.counts[selected].min() >= view.counts.masked_fill(~view.open, -1).sort().values[-3]
        assert fillers.shape == (6, 5)
        assert (values_of(made, selected) == 5).sum() >= 3 * 6

    def test_segment_takes_what_the_audience_likes_and_rates_the_rest_lowest(self) -> None:
        made, view, selected, _ = self.chosen("segment", nearest=4, feedback="ratings")
        near = nearest(view, view.pushed).masked_fill(~view.open, -1)
        assert near[selected].min() >= near.sort().values[-4] - 1e-6
        others = ~torch.isin(made.events.items, torch.cat([selected, view.pushed]))
        assert set(made.events.values[others].tolist()) == {1.0}
        assert set(values_of(made, selected).tolist()) == {5.0}

    def test_the_cosine_of_items_is_that_of_numpy(self) -> None:
        _, view, *_ = self.chosen("segment")
        x = view.clicks.numpy()
        norms = (x**2).sum(0) ** 0.5
        expected = sum(x.T @ x[:, item] / (norms * norms[item]).clip(1e-9) for item in view.pushed.tolist())
        torch.testing.assert_close(nearest(view, view.pushed), torch.tensor(expected, dtype=torch.float32))

    def test_average_over_popular_draws_from_the_popular_share(self) -> None:
        _, view, _, fillers = self.chosen("aop", share=0.4)
        among = view.counts.masked_fill(~view.open, -1).topk(20).values.min()
        assert (view.counts[fillers] >= among).all()

    def test_average_ratings_follow_the_items_and_random_ones_do_not(self) -> None:
        liked = replace(BIG.train, values=torch.where(BIG.train.items % 2 == 0, 5.0, 1.0))
        data = replace(BIG, train=liked)
        for name in ("average", "random"):
            made = maker(name, feedback="ratings", size=1.0, length=30).profiles(data)
            others = ~torch.isin(made.events.items, made.targets)
            odd = made.events.items[others] % 2 == 1
            gap = made.events.values[others][~odd].mean() - made.events.values[others][odd].mean()
            assert (gap == 4.0) if name == "average" else (abs(gap) < 0.3)

    def test_average_clicks_follow_popularity(self) -> None:
        skew = replace(BIG, train=events([*range(60)] * 2, [each % 40 for each in range(60)] + [40] * 60))
        made = maker("average", size=1.0, length=6, items=["i0", "i1"]).profiles(skew)
        counts = torch.bincount(made.events.items, minlength=50)
        assert counts[40] > 2 * counts[2:40].float().mean()

    def test_love_hate_and_reverse_bandwagon_are_for_nukes(self) -> None:
        for name in NUKES:
            with pytest.raises(RrecError, match="direction=nuke"):
                maker(name, direction="push")
        made, *_ = self.chosen("love_hate", feedback="ratings")
        assert set(made.events.values[~torch.isin(made.events.items, made.targets)].tolist()) == {5.0}
        made, _, selected, _ = self.chosen("reverse_bandwagon", feedback="ratings", disliked=3)
        assert set(values_of(made, selected).tolist()) == {1.0}

    def test_covisitation_takes_the_items_that_most_waiting_users_have(self) -> None:
        _, view, _, fillers = self.chosen("covisit", decay=1.0, size=0.02)
        reach = (view.waiting @ view.clicks).masked_fill(~view.open, -1)
        assert reach[fillers[0]].sum() == reach.topk(8).values.sum()

    def test_covisitation_turns_to_users_who_are_not_reached_yet(self) -> None:
        users = [each for each in range(12) for _ in range(3)]
        items = [item for each in range(12) for item in ((0, 1, 2) if each < 7 else (3, 4, 5))]
        data = replace(BIG, train=events(users, items), user_ids=BIG.user_ids[:12])
        built = maker("covisit", decay=0.01, items=["i9"], size=0.17, length=4)
        assert [sorted(set(row) - {9}) for row in rows(built.profiles(data))] == [[0, 1, 2], [3, 4, 5]]

    @pytest.mark.parametrize("decay", [0.1, 0.6])
    def test_covisitation_is_the_loop_over_fake_users_and_waiting_users(self, decay: float) -> None:
        """w = 1 of those who lack a target, 0 of others; a fake user multiplies it by decay ** (share of its items)."""
        items = [f"i{each}" for each in torch.bincount(BIG.train.items, minlength=50).topk(2).indices.tolist()]
        _, view, _, fillers = self.chosen("covisit", decay=decay, items=items)
        have = [{item for item in range(50) if view.clicks[user, item]} for user in range(60)]
        lacking = [len(set(view.pushed.tolist()) - each) for each in have]
        assert set(lacking) == {0, 1, 2}
        weights = [float(each > 0) for each in lacking]
        for row in fillers.tolist():
            scores = [sum(w for w, own in zip(weights, have, strict=True) if item in own) for item in range(50)]
            best = sorted((scores[item] for item in range(50) if view.open[item]), reverse=True)[: view.room]
            assert sorted((scores[item] for item in row), reverse=True) == pytest.approx(best, rel=1e-4)
            shares = [len(own & set(row)) / view.room for own in have]
            weights = [w * decay**share for w, share in zip(weights, shares, strict=True)]

    def test_copies_are_parts_of_genuine_profiles(self) -> None:
        made, view, *_ = self.chosen("copy")
        for row in rows(made):
            others = [each for each in row if each not in view.pushed.tolist()]
            assert (view.clicks[:, others].sum(1) == len(others)).any()

    def test_copied_are_those_who_are_nearest_to_users_who_lack_a_target(self) -> None:
        """Users 0 and 1 have the target; to the sum of the others user 2 has the best cosine, 3 the best product."""
        data = replace(
            BIG,
            train=events([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3, 4], [9, 0, 1, 2, 9, 0, 1, 2, 3, 4, 3, 4, 5, 3]),
            user_ids=BIG.user_ids[:5],
        )
        made = maker("copy", items=["i9"], size=0.2, length=4).profiles(data)
        assert [sorted(row) for row in rows(made)] == [[3, 4, 9]]

    def test_a_fact_counts_by_how_few_items_have_it_under_its_relation(self) -> None:
        """Items 1 and 2 share a fact with the target, that of 2 with four more; item 7 has another relation to it."""
        heads, tails = torch.tensor([0, 1, 0, 2, 3, 4, 5, 6, 7]), torch.tensor([55, 55, 56, 56, 56, 56, 56, 56, 55])
        kg = replace(DATA.kg, heads=heads, tails=tails, entity_ids=[f"e{each}" for each in range(57)])  # type: ignore[type-var]
        kg = replace(kg, relations=torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1]))
        data = replace(BIG, kg=kg)
        made = torch.cat(
            [
                torch.tensor(rows(maker("kg", items=["i0"], length=2, size=1.0, seed=s).profiles(data)))
                for s in range(10)
            ]
        )
        counts = torch.bincount(made[made != 0].flatten(), minlength=50)
        assert counts[7] == 0
        assert counts[1] / counts[2] == pytest.approx(3, rel=0.5)
        assert counts[1:7].sum() == 600

    def test_a_knowledge_graph_fills_with_what_shares_facts_with_the_targets(self) -> None:
        kg = replace(DATA.kg, heads=torch.tensor([0, 1, 2, 3]), tails=torch.tensor([55, 55, 55, 56]))  # type: ignore[type-var]
        kg = replace(kg, relations=torch.tensor([0, 0, 0, 1]), entity_ids=[f"e{each}" for each in range(57)])
        data = replace(BIG, kg=kg)
        made = maker("kg", items=["i0"], length=3).profiles(data)
        assert all(set(row) == {0, 1, 2} for row in rows(made))
        with pytest.raises(RrecError, match="needs a knowledge graph"):
            maker("kg").profiles(replace(BIG, kg=None))

    def test_rivals_stand_just_below_the_target(self) -> None:
        """Of like-minded users, fewer have item i than item i - 1; another taste has its own items."""
        draw = torch.Generator().manual_seed(0)
        chance = torch.zeros(60, 50)
        chance[:40, :20] = torch.linspace(0.9, 0.1, 20)
        chance[40:, 20:] = 0.5
        users, items = (torch.rand(60, 50, generator=draw) < chance).nonzero().unbind(1)
        data = replace(BIG, train=events(users.tolist(), items.tolist()))
        view = replace(maker("random").view(data, torch.tensor([8])), pushed=torch.tensor([8]))
        found = rivals(view).tolist()
        assert len(found) == 2
        assert set(found) <= set(range(9, 20))

    def test_rows_are_drawn_by_their_weights_and_without_repetition(self) -> None:
        weights = torch.tensor([-1.0, 0.0, 1.0, 3.0, 6.0])
        drawn = sample(weights, 20_000, 1, torch.Generator().manual_seed(0))
        shares = torch.bincount(drawn.flatten(), minlength=5) / len(drawn)
        torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 0.1, 0.3, 0.6]), atol=0.015, rtol=0)
        assert (
            sample(weights, 100, 4, torch.Generator().manual_seed(0)).sort().values == torch.tensor([1, 2, 3, 4])
        ).all()


class TestLevels:
    """How many of which rating are drawn, against the normal distribution cut in the middle between the levels."""

    @pytest.mark.parametrize(("rate", "item"), [("overall", 1), ("item", 0), ("item", 1), ("item", 2), ("item", 3)])
    def test_they_are_normal_and_moved_to_the_nearest_level(self, rate: Any, item: int) -> None:
        items = [0] * 8 + [1] * 4 + [2]  # spread, narrow, one event; item 3 has none
        values = [1.0, 5, 1, 5, 3, 3, 2, 5, 2, 2, 3, 2, 5]
        data = replace(BIG, train=events(list(range(13)), items, values))
        whole = np.array(values)
        own = whole[np.array(items) == item]
        mean = own.mean() if rate == "item" and len(own) else whole.mean()
        deviation = own.std() if rate == "item" and len(own) > 1 else whole.std()
        edges = torch.tensor([1.5, 2.5, 4.0], dtype=torch.double)  # levels are 1, 2, 3 and 5
        below = torch.special.ndtr((edges - mean) / deviation)
        expected = torch.cat([below, torch.ones(1).double()]).diff(prepend=torch.zeros(1).double())
        drawn = _rated(data, torch.full((20_000, 1), item), rate, torch.Generator().manual_seed(0))
        shares = torch.stack([(drawn == level).double().mean() for level in (1, 2, 3, 5)])
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)


class TestSurrogate:
    config = Factorisation(dim=3, alpha=4.0, l2=0.5)

    def test_a_sweep_solves_the_normal_equations_of_every_row(self) -> None:
        torch.manual_seed(0)
        x = (torch.rand(7, 5) < 0.4).double()
        _, v = torch.randn(7, 3).double(), torch.randn(5, 3).double()
        users, items = alternate(x, (torch.zeros(7, 3).double(), v), self.config, 1)
        for row in range(7):
            weight = torch.diag(1 + 4.0 * x[row])
            expected = torch.linalg.solve(v.T @ weight @ v + 0.5 * torch.eye(3).double(), v.T @ weight @ x[row])
            torch.testing.assert_close(users[row], expected)
        torch.testing.assert_close(items, alternate(x.T, (users[:0], users), self.config, 1)[0])

    def test_more_sweeps_fit_better(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = (torch.rand(20, 15, generator=generator) < 0.3).float()
        first = start(20, 15, self.config, generator, torch.device("cpu"))
        values = [misfit(x, alternate(x, first, self.config, sweeps), self.config).item() for sweeps in (1, 2, 5, 10)]
        assert values == sorted(values, reverse=True)

    @pytest.mark.parametrize("name", ["revadv", "pga"])
    def test_the_gradient_in_the_fakes_is_that_of_finite_differences(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With all steps unrolled, the surrogate's whole training is what is differentiated."""
        tiny = make_data(n_users=6, n_items=8, train=3, valid=1, test=1)
        built: Any = maker(name, sweeps=4, unroll=4, dim=3, items=["i0"], length=3, size=0.34)
        view = built.view(tiny, torch.tensor([0]))
        view.__dict__["clicks"] = view.clicks.double()
        wide = lambda *args: tuple(each.double() for each in start(*args))  # noqa: E731
        monkeypatch.setattr("robustbench_rec.poisons._search.start", wide)
        fakes = torch.tensor([[1.0, 1, 0, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0, 0, 0]]).double().requires_grad_()
        (gradient,) = torch.autograd.grad(built.loss(view, fakes, 0), fakes)
        assert gradient[:, 1:].abs().max() > 1e-6  # fillers are reached, not only the targets
        for row, column in [(0, 0), (0, 1), (0, 3), (1, 2), (1, 4), (1, 7)]:
            step = torch.zeros_like(fakes)
            step[row, column] = 1e-5
            with_it, without = (built.loss(view, fakes.detach() + sign * step, 0) for sign in (1, -1))
            assert gradient[row, column].item() == pytest.approx((with_it - without).item() / 2e-5, rel=1e-4, abs=1e-9)

    @pytest.mark.parametrize("name", ["revadv", "pga"])
    def test_the_search_lowers_the_loss_of_its_surrogate(self, name: str) -> None:
        built: Any = maker(name, steps=15, sweeps=10, unroll=5, dim=4, items=["i0", "i1"])
        view = built.view(BIG, torch.tensor([0, 1]))
        from robustbench_rec.poisons._search import profile

        draw = torch.Generator().manual_seed(0)
        first = built.top(view, built.begin(view, draw))
        _, best = built.choose(view, torch.Generator().manual_seed(0))
        before, after = (built.loss(view, profile(view, each), 0).item() for each in (first, best))
        assert after < before

    def test_reach_is_the_mean_gap_to_the_k_th_item_of_those_who_lack_a_target(self) -> None:
        built = maker("clear")
        view = built.view(BIG, built.aims(BIG))
        draw = torch.Generator().manual_seed(0)
        users, items = torch.randn(60, 4, generator=draw), torch.randn(50, 4, generator=draw)
        scores, gaps = (users @ items.T).numpy(), []
        for user in range(60):
            free = sorted((scores[user, item] for item in range(50) if not view.clicks[user, item]), reverse=True)
            gaps += [free[2] - scores[user, item] for item in view.pushed.tolist() if not view.clicks[user, item]]
        for least in (float("-inf"), -0.5, 0.0):
            expected = np.mean([max(gap, least) for gap in gaps])
            assert reach(view, users, items, 3, least=least).item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("name", ["pga", "revadv"])
    def test_the_losses_are_those_of_a_loop_over_users(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        built: Any = maker(name)
        view = built.view(BIG, built.aims(BIG))
        draw = torch.Generator().manual_seed(0)
        users, items = torch.randn(60, 4, generator=draw), torch.randn(50, 4, generator=draw)
        monkeypatch.setattr(f"robustbench_rec.poisons.{name}.trained", lambda *_: (users, items))
        told = [
            (row[item] - (row.exp().sum().log() if name == "revadv" else 0)).item()
            for row, clicked in zip((users @ items.T).double(), view.clicks, strict=True)
            for item in view.pushed.tolist()
            if not clicked[item]
        ]
        assert built.loss(view, view.clicks[:0], 0).item() == pytest.approx(-np.mean(told), rel=1e-4)

    def test_the_profiles_with_the_least_loss_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built: Any = maker("revadv", steps=6)
        view = built.view(BIG, built.aims(BIG))
        tops, tried = [torch.arange(10, 18).expand(6, 8) + shift for shift in range(7)], list[Tensor]()

        def told(view: View, fakes: Tensor, step: int) -> Tensor:
            tried.append(fakes.detach().clone())
            return 0 * fakes.sum() + [3.0, 2.0, 0.5, 1.0, 0.7, 0.6][step]

        monkeypatch.setattr(built, "loss", told)
        monkeypatch.setattr(built, "top", lambda view, z: tops.pop(0))
        _, best = built.choose(view, torch.Generator().manual_seed(0))
        assert torch.equal(profile(view, best), tried[2])


class Interrupted(Savepoint):
    """Keeps every round and is killed after some."""

    left = 10**6

    def save(self, rounds: int, parts: Any) -> None:
        super().save(rounds, parts)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in HEURISTICS])
class TestASearchThatIsKilled:
    @pytest.fixture(autouse=True)
    def _every_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(savepoint, "SAVE_EVERY", -1.0)

    def killed(self, name: str, path: Path, rounds: int) -> Shilling:
        built = maker(name)
        built.savepoint = Interrupted(path, "this")
        built.savepoint.left = rounds
        with pytest.raises(KeyboardInterrupt):
            built.profiles(BIG)
        return built

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_goes_on_to_the_same_fake_users(self, name: str, rounds: int, tmp_path: Path) -> None:
        path = tmp_path / "resume" / "poison.safetensors"
        self.killed(name, path, rounds)
        again = maker(name)
        again.savepoint = Interrupted(path, "this")
        assert same(again.profiles(BIG), maker(name).profiles(BIG))
        whole = 6 if name == "dlattack" else FEW["steps"]  # a fake user is a round
        assert 10**6 - again.savepoint.left == whole - rounds

    def test_begins_anew_where_what_is_kept_is_of_another(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "resume" / "poison.safetensors"
        self.killed(name, path, 1)
        again = maker(name, seed=5)
        again.savepoint = Savepoint(path, "that")
        assert same(again.profiles(BIG), maker(name, seed=5).profiles(BIG))

    def test_what_is_no_state_is_one_line(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "resume" / "poison.safetensors"
        self.killed(name, path, 1)
        again = maker(name)
        again.savepoint = Savepoint(path, "this")
        tensors, notes = savepoint.load_state(path, torch.device("cpu"))
        cut = {key: each[:1] if each.ndim else each for key, each in tensors.items()}
        savepoint.save_state(path, cut, notes)
        with pytest.raises(RrecError, match="resume: .*poison.safetensors is not a state of this run"):
            again.profiles(BIG)


def test_a_training_that_was_killed_in_the_search_takes_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savepoint, "SAVE_EVERY", -1.0)
    words = ("dataset=synthetic", "model=mf", "epochs=1", "poison=revadv", "poison.steps=4", "device=cpu")
    cfg = composing.typed(compose("train", *words), "train")
    searched: list[int] = []
    save = Savepoint.save

    def counted(self: Savepoint, rounds: int, parts: Any) -> None:
        save(self, rounds, parts)
        searched.append(rounds)
        if len(searched) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Savepoint, "save", counted)
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train.run(cfg, tmp_path / "killed")
    train.run(cfg, tmp_path / "killed")
    assert searched == [1, 2, 3, 4]
    train.run(cfg, tmp_path / "whole")
    one, two = (profiles.load(str(tmp_path / each), "poison.path") for each in ("killed", "whole"))
    assert same(one, two)
    assert not (tmp_path / "killed" / "resume").exists()


def test_aush_weighs_what_the_template_does_not_have() -> None:
    scores, own = torch.tensor([[0.5, 0.0], [1.0, 0.8]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    errors = [0.5**2 + 0.5**2, 0.2 * 0 + 1, 0.2 * 1 + 0, 0.2**2 + 0.2**2]
    assert patched(scores, own, 0.2).item() == pytest.approx(sum(errors) / 4)


class Told(Savepoint):
    """Keeps the parameters of the nets after the last round."""

    def save(self, rounds: int, parts: Any) -> None:
        nets = {name: each.state_dict() for name, each in parts.items() if isinstance(each, torch.nn.Module)}
        self.kept = {f"{net}/{key}": each.clone() for net, state in nets.items() for key, each in state.items()}


class TestAUSH:
    """D: −log D(real) − log(1 − D(fake)); G: −log D(fake) and the errors of its patch."""

    built: Any = maker("aush", steps=3, inner=2, selected=4, dim=6, zeros=0.3, lr=0.05)
    view = built.view(BIG, built.aims(BIG))
    popular = view.counts.masked_fill(~view.open, -1).topk(4).indices

    def templates(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Users, and four of the events of each beside the popular ones and the targets as 0/1."""
        others = self.view.clicks.clone()
        others[:, [*self.popular.tolist(), *self.view.pushed.tolist()]] = 0
        long = [user for user in range(60) if others[user].sum() >= 4]
        users = torch.tensor(long)[torch.randint(len(long), (count,), generator=draw)]
        chosen = sample(torch.where(others[users] > 0, 1.0, -1.0), count, 4, draw)
        return users, torch.zeros(count, 50).scatter_(1, chosen, 1.0)

    def test_both_players_train_on_their_losses(self) -> None:
        self.built.savepoint = Told(None)
        _, fillers = self.built.choose(self.view, torch.Generator().manual_seed(7))
        draw = torch.Generator().manual_seed(7)
        generator, judge = _layers([50, 6, 4], draw), _layers([50, 6, 6, 1], draw)
        adams = [torch.optim.Adam(each.parameters(), lr=0.05) for each in (judge, generator)]
        for turn in [0, 0, 1, 1] * 3:
            users, template = self.templates(16, draw)
            real, fake = template.clone(), template.clone()
            own, patch = self.view.clicks[users][:, self.popular], generator(template).sigmoid()
            real[:, self.popular], fake[:, self.popular] = own, patch
            fooled = judge(fake).sigmoid()
            if turn:
                value = -fooled.log().mean() + patched(patch, own, 0.3)
            else:
                value = -judge(real).sigmoid().log().mean() - (1 - fooled).log().mean()
            adams[turn].zero_grad()
            value.backward()
            adams[turn].step()
        for net, reference in (("generator", generator), ("discriminator", judge)):
            for key, each in reference.state_dict().items():
                torch.testing.assert_close(self.built.savepoint.kept[f"{net}/{key}"], each, rtol=1e-3, atol=1e-5)
        _, template = self.templates(self.view.n, draw)
        given = generator(template).sigmoid() > 0.5
        for row, kept, patch in zip(fillers, template, given, strict=True):
            assert set(row.tolist()) - {-1} == {*kept.nonzero()[:, 0].tolist(), *self.popular[patch].tolist()}

    def test_what_a_fake_user_takes_over_is_of_one_genuine_user(self) -> None:
        made = rows(self.built.profiles(BIG))
        beside = {*self.view.pushed.tolist(), *self.popular.tolist()}
        had = [set(row.nonzero()[:, 0].tolist()) for row in self.view.clicks]
        for row in made:
            kept = set(row) - beside
            assert len(kept) == 4
            assert any(kept <= each for each in had)

    def test_nobody_with_so_many_events_leaves_those_with_the_most(self) -> None:
        made = rows(maker("aush", length=45, selected=4).profiles(BIG))
        sizes = [len(set(row.nonzero()[:, 0].tolist()) - {*self.view.pushed.tolist()}) for row in self.view.clicks]
        assert max(len(row) for row in made) <= max(sizes) + 2 + 4 < 45


class TestInject:
    made = maker("random").profiles(BIG)

    def test_fake_users_come_last_and_are_in_train_alone(self) -> None:
        data = profiles.inject(BIG, self.made)
        assert (data.n_users, data.n_genuine, BIG.n_genuine) == (66, 60, 60)
        assert data.user_ids[60:] == [f"fake/{each}" for each in range(6)]
        assert torch.equal(data.train.users[: len(BIG.train)], BIG.train.users)
        assert int(data.train.users[len(BIG.train) :].min()) == 60
        assert data.valid is BIG.valid
        assert data.test is BIG.test
        assert data.train.times is not None
        assert len(data.train.times) == len(data.train)
        assert data.has == BIG.has

    def test_the_fingerprint_is_another_one_for_other_fakes(self) -> None:
        other = maker("random", seed=1).profiles(BIG)
        prints = {BIG.fingerprint, *(profiles.inject(BIG, each).fingerprint for each in (self.made, other))}
        assert len(prints) == 3
        assert profiles.inject(BIG, self.made).fingerprint == profiles.inject(BIG, self.made).fingerprint

    def test_they_have_empty_rows_and_are_told_in_the_truth(self) -> None:
        truth = {
            "user/start": torch.rand(60, 3),
            "train/noise": torch.ones(len(BIG.train), dtype=torch.bool),
            "train/intent": torch.ones(len(BIG.train), dtype=torch.long),
            "item/intent": torch.arange(50),
        }
        data = profiles.inject(replace(BIG, truth=truth), self.made)
        assert isinstance(data.user_table, pd.DataFrame)
        assert data.user_table.iloc[60:].isna().all().all()
        assert data.truth["user/fake"].sum() == 6
        assert data.truth["user/start"][60:].isnan().all()
        assert not data.truth["train/noise"][len(BIG.train) :].any()
        assert (data.truth["train/intent"][len(BIG.train) :] == -1).all()
        assert torch.equal(data.truth["item/intent"], torch.arange(50))

    def test_they_are_judged_by_nothing(self) -> None:
        data = profiles.inject(BIG, self.made)
        for part in ("valid", "test"):
            result = Full(data, judged()).evaluate(Shifted(Toy(data)), part)
            assert int(result.users.max()) < 60

    def test_the_gap_between_groups_counts_the_genuine_alone(self) -> None:
        from robustbench_rec.goals import goals

        kept = (BIG.train.users % 2 == 0) | (BIG.train.items < 20)  # every other user has done less
        uneven = replace(BIG, train=BIG.train.where(kept))
        for attribute, clean in (("activity", uneven), ("gender", BIG)):
            config = {"name": "fairness", "k": 5, "attribute": attribute, "value": None}
            with_them: Any = goals.build(config, profiles.inject(clean, self.made))
            without: Any = goals.build(config, clean)
            assert torch.equal(with_them.losing, without.losing)

    def test_other_data_and_data_with_fakes_are_refused(self) -> None:
        with pytest.raises(RrecError, match="were made for data 000000000000, dataset 'tiny' is 111111111111"):
            profiles.inject(replace(BIG, fingerprint="1" * 64), self.made)
        with pytest.raises(RrecError, match="has 6 fake users already"):
            profiles.inject(profiles.inject(BIG, self.made), self.made)

    def test_contexts_of_genuine_events_are_taken(self) -> None:
        context = torch.randint(1, 4, (len(BIG.train), 2), generator=torch.Generator().manual_seed(0))
        data = replace(BIG, train=replace(BIG.train, context=context), context_sizes={"a": 4, "b": 4})
        poisoned = profiles.inject(data, maker("random").profiles(data))
        assert poisoned.train.context is not None
        pairs = {tuple(each) for each in context.tolist()}
        assert {tuple(each) for each in poisoned.train.context[len(BIG.train) :].tolist()} <= pairs

    def test_every_kind_of_training_example_knows_the_fakes(self) -> None:
        from conftest import batch_for, build

        data = profiles.inject(BIG, self.made)
        for name in ("mf", "lightgcn", "sasrec", "deepfm"):
            model = build(name, data)
            assert Shifted(model)(batch_for(model, data)).scores.isfinite().all()


class TestFiles:
    made = maker("bandwagon").profiles(BIG)

    def test_a_round_trip_keeps_every_bit(self, tmp_path: Path) -> None:
        profiles.save(tmp_path, self.made)
        for path in (tmp_path, tmp_path / "poison.json", tmp_path / "poison.safetensors"):
            again = profiles.load(str(path), "poison.path")
            assert same(again, self.made)
            assert again.n == self.made.n
            assert dict(again.about) == json.loads(json.dumps(self.made.about))
        replayed = poisons.build({"name": "file", "path": str(tmp_path)})(BIG)
        assert replayed.fingerprint == profiles.inject(BIG, self.made).fingerprint

    def test_a_change_is_refused_in_one_line(self, tmp_path: Path) -> None:
        profiles.save(tmp_path, self.made)
        content = bytearray((tmp_path / "poison.safetensors").read_bytes())
        content[-1] ^= 1
        (tmp_path / "poison.safetensors").write_bytes(bytes(content))
        with pytest.raises(RrecError, match="truncated or is not the file that poison.json describes") as caught:
            poisons.build({"name": "file", "path": str(tmp_path)})
        assert "\n" not in str(caught.value)

    def test_what_is_not_there_or_not_ours_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match=r"no poison.json there"):
            poisons.build({"name": "file", "path": str(tmp_path)})
        with pytest.raises(RrecError, match=r"poison=file needs poison.path="):
            poisons.build({"name": "file", "path": None})
        profiles.save(tmp_path, self.made)
        card = json.loads((tmp_path / "poison.json").read_text())
        (tmp_path / "poison.json").write_text(json.dumps({**card, "format": 9}))
        with pytest.raises(RrecError, match="another format"):
            poisons.build({"name": "file", "path": str(tmp_path)})
        for threat, told in (({}, "KeyError: 'threat'"), ({"threat": "none"}, "TypeError: what their attacker may do")):
            (tmp_path / "poison.json").write_text(json.dumps({k: v for k, v in card.items() if k != "threat"} | threat))
            with pytest.raises(RrecError, match=f"poison.json has not fake users .{told}"):
                poisons.build({"name": "file", "path": str(tmp_path)})

    def test_a_table_of_them_comes_back_as_the_same_events(self, tmp_path: Path) -> None:
        profiles.export(tmp_path, self.made, BIG)
        aims = [BIG.item_ids[each] for each in self.made.targets.tolist()]
        config = {"name": "table", "path": str(tmp_path / "poison.csv"), "items": aims}
        again = poisons.build(config).profiles(BIG)  # type: ignore[attr-defined]
        for name in ("users", "items", "values"):
            assert torch.equal(getattr(again.events, name), getattr(self.made.events, name)), name
        assert (again.n, again.targets.tolist()) == (self.made.n, self.made.targets.tolist())
        assert again.about["threat"]["budget"] == "6 fake users (10.0%), 10 events each, at most"
        fakes = profiles.inject(BIG, again)
        assert again.events.times is None or bool(
            (again.events.times.diff()[again.events.users.diff() == 0] >= 0).all()
        )
        assert len(fakes.train) == len(BIG.train) + len(again.events)

    def test_of_clicks_a_column_of_ratings_is_not_read(self, tmp_path: Path) -> None:
        data = replace(BIG, train=replace(BIG.train, values=torch.ones(len(BIG.train))))
        (tmp_path / "p.csv").write_text("user,item,rating\na,i1,\na,i2,n/a\n")
        fakes = poisons.build({"name": "table", "path": str(tmp_path / "p.csv"), "items": ["i1"]})(data).fakes
        assert fakes is not None
        assert fakes.events.values.tolist() == [1.0, 1.0]

    def test_a_table_keeps_every_digit_of_a_rating(self, tmp_path: Path) -> None:
        values = torch.linspace(1, 1666671.625, len(BIG.train))
        data = replace(BIG, train=replace(BIG.train, values=values))
        made = maker("random", feedback="ratings").profiles(data)
        profiles.export(tmp_path, made, data)
        read = pd.read_csv(tmp_path / "poison.csv")["rating"].to_numpy("float32")
        assert torch.equal(torch.tensor(read), made.events.values)

    @pytest.mark.parametrize(
        ("values", "given", "told"),
        [
            ([1.0], [5.0], None),
            ([0.0, 1.0], [1.0], None),
            ([0.0, 1.0], [0.0], None),
            ([0.0, 1.0], [5.0], "user 'a' has rating 5; those of dataset 'tiny' are labels, 0 or 1"),
            ([1.0, 5.0], [5.0], None),
            ([1.0, 5.0], [5.5], "user 'a' has rating 5.5; those of dataset 'tiny' go from 1 to 5"),
            ([1.0, 5.0], [0.5], "rating 0.5"),
            ([0.1, 4.6], [4.6], None),  # which single precision has not
        ],
    )
    def test_ratings_of_a_table_are_such_as_the_data_has(
        self, tmp_path: Path, values: list[float], given: list[float], told: str | None
    ) -> None:
        spread = torch.tensor(values)[torch.arange(len(BIG.train)) % len(values)]
        data = replace(BIG, train=replace(BIG.train, values=spread))
        (tmp_path / "p.csv").write_text("user,item,rating\n" + "".join(f"a,i1,{each}\n" for each in given))
        poison = poisons.build({"name": "table", "path": str(tmp_path / "p.csv"), "items": ["i1"]})
        if told is not None:
            with pytest.raises(RrecError, match=told):
                poison(data)
            return
        fakes = poison(data).fakes
        assert fakes is not None
        assert fakes.events.values.tolist() == pytest.approx(given if len(values) > 1 else [1.0], rel=1e-6)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("user,rating\na,1\n", "unknown column of p.csv 'item'"),
            ("user,item,rating\n", "has a header and no rows"),
            ("user,item\na,i1\n", "a column rating is needed"),
            ("user,item,rating\na,i1,good\n", "line 2, column 'rating': 'good' is not a finite number"),
            ("user,item,rating\na,i1,1\na,zz,1\n", "has no item 'zz'"),
            ("user,item,rating\na,i1,1\nb,i1,1\na,i1,2\n", "user 'a' has item 'i1' twice"),
            ("user,item,rating\na,i1,inf\n", "line 2, column 'rating': 'inf' is not a finite number"),
            ("user,item,rating\na,i1,1\nb,,1\n", "line 3, column 'item': '' is empty"),
            ("user,item,item,rating\na,i1,i2,1\n", "names the column 'item' twice"),
            ("user,item,rating\na,i1,1\nb,i1\n", "line 3 has 2 columns where the first line has 3"),
            (None, "does not exist"),
        ],
    )
    def test_a_table_that_the_data_cannot_take_is_one_line(self, tmp_path: Path, text: str | None, told: str) -> None:
        path = tmp_path / "p.csv"
        if text is not None:
            path.write_text(text)
        with pytest.raises(RrecError, match=told) as caught:
            poisons.build({"name": "table", "path": str(path), "items": ["i1"]})(BIG)
        assert "\n" not in str(caught.value)

    def test_a_checkpoint_of_poisoned_data_loads_with_its_fakes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from conftest import RECIPE, build

        monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: BIG)
        data = profiles.inject(BIG, self.made)
        checkpoint.save(tmp_path, build("mf", data), configured("model", "mf"), RECIPE, data)
        loaded = checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"))
        assert loaded.data.fingerprint == data.fingerprint
        assert loaded.data.n_genuine == 60
        (tmp_path / "poison.json").unlink()
        with pytest.raises(RrecError, match="no poison.json there"):
            checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"))


WORLD = (
    "dataset=synthetic",
    "dataset.n_users=300",
    "dataset.n_items=150",
    "dataset.events_per_user=25",
    "dataset.n_intents=5",
    "dataset.n_entities=20",
    "device=cpu",
    "top_k=[5,10]",
)
TRAINED = (
    *WORLD,
    "model=mf",
    "model.dim=16",
    "model.l2=0.05",
    "epochs=40",
    "batch_size=512",
    "lr=0.01",
    "monitor=ndcg@10",
)
JUDGED = ("device=cpu", "top_k=[5,10]")
TASKS = {"train": train, "attack": attack, "eval": evaluate, "distill": distill, "finetune": finetune}
FAST = {"pga": ("poison.steps=20",), "revadv": ("poison.steps=20",)}
TARGETS = {"poison.count": "3", "poison.size": "0.1"}


def run(verb: str, out: Path, *overrides: str) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    words = {each.partition("=")[0]: each for each in overrides}
    typed: Any = composing.typed(compose(verb, *words.values()), verb)
    metrics: dict[str, float] = TASKS[verb].run(typed, out)
    return metrics


def poison(name: str, **changes: str) -> tuple[str, ...]:
    return (f"poison={name}", *(f"{key}={value}" for key, value in (TARGETS | changes).items()), *FAST.get(name, ()))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean")
    run("train", out, *TRAINED)
    return out


class TestVerbs:
    def test_training_on_poisoned_data_reports_the_targets_beside_quality(self, tmp_path: Path) -> None:
        metrics = run("train", tmp_path / "run", *TRAINED, *poison("bandwagon"))
        assert {"valid/t_hr@5", "test/t_hr@10", "test/t_rank", "test/t_score", "test/ndcg@10"} <= metrics.keys()
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["threat"]["surface"] == "training data"
        assert record["seeds"]["poison.seed"] == 0
        again = run("eval", tmp_path / "eval", f"ckpt='{tmp_path / 'run'}'", *JUDGED)
        assert again == {name: value for name, value in metrics.items() if name.startswith("test/")}

    def test_no_poison_is_plain_training_bit_for_bit(self, clean: Path, tmp_path: Path) -> None:
        run("train", tmp_path, *TRAINED, "poison=none")
        assert (tmp_path / "model.safetensors").read_bytes() == (clean / "model.safetensors").read_bytes()
        assert "fakes" not in json.loads((tmp_path / "model.json").read_text())

    @pytest.mark.parametrize("name", ["covisit", "pga", "revadv", "dlattack"])
    def test_retraining_on_strong_poison_brings_the_targets_up(self, clean: Path, tmp_path: Path, name: str) -> None:
        found = run("attack", tmp_path, f"ckpt='{clean}'", *JUDGED, *poison(name))
        assert found["poisoned/t_hr@10"] > found["clean/t_hr@10"] + 0.005
        assert found["change/t_rank"] < -5
        assert found["change/t_score"] > 0
        assert found["change/t_rank"] == pytest.approx(found["poisoned/t_rank"] - found["clean/t_rank"])
        assert found["budget/fake_users"] == 30
        assert abs(found["change/ndcg@10"]) < 0.1

    def test_a_nuke_by_rivals_brings_popular_targets_down(self, clean: Path, tmp_path: Path) -> None:
        words = poison("random", **{"poison.direction": "nuke", "poison.stratum": "popular", "poison.size": "0.2"})
        found = run("attack", tmp_path, f"ckpt='{clean}'", *JUDGED, *words)
        assert found["change/t_hr@10"] < -0.01

    def test_no_budget_to_speak_of_repeats_the_training(self, clean: Path, tmp_path: Path) -> None:
        """A retrained model has the settings of the run, not the defaults: few epochs, its own batch size."""
        run("attack", tmp_path, f"ckpt='{clean}'", *JUDGED, *poison("random"))
        card, first = (json.loads((each / "model.json").read_text()) for each in (tmp_path, clean))
        assert card["training"] == first["training"]
        assert len((tmp_path / "history.csv").read_text().splitlines()) <= 1 + 40

    def test_settings_that_were_changed_by_hand_are_refused_in_one_line(self, clean: Path, tmp_path: Path) -> None:
        copytree(clean, tmp_path / "run")
        card = json.loads((clean / "model.json").read_text())
        for changed in ({"lr": "fast"}, {"hook": "os.system"}, {"start": "${oc.env:HOME}"}):
            text = json.dumps({**card, "training": {**card["training"], **changed}})
            (tmp_path / "run" / "model.json").write_text(text)
            with pytest.raises(RrecError, match="its training cannot be repeated") as caught:
                run("attack", tmp_path / "a", f"ckpt='{tmp_path / 'run'}'", *JUDGED, *poison("random"))
            assert "\n" not in str(caught.value)

    def test_keys_that_all_poisons_share_can_be_given_for_a_sweep(self) -> None:
        for verb, *more in (("train",), ("distill", "teacher=none"), ("attack", "ckpt=none")):
            assert compose(verb, *more, "poison.size=0.03").poison.name == "none"

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"users": -1}, "users that are not among 0 … 5"),
            ({"items": 1000}, "items that are not among 0 … 49"),
            ({"targets": 50}, "targets that are not among 0 … 49"),
            ({"values": float("nan")}, "values that are no numbers"),
            ({"values": 1e30}, "values that are not within 1 … 5"),
            ({"times": -(10**6)}, "times that are not within"),
        ],
    )
    def test_a_file_of_fake_users_that_cannot_be_is_refused(self, changes: dict[str, Any], told: str) -> None:
        made = maker("random").profiles(BIG)
        (name, shift), *_ = changes.items()
        if name == "targets":
            wrong = replace(made, targets=made.targets + shift)
        else:
            wrong = replace(made, events=replace(made.events, **{name: getattr(made.events, name) + shift}))
        profiles.inject(BIG, made)
        with pytest.raises(RrecError, match=f"the fake users have {told}"):
            profiles.inject(BIG, wrong)

    def test_a_file_of_another_make_is_refused(self) -> None:
        made = maker("random").profiles(BIG)
        events = made.events
        context = torch.full((len(events), 1), 3)
        placed = replace(BIG, train=replace(BIG.train, context=torch.ones(len(BIG.train), 1, dtype=torch.long)))
        placed = replace(placed, context_sizes={"place": 3})
        for data, wrong, told in (
            (BIG, replace(made, events=replace(events, users=events.users.double())), "users of another kind"),
            (BIG, replace(made, events=replace(events, items=events.items[:, None])), "items of another kind"),
            (BIG, replace(made, events=replace(events, values=events.values[1:])), "columns of different lengths"),
            (BIG, replace(made, events=replace(events, items=torch.zeros_like(events.items))), "an item twice"),
            (BIG, replace(made, n=made.n + 1), "events of other than 7 users"),
            (BIG, replace(made, targets=made.targets[:0]), "no targets"),
            (placed, replace(made, events=replace(events, context=context)), "context that the dataset does not have"),
        ):
            with pytest.raises(RrecError, match=f"the fake users have {told}"):
                profiles.inject(data, wrong)

    @pytest.mark.parametrize(
        ("name", "changes", "told"),
        [
            ("dlattack", {"surrogate_lr": -1.0}, "surrogate_lr=-1.0"),
            ("dlattack", {"dim": 0}, "dim=0"),
            ("dlattack", {"alpha": -5.0}, "alpha=-5.0"),
            ("pga", {"alpha": -5.0}, "alpha=-5.0"),
            ("rl", {"alpha": -5.0}, "alpha=-5.0"),
        ],
    )
    def test_a_surrogate_that_cannot_be_fitted_is_refused(self, name: str, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(RrecError, match=told):
            maker(name, **changes)

    @pytest.mark.parametrize("steps", ["[rules]", "[none,rules]"])
    def test_every_cleaning_that_is_named_is_done_before_the_training(
        self, clean: Path, tmp_path: Path, steps: str
    ) -> None:
        found = run("attack", tmp_path / "a", f"ckpt='{clean}'", *JUDGED, *poison("random"), f"clean={steps}")
        assert "cleaning/rules/events" in found
        with pytest.raises(RrecError, match="clean=rules is for a training"):
            run("attack", tmp_path / "b", f"ckpt='{clean}'", *JUDGED, f"clean={steps}")

    def test_a_poison_is_replayed_on_another_model(self, clean: Path, tmp_path: Path) -> None:
        run("attack", tmp_path / "a", f"ckpt='{clean}'", *JUDGED, *poison("bandwagon"))
        run("train", tmp_path / "knn", *WORLD, "model=itemknn")
        replay = ("poison=file", f"poison.path='{tmp_path / 'a'}'")
        found = run("attack", tmp_path / "b", f"ckpt='{tmp_path / 'knn'}'", *JUDGED, *replay)
        files = [(tmp_path / each / "poison.safetensors").read_bytes() for each in ("a", "b")]
        assert files[0] == files[1]
        assert "poisoned/t_hr@10" in found
        with pytest.raises(RrecError, match="use the dataset, prepare and split settings"):
            run("train", tmp_path / "c", *TRAINED, *replay, "split.seed=3")

    def test_the_attacked_run_is_a_checkpoint_like_any_other(self, clean: Path, tmp_path: Path) -> None:
        found = run("attack", tmp_path / "a", f"ckpt='{clean}'", *JUDGED, *poison("random"))
        again = run("eval", tmp_path / "e", f"ckpt='{tmp_path / 'a'}'", *JUDGED)
        assert again["test/ndcg@10"] == found["poisoned/ndcg@10"]
        assert again["test/t_score"] == found["poisoned/t_score"]
        with pytest.raises(RrecError, match="was trained on poisoned data"):
            run("attack", tmp_path / "b", f"ckpt='{tmp_path / 'a'}'", *JUDGED, *poison("random"))

    def test_fine_tuning_keeps_the_fakes_and_cannot_be_repeated(self, tmp_path: Path, clean: Path) -> None:
        run("train", tmp_path / "p", *TRAINED, *poison("random"), "epochs=2")
        words = ("epochs=1", "alphas=2", "criticality.pairs=100", "attack.steps=1", "monitor=ndcg@10")
        metrics = run("finetune", tmp_path / "f", f"ckpt='{tmp_path / 'p'}'", *JUDGED, *words)
        assert "test/t_hr@10" in metrics
        assert checkpoint.load(str(tmp_path / "f"), data_dir=None, device=torch.device("cpu")).data.n_genuine == 300
        run("finetune", tmp_path / "g", f"ckpt='{clean}'", *JUDGED, *words)
        with pytest.raises(RrecError, match="does not say how it was trained"):
            run("attack", tmp_path / "h", f"ckpt='{tmp_path / 'g'}'", *JUDGED, *poison("random"))

    def test_a_student_learns_from_a_teacher_of_the_same_poisoned_data(self, tmp_path: Path, clean: Path) -> None:
        run("train", tmp_path / "t", *TRAINED, *poison("random"), "epochs=2")
        replay = ("poison=file", f"poison.path='{tmp_path / 't'}'", "distill.top=10", "epochs=1")
        run("distill", tmp_path / "s", f"teacher='{tmp_path / 't'}'", *TRAINED, *replay)
        with pytest.raises(RrecError, match="was trained on data"):
            run("distill", tmp_path / "u", f"teacher='{clean}'", *TRAINED, *replay)

    def test_what_a_student_learnt_from_is_trained_again_too(self, tmp_path: Path, clean: Path) -> None:
        learnt = (f"teacher='{clean}'", *TRAINED, "distill.top=10", "epochs=2", "patience=2", "seed=1")
        attacked = (*JUDGED, *poison("random"))
        for name, weight in (("s", 2), ("plain", 0)):
            run("distill", tmp_path / name, *learnt, f"distill.weight={weight}")
            run("attack", tmp_path / f"{name}-again", f"ckpt='{tmp_path / name}'", *attacked)
        again = [
            checkpoint.load(str(tmp_path / "s-again" / each), data_dir=None, device=torch.device("cpu"))
            for each in ("", "teacher-0")
        ]
        assert again[0].data.fingerprint == again[1].data.fingerprint
        assert again[1].data.fakes is not None
        run("attack", tmp_path / "alone", f"ckpt='{clean}'", *attacked)
        tensors = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("s-again/teacher-0", "alone")]
        assert tensors[0] == tensors[1]
        run("train", tmp_path / "t", *TRAINED, *learnt[-3:])
        found = run("attack", tmp_path / "t-again", f"ckpt='{tmp_path / 't'}'", *attacked)
        students = [(tmp_path / f"{each}-again" / "model.safetensors").read_bytes() for each in ("s", "plain", "t")]
        assert students[0] != students[1] == students[2]  # with no weight the teacher changes nothing
        assert "poisoned/t_hr@10" in found

    def test_so_is_what_a_run_started_from(self, tmp_path: Path, clean: Path) -> None:
        run("train", tmp_path / "s", f"start='{clean}'", *TRAINED, "epochs=1")
        run("attack", tmp_path / "a", f"ckpt='{tmp_path / 's'}'", *JUDGED, *poison("random"))
        run("attack", tmp_path / "b", f"ckpt='{clean}'", *JUDGED, *poison("random"))
        tensors = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("a/start", "b")]
        assert tensors[0] == tensors[1]

    def test_a_matrix_of_scores_cannot_learn_of_fakes(self, tmp_path: Path, clean: Path) -> None:
        data = checkpoint.load(str(clean), data_dir=None, device=torch.device("cpu")).data
        np.save(tmp_path / "m.npy", np.random.default_rng(0).random((data.n_users, data.n_items), dtype=np.float32))
        for kind, ids in (("users", data.user_ids), ("items", data.item_ids)):
            (tmp_path / f"m.{kind}.txt").write_text("".join(f"{each}\n" for each in ids))
        run("distill", tmp_path / "s", f"teacher='{tmp_path}/m.npy'", *TRAINED, "distill.top=10", "epochs=1")
        with pytest.raises(RrecError, match="which cannot learn of fake users"):
            run("attack", tmp_path / "a", f"ckpt='{tmp_path / 's'}'", *JUDGED, *poison("random"))

    def test_a_killed_run_takes_up_the_fakes_that_it_had(self, tmp_path: Path) -> None:
        config = {**configured("poison", "random"), "count": 2, "size": 0.1}
        other = maker("random", length=None, seed=9).profiles(BIG)  # as if made by hand, to tell them apart
        stored = replace(other, about={**other.about, "config": {**other.about["config"], "seed": 0}})
        profiles.save(tmp_path, stored)
        fresh = train.poisoned(config, BIG, tmp_path).fakes  # a directory that is used again
        assert fresh is not None
        assert not same(fresh, stored)
        (tmp_path / "resume").mkdir()
        again = train.poisoned(config, BIG, tmp_path).fakes
        assert again is not None
        assert same(again, stored)
        changed = train.poisoned({**config, "size": 0.2}, BIG, tmp_path).fakes
        assert changed is not None
        assert changed.n == 12


def test_fit_is_what_the_checkpoint_keeps() -> None:
    assert set(vars(fit())) <= set(train.settings(composing.typed(compose("train"), "train")))
