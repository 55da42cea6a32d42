"""Paired statistics: against scipy and loops, and what the verdicts say."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robustbench_rec.evaluation import Result
from robustbench_rec.significance import (
    LEVEL,
    bootstrap,
    estimate,
    holm,
    over_seeds,
    paired,
    paired_events,
    within_noise,
)
from robustbench_rec.tasks.eval import _paired


def users(n: int = 300, *, shift: float = 0.0, noise: float = 0.1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One metric of two runs over the same users, whose luck both share."""
    generator = torch.Generator().manual_seed(seed)
    luck = torch.randn(n, generator=generator)
    first = luck + noise * torch.randn(n, generator=generator) + shift
    return first[None], (luck + noise * torch.randn(n, generator=generator))[None]


def test_of_many_metrics_those_that_differ_for_every_user_are_no_chance() -> None:
    names = [f"metric@{number}" for number in range(120)]
    ours, theirs = ({name: torch.full((20,), value) for name in names} for value in (0.5, 0.4))
    results = (Result(dict.fromkeys(names, 0.0), torch.arange(20), each) for each in (ours, theirs))
    found = _paired(*results, "full", names)
    assert max(holm([each.difference.p for each in found.values()])) < LEVEL
    (each,) = paired_events(torch.ones(1, 20), torch.zeros(1, 20), torch.arange(20), size=5000)
    assert each.difference.p == 1 / 5000


