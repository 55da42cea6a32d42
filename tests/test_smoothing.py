"""Randomised smoothing: bounds for vectors and for histories, and that no attack beats them."""

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import pytest
import torch
from conftest import DATA, build
from hypothesis import given
from hypothesis import strategies as st
from test_certificates import assert_no_better, grouped, judging, loaded, proof, spread
from torch import Tensor

from robustbench_rec.batch import History
from robustbench_rec.certificates.smoothing import Smoothing, _interpolated, _latest, regions, seen
from robustbench_rec.certified import Joint, barriers, clopper_pearson, guaranteed
from robustbench_rec.errors import RrecError


def subsequences(history: tuple[int, ...], p: float) -> Iterator[tuple[tuple[int, ...], float]]:
    """What is left of a history when each event is deleted with probability p, and how likely that is."""
    for kept in product([False, True], repeat=len(history)):
        yield tuple(e for e, k in zip(history, kept, strict=True) if k), math.prod(1 - p if k else p for k in kept)


class TestSmoothing:
    def of(self, **changes: Any) -> Smoothing:
        built = proof("smoothing", **changes)
        assert isinstance(built, Smoothing)
        return built

    @pytest.mark.parametrize(
        ("changes", "after", "count"),
        [
            ("delete", (1, 2, 4), 1),
            ("delete", (4,), 3),
            ("insert", (1, 9, 2, 3, 4), 1),
            ("insert", (8, 1, 2, 9, 3, 4), 2),
            ("replace", (1, 2, 9, 4), 1),
            ("replace", (9, 2, 8, 4), 2),
        ],
    )
    def test_no_vote_on_thinned_histories_falls_below_the_bound(
        self, changes: str, after: tuple[int, ...], count: int
    ) -> None:
        p_minus, nothing = 0.7, torch.zeros((), dtype=torch.long)
        certificate = self.of(noise="deletion", changes=changes, p_minus=p_minus, budgets=[1])
        before = (1, 2, 3, 4)
        for seed in range(40):
            draw = torch.Generator().manual_seed(seed)
            everything = {each for h in (before, after) for each, _ in subsequences(h, p_minus)}
            votes = {
                each: float(torch.rand((), generator=draw) < 0.2 + 0.6 * (seed % 2)) for each in sorted(everything)
            }
            values = [sum(p * votes[each] for each, p in subsequences(h, p_minus)) for h in (before, after)]
            least = certificate.least(torch.tensor(values[0], dtype=torch.float64), count, nothing)
            assert values[1] >= least.item() - 1e-9
            most = 1 - certificate.least(torch.tensor(1 - values[0], dtype=torch.float64), count, nothing)
            assert values[1] <= most.item() + 1e-9

    @pytest.mark.parametrize(("length", "changed", "kept"), [(6, 1, 2), (6, 2, 3), (4, 4, 1), (3, 1, 5), (5, 0, 2)])
    def test_the_share_of_masked_histories_that_see_a_change_is_counted(
        self, length: int, changed: int, kept: int
    ) -> None:
        subsets = list(combinations(range(length), min(kept, length)))
        touched = sum(any(each < changed for each in subset) for subset in subsets)
        assert seen(length, changed, kept) == pytest.approx(touched / len(subsets))

    @given(st.integers(0, 2), st.integers(0, 2), st.floats(0.01, 0.4), st.floats(0.3, 0.9), st.integers(0, 1000))
    def test_no_vote_on_flipped_histories_falls_below_the_bound(
        self, added: int, deleted: int, p_plus: float, p_minus: float, seed: int
    ) -> None:
        """Over all 0/1 vectors of the changed coordinates, for any function of them."""
        x = (0,) * added + (1,) * deleted
        tilde = tuple(1 - each for each in x)
        before, after = regions(added, deleted, p_plus, p_minus)
        assert before[-1].item() == pytest.approx(1)
        assert after[-1].item() == pytest.approx(1)

        def chance(x: tuple[int, ...], z: tuple[int, ...]) -> float:
            one = [1 - p_minus if each else p_plus for each in x]
            return math.prod(p if bit else 1 - p for p, bit in zip(one, z, strict=True))

        points = list(product([0, 1], repeat=len(x)))
        votes = torch.rand(len(points), generator=torch.Generator().manual_seed(seed)).round().tolist()
        values = [sum(v * chance(h, z) for v, z in zip(votes, points, strict=True)) for h in (x, tilde)]
        least = _interpolated(torch.tensor([values[0]]).double(), before, after)
        assert values[1] >= least.item() - 1e-6

    def test_the_bound_on_flips_without_additions_is_that_of_deletions(self) -> None:
        p, nothing = torch.linspace(0.05, 1, 9).double(), torch.zeros(9, dtype=torch.long)
        for changes in ("delete", "insert", "replace"):
            shared = {"changes": changes, "p_minus": 0.6, "p_plus": 0.0, "budgets": [1]}
            flips, deletion = (self.of(noise=each, **shared) for each in ("flips", "deletion"))
            assert (flips.least(p, 2, nothing) >= deletion.least(p, 2, nothing) - 1e-9).all()
            if changes != "replace":
                torch.testing.assert_close(flips.least(p, 2, nothing), deletion.least(p, 2, nothing))

    def test_the_gaussian_bound_is_reached_by_a_half_space(self) -> None:
        """A vote of x₁ > 0 falls from p to Φ(Φ⁻¹(p) − r/σ) when x moves by r against it (Cohen et al., 2019)."""
        p = torch.tensor([0.2, 0.5, 0.9]).double()
        least = self.of(sigma=0.5).least(p, 0.3, torch.zeros(3))
        normal = torch.distributions.Normal(0.0, 1.0)
        torch.testing.assert_close(least, normal.cdf(normal.icdf(p) - 0.3 / 0.5), rtol=1e-6, atol=1e-7)

    def test_the_latest_kept_events_are_what_a_model_reads(self) -> None:
        items = torch.tensor([[-1, 4, -1, 5, 6], [3, -1, -1, -1, -1], [-1, -1, -1, -1, -1]])
        found = _latest(items, 2, 20)
        assert found.items.tolist() == [[5, 6], [3, 20], [20, 20]]
        assert found.lengths.tolist() == [2, 1, 0]

    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            ("mf", {"noise": "gaussian", "budgets": [0, 0.05, 0.2, 0.5], "sigma": 1.0}),
            ("sasrec", {"noise": "deletion", "changes": "delete", "budgets": [0, 1, 2], "p_minus": 0.8}),
            ("sasrec", {"noise": "deletion", "changes": "insert", "budgets": [0, 1, 2], "p_minus": 0.8}),
            ("gru4rec", {"noise": "deletion", "changes": "replace", "budgets": [0, 1], "p_minus": 0.8}),
            ("sasrec", {"noise": "masking", "kept": 2, "budgets": [0, 1, 2]}),
            ("itemknn", {"noise": "flips", "budgets": [0, 1], "p_minus": 0.8, "p_plus": 0.02}),
        ],
        ids=lambda each: each if isinstance(each, str) else "-".join(map(str, each.values())),
    )
    def test_no_change_of_the_input_beats_it(self, model: str, changes: dict[str, Any]) -> None:
        data = grouped(n_users=20)
        judge, built = judging(data, k=8), spread(model, data)
        certificate = self.of(samples=400, votes=6, empirical=True, **changes)
        found = certificate.certify(loaded(built, data), judge, "test")
        proven = [guaranteed(judge, "test", above) for above in found.above]
        assert proven[0].metrics["hr@8"] > 0
        for budget, bound in zip(certificate.budgets, proven, strict=True):
            assert_no_better(certificate.attack(loaded(built, data), judge, "test", budget), bound)
        curve = [each.metrics["hr@8"] for each in proven]
        assert curve == sorted(curve, reverse=True)

    def test_more_changes_than_there_are_items_change_all(self) -> None:
        data = grouped(n_users=20)
        certificate = self.of(noise="flips", samples=4, votes=3, budgets=[data.n_items + 1], empirical=True)
        left = certificate.attack(loaded(build("itemknn", data), data), judging(data), "test", certificate.budgets[0])
        assert 0 <= left.metrics["hr@5"] <= 1

    def test_the_attack_on_the_users_vectors_does_harm(self) -> None:
        data = grouped(n_users=20)
        judge, built = judging(data, k=3), spread("mf", data)
        certificate = self.of(noise="gaussian", sigma=0.3, votes=3, samples=100, budgets=[0, 3])
        clean, left = (certificate.attack(loaded(built, data), judge, "test", each).metrics for each in (0, 3))
        assert left["hr@3"] < 0.5 * clean["hr@3"]

    def test_a_whole_surface_can_be_smoothed(self) -> None:
        certificate = self.of(surface="embedding", samples=20, budgets=[0, 0.1])
        found = certificate.certify(loaded(build("neumf")), judging(), "test")
        assert found.above.shape == (2, len(DATA.test))
        with pytest.raises(RrecError, match="empirical"):
            certificate.attack(loaded(build("neumf")), judging(), "test", 0.1)

    def test_a_surface_without_an_attack_is_refused_before_the_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        certificate = self.of(surface="embedding", budgets=[0, 0.1], empirical=True)
        monkeypatch.setattr(certificate, "_elect", lambda *_: pytest.fail("samples were drawn"))
        with pytest.raises(RrecError, match="certify.empirical: no attack for surface=embedding"):
            certificate.certify(loaded(build("neumf")), judging(), "test")

    @pytest.mark.parametrize(
        ("model", "changes", "told"),
        [
            ("mf", {"noise": "deletion", "budgets": [1]}, "histories"),
            ("mf", {"noise": "flips", "budgets": [1]}, "itemknn"),
            ("neumf", {"noise": "gaussian"}, "dot products"),
        ],
    )
    def test_models_without_the_input_are_refused(self, model: str, changes: dict[str, Any], told: str) -> None:
        with pytest.raises(RrecError, match=told):
            self.of(**changes).certify(loaded(build(model)), judging(), "test")

    @pytest.mark.parametrize(
        "changes",
        [
            {"noise": "laplace"},
            {"noise": "masking", "changes": "delete", "budgets": [1]},
            {"noise": "deletion", "budgets": [0.5]},
            {"p_minus": 1.0},
            {"sigma": 0.0},
            {"budgets": [1, 0]},
            {"budgets": []},
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match="certify"):
            self.of(**changes)


class TestNoise:
    """What a sample sees is what the bounds are about."""

    def of(self, **changes: Any) -> Smoothing:
        built = proof("smoothing", **changes)
        assert isinstance(built, Smoothing)
        return built

    @pytest.mark.parametrize("surface", ["user", "embedding"])
    def test_gaussian_noise_has_the_deviation_sigma(self, surface: str) -> None:
        model, judge = build("mf", dim=1), judging()
        with torch.no_grad():
            model.get_parameter("user.weight").zero_()
            model.get_parameter("item.weight").fill_(1000.0)  # so much that its own noise is nothing
        certificate = self.of(surface=surface, sigma=0.3, samples=300)
        drawn = certificate._noisy(model, judge, "test", 0.0, torch.Generator().manual_seed(0))
        found = torch.cat([scores[:, 0] / 1000 for _, scores in drawn])
        assert found.std().item() == pytest.approx(0.3, rel=0.05)
        assert abs(found.mean().item()) < 0.02

    def test_each_event_is_dropped_with_p_minus(self) -> None:
        history = History(torch.arange(2000).view(2, 1000), torch.tensor([1000, 500]))
        seen_ = self.of(noise="deletion", p_minus=0.8, budgets=[1])._thinned(history, torch.Generator().manual_seed(0))
        kept = seen_ >= 0
        assert torch.equal(seen_[kept], history.items[kept])
        assert kept.sum(1).div(history.lengths).tolist() == pytest.approx([0.2, 0.2], abs=0.04)
        assert not kept[1, 500:].any()

    def test_of_a_masked_history_so_many_events_are_kept_each_as_likely(self) -> None:
        history = History(torch.arange(8).expand(4000, 8), torch.tensor([8, 5, 2, 0] * 1000))
        certificate = self.of(noise="masking", kept=3, budgets=[1])
        kept = certificate._thinned(history, torch.Generator().manual_seed(0)) >= 0
        assert torch.equal(kept.sum(1), history.lengths.clamp_max(3))
        shares = kept[::4].double().mean(0)
        torch.testing.assert_close(shares, torch.full((8,), 3 / 8).double(), atol=0.05, rtol=0)

    def test_flips_are_as_likely_as_they_are_said_to_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = grouped(n_users=20)
        model, judge = build("itemknn", data), judging(data)
        samples: list[Tensor] = []

        def kept(rows: Any, _: Any) -> Tensor:
            samples.append(rows.dense(data.n_items))
            return torch.zeros(20, data.n_items)

        monkeypatch.setattr(model, "of_rows", kept)
        certificate = self.of(noise="flips", p_minus=0.7, p_plus=0.1, samples=200, budgets=[1])
        certificate._elect(loaded(model, data), judge, "test", 0)
        portion = judge.portions("test")[0]
        own = torch.zeros(20, data.n_items, dtype=torch.bool)
        own[data.train.users, data.train.items] = True
        shares = torch.stack(samples).double().mean(0)
        assert shares[own[portion.users]].mean().item() == pytest.approx(0.3, abs=0.01)
        assert shares[~own[portion.users]].mean().item() == pytest.approx(0.1, abs=0.01)

    def test_all_bounds_hold_together_with_probability_one_minus_alpha(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[float] = []

        def spied(n: int, alpha: float) -> tuple[Tensor, Tensor]:
            asked.append(alpha)
            return clopper_pearson(n, alpha)

        monkeypatch.setattr("robustbench_rec.certificates.smoothing.clopper_pearson", spied)
        self.of(samples=5, alpha=0.24, budgets=[0]).certify(loaded(build("mf")), judging(), "test")
        assert asked == [pytest.approx(0.24 / (DATA.n_users * DATA.n_items))]

    @pytest.mark.parametrize("votes", [1, 2, 3])
    def test_a_sample_moves_as_many_votes_as_it_casts(self, votes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Deletion of replaced events: 0.3 of the samples see one, and lift up to `votes` items by that share."""
        found: list[Tensor] = []

        def spied(upper: Tensor, joint: Joint) -> Tensor:
            found.append(joint(torch.full((1, 1, 4), 0.1).double(), torch.arange(1, 5)))
            return barriers(upper, joint)

        monkeypatch.setattr("robustbench_rec.certificates.smoothing.barriers", spied)
        certificate = self.of(noise="deletion", p_minus=0.7, votes=votes, samples=2, budgets=[1])
        data = grouped(n_users=20)
        certificate.certify(loaded(build("sasrec", data), data), judging(data), "test")
        assert found[0].flatten().tolist() == pytest.approx([0.1 + 0.3 * min(c, votes) for c in range(1, 5)])