class TestPaired:
    @given(seed=st.integers(0, 1000))
    def test_means_and_effect_sizes_are_numpys(self, seed: int) -> None:
        ours, theirs = users(30, seed=seed, shift=0.05)
        ours[0, 3], theirs[0, 7] = math.nan, math.nan
        (found,) = paired(ours, theirs)
        known = [i for i in range(30) if i not in (3, 7)]
        a, b = (each[0, known].double().numpy() for each in (ours, theirs))
        assert found.difference.value == pytest.approx((a - b).mean(), abs=1e-6)
        assert found.dz == pytest.approx((a - b).mean() / (a - b).std(ddof=1), rel=1e-4, abs=1e-6)
        pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        assert found.d == pytest.approx((a - b).mean() / pooled, rel=1e-4, abs=1e-6)

    def test_the_interval_is_about_that_of_scipys_bootstrap(self) -> None:
        ours, theirs = users(shift=0.02)
        (found,) = paired(ours, theirs)
        judge = stats.bootstrap(
            ((ours - theirs)[0].numpy(),), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
        ).confidence_interval
        width = float(judge.high - judge.low)
        assert found.difference.low == pytest.approx(float(judge.low), abs=0.1 * width)
        assert found.difference.high == pytest.approx(float(judge.high), abs=0.1 * width)

    def test_a_difference_that_all_users_share_is_found_where_means_alone_hide_it(self) -> None:
        ours, theirs = users(shift=0.05)
        (found,) = paired(ours, theirs)
        assert found.difference.p < 0.01
        assert stats.ttest_ind(ours[0], theirs[0]).pvalue > 0.1

    def test_p_is_even_where_there_is_no_difference(self) -> None:
        few = sum(paired(*users(60, seed=seed))[0].difference.p < 0.05 for seed in range(100))
        assert few <= 13

    def test_p_is_twice_the_share_of_samples_on_the_other_side_of_0(self) -> None:
        drawn = torch.arange(-2, 98).double()  # three of a hundred are not above 0
        assert estimate(40.0, drawn).p == pytest.approx(0.06)
        assert estimate(-40.0, -drawn).p == pytest.approx(0.06)
        assert estimate(40.0, torch.cat([drawn, torch.full((9,), math.nan)])).p == pytest.approx(0.06)

    def test_effect_sizes_of_events_are_those_of_the_means_of_users(self) -> None:
        owner = torch.tensor([0, 0, 0, 1, 2, 2])
        ours, theirs = torch.tensor([[1.0, 2, 3, 5, 4, 6]]), torch.tensor([[0.0, 1, 1, 3, 5, 5]])
        (found,) = paired_events(ours, theirs, owner)
        a, b = np.array([2.0, 5, 5]), np.array([2 / 3, 3, 5])
        assert found.difference.value == pytest.approx((ours - theirs).mean().item())
        assert found.dz == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
        assert found.d == pytest.approx((a - b).mean() / math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2))

    def test_equal_runs_differ_by_nothing_and_have_no_effect_size(self) -> None:
        ours, _ = users()
        (found,) = paired(ours, ours)
        assert (found.difference.value, found.difference.p) == (0, 1)
        assert math.isnan(found.dz)

    def test_more_samples_can_tell_a_smaller_p(self) -> None:
        ours, theirs = users(shift=1.0)
        assert [paired(ours, theirs, size=size)[0].difference.p for size in (100, 5000)] == [1 / 100, 1 / 5000]

    def test_a_single_user_has_no_interval(self) -> None:
        (found,) = paired(torch.ones(1, 1), torch.zeros(1, 1))
        assert found.difference.value == 1
        assert math.isnan(found.difference.p)

    def test_what_nobody_has_has_no_p(self) -> None:
        nothing = torch.full((2, 12), float("nan"))
        nothing[1, :2] = torch.tensor([0.5, 0.7])
        none, two = paired(nothing, nothing - 0.1)
        assert all(math.isnan(each) for each in (none.difference.value, none.difference.low, none.difference.p))
        assert two.difference.value == pytest.approx(0.1)
        assert two.difference.low == pytest.approx(0.1), "samples without either of the two do not count"
        assert two.difference.p < 0.05

    def test_means_over_events_are_resampled_by_user(self) -> None:
        generator = torch.Generator().manual_seed(0)
        owner = torch.randint(40, (300,), generator=generator)
        shared = torch.randn(40, generator=generator)[owner]  # what a user's events have in common
        ours, theirs = (shared + torch.randn(1, 300, generator=generator)), torch.zeros(1, 300)
        (found,) = paired_events(ours, theirs, owner)
        assert found.difference.value == pytest.approx(ours.mean().item(), abs=1e-6)
        rng = np.random.default_rng(0)
        groups = [ours[0, owner == user].numpy() for user in owner.unique()]
        drawn = [
            np.concatenate([groups[each] for each in rng.integers(len(groups), size=len(groups))]).mean()
            for _ in range(2000)
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert found.difference.low == pytest.approx(float(low), abs=0.1 * float(high - low))
        assert found.difference.high == pytest.approx(float(high), abs=0.1 * float(high - low))

    def test_one_event_a_user_is_the_mean_over_users(self) -> None:
        ours, theirs = users(50)
        (one,), (two,) = paired(ours, theirs), paired_events(ours, theirs, torch.arange(50))
        assert vars(one.difference) == pytest.approx(vars(two.difference))
        assert (one.d, one.dz) == pytest.approx((two.d, two.dz))

    def test_the_samples_are_the_same_for_all_metrics(self) -> None:
        ours, _ = users(50)
        drawn = bootstrap(torch.cat([ours, 2 * ours]), size=40)
        assert drawn.shape == (40, 2)
        torch.testing.assert_close(drawn[:, 1], 2 * drawn[:, 0])


class TestHolm:
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_it_is_the_closed_test_of_bonferroni(self, p: list[float]) -> None:
        """Adjusted p: the largest Bonferroni p over all families that a hypothesis is in."""
        index = range(len(p))
        for i, found in zip(index, holm(p), strict=True):
            families = [s for n in range(1, len(p) + 1) for s in combinations(index, n) if i in s]
            expected = max(min(1.0, len(s) * min(p[j] for j in s)) for s in families)
            assert found == pytest.approx(expected)

    def test_what_has_no_p_does_not_count(self) -> None:
        assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
        assert holm([]) == []


class TestSeeds:
    def test_mean_and_spread(self) -> None:
        found = over_seeds([0.1, 0.2, math.nan, 0.6])
        assert (found.mean, found.n) == (pytest.approx(0.3), 3)
        assert found.std == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
        assert math.isnan(over_seeds([0.4]).std)

    def test_a_difference_smaller_than_the_spread_of_seeds_is_marked(self) -> None:
        one, near, far = over_seeds([0.1, 0.2, 0.3]), over_seeds([0.15, 0.25, 0.35]), over_seeds([0.5, 0.6, 0.7])
        assert within_noise(one, near) is True
        assert within_noise(one, far) is False
        assert within_noise(one, over_seeds([0.9])) is None
