"""Calibration and uncertainty against scikit-learn, scipy and loops; robustness, fairness, explanations, cost."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from conftest import batch_for, build
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as judged
from torch import Tensor

from robustbench_rec.metrics import explanation, fairness, prediction, robustness, uncertainty
from robustbench_rec.metrics.cost import Passes, parameters
from robustbench_rec.shifted import Shifted


def drawn(seed: int, size: int, levels: int) -> tuple[Tensor, Tensor]:
    """Logits with ties and labels that have to do with them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-levels, levels + 1, (size,), generator=generator).double() * (4 / levels)
    labels = (torch.rand(size, generator=generator) < (logits / 2).sigmoid()).double()
    return logits, labels


cases = st.builds(drawn, st.integers(0, 2**31), st.integers(1, 60), st.sampled_from([1, 3, 1000]))


def evened(keys: Tensor, values: Tensor) -> list[float]:
    """The mean of those with the same key, in place of each."""
    return [values[keys == key].mean().item() for key in keys]


def binned(p: Tensor, y: Tensor, bins: int) -> list[tuple[int, float, float]]:
    order = sorted(range(len(p)), key=lambda i: p[i].item())
    even, n = evened(p, y), len(p)
    found = []
    for b in range(bins):
        inside = order[b * n // bins : (b + 1) * n // bins]
        found.append(
            (
                len(inside),
                sum(p[i].item() for i in inside) / len(inside),
                sum(even[i] for i in inside) / len(inside),
            )
        )
    return found


def error(rows: list[tuple[int, float, float]]) -> float:
    return sum(n * abs(c - s) for n, c, s in rows) / sum(n for n, _, _ in rows)


class TestCalibration:
    @given(case=cases)
    def test_bins_of_equal_mass_are_the_loop_whatever_the_order(self, case: tuple[Tensor, Tensor]) -> None:
        p, y = case[0].sigmoid(), case[1]
        rows = binned(p, y, min(15, len(p)))
        assert uncertainty.ece(p, y).item() == pytest.approx(error(rows), abs=1e-9)
        assert uncertainty.mce(p, y).item() == pytest.approx(max(abs(c - s) for _, c, s in rows), abs=1e-9)
        size, confidence, share = uncertainty.reliability(p, y)
        for found, expected in zip((size, confidence, share), zip(*rows, strict=True), strict=True):
            assert found.tolist() == pytest.approx(expected)
        mixed = torch.randperm(len(p), generator=torch.Generator().manual_seed(1))
        assert uncertainty.ece(p[mixed], y[mixed]).item() == pytest.approx(error(rows), abs=1e-9)

    @given(case=cases)
    def test_the_adaptive_error_has_the_most_bins_that_still_rise(self, case: tuple[Tensor, Tensor]) -> None:
        p, y = case[0].sigmoid(), case[1]
        best = binned(p, y, 1)
        for bins in range(2, len(p) + 1):
            rows = binned(p, y, bins)
            shares = [s for _, _, s in rows]
            if any(b < a - uncertainty.ROUNDING for a, b in pairwise(shares)):
                break
            best = rows
        assert uncertainty.adaptive_ece(p, y).item() == pytest.approx(error(best), abs=1e-6)

    @given(case=cases)
    def test_brier_agrees_with_scikit_learn_and_sharpness_is_the_mean_variance(
        self, case: tuple[Tensor, Tensor]
    ) -> None:
        p, y = case[0].sigmoid(), case[1]
        assert uncertainty.brier(p, y).item() == pytest.approx(judged.brier_score_loss(y, p, labels=[0, 1]))
        assert uncertainty.sharpness(p).item() == pytest.approx(np.mean([q * (1 - q) for q in p.tolist()]))

    def test_probabilities_that_are_right_have_no_error(self) -> None:
        p = torch.tensor([0.25] * 4 + [0.75] * 4)
        y = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
        assert uncertainty.ece(p, y, bins=2).item() == pytest.approx(0)
        assert uncertainty.ece(p, 1 - y, bins=2).item() == pytest.approx(0.5)

    @given(seed=st.integers(0, 2**31), size=st.integers(10, 80))
    def test_the_temperature_is_the_best_one(self, seed: int, size: int) -> None:
        logits, labels = drawn(seed, size, 1000)

        def loss(heat: float) -> float:
            return prediction.logloss(logits / heat, labels).item()

        found = uncertainty.temperature(logits, labels)
        best = optimize.minimize_scalar(
            lambda log: loss(math.exp(log)), bounds=(math.log(1e-3), math.log(1e3)), method="bounded"
        )
        assert loss(found) <= best.fun + 1e-6
        assert 1e-3 <= found <= 1e3 + 1e-6

    @given(seed=st.integers(0, 2**31), size=st.integers(10, 80), far=st.sampled_from([0.0, 30.0, -500.0]))
    def test_slope_and_shift_are_the_best_ones_within_their_bounds(self, seed: int, size: int, far: float) -> None:
        logits, labels = drawn(seed, size, 1000)
        logits = logits + far
        slope, shift = uncertainty.scaling(logits, labels)
        assert 1e-3 <= slope <= 1e3
        assert abs(shift) <= 1e3
        x, y = logits.numpy(), labels.numpy()
        centre = x.mean()  # the judge's own coordinates, where its steps are well scaled

        def loss(at: np.ndarray) -> float:
            z = at[0] * (x - centre) + at[1]
            return float(np.mean(np.logaddexp(0, z) - y * z))

        best = optimize.minimize(loss, [1.0, 0.0], bounds=[(1e-3, 1e3), (-500, 500)], method="L-BFGS-B")
        assert prediction.logloss(slope * logits + shift, labels).item() <= best.fun + 1e-4

    @settings(max_examples=15)
    @given(case=cases)
    def test_no_threshold_has_a_better_f1(self, case: tuple[Tensor, Tensor]) -> None:
        logits, labels = case
        line = uncertainty.threshold(logits, labels)
        found = prediction.f1(logits - line, labels).item()
        lines = [logits.min().item() - 1, *set(logits.tolist())]
        best = max(judged.f1_score(labels, logits > each, zero_division=0) for each in lines)
        assert found == pytest.approx(best)

    def test_without_a_click_the_threshold_stays(self) -> None:
        assert uncertainty.threshold(torch.tensor([1.0, -1.0]), torch.zeros(2)) == 0

    def test_where_nothing_is_called_a_click_there_is_a_flag(self) -> None:
        labels = torch.tensor([1.0, 0.0])
        assert prediction.no_positives(torch.tensor([-1.0, 0.0]), labels) == 1
        assert prediction.no_positives(torch.tensor([-1.0, 0.1]), labels) == 0


class TestErrors:
    @given(seed=st.integers(0, 2**31), size=st.integers(1, 6), levels=st.sampled_from([1, 2, 100]))
    def test_aurc_is_the_mean_over_all_orders_among_equals(self, seed: int, size: int, levels: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sure = torch.randint(levels, (size,), generator=generator).double()
        errors = torch.randint(2, (size,), generator=generator).double()
        areas = []
        for order in permutations(range(size)):
            if all(sure[a] >= sure[b] for a, b in pairwise(order)):
                e = errors[list(order)].tolist()
                areas.append(sum(sum(e[:k]) / k for k in range(1, size + 1)) / size)
        assert uncertainty.aurc(sure, errors).item() == pytest.approx(sum(areas) / len(areas))

    @given(case=cases)
    def test_the_uncertainty_of_errors_agrees_with_scikit_learn(self, case: tuple[Tensor, Tensor]) -> None:
        logits, labels = case
        wrong = (logits > 0) != (labels > 0)
        found = uncertainty.OF_CLICKS["error_auroc"](logits, labels).item()
        if wrong.any() and not wrong.all():
            assert found == pytest.approx(judged.roc_auc_score(wrong, -logits.abs()))
        else:
            assert math.isnan(found)

    @given(seed=st.integers(0, 2**31), size=st.integers(1, 60))
    def test_intervals_and_gaussian_likelihood(self, seed: int, size: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        scores, labels = 3 + torch.randn(2, size, generator=generator)
        errors = sorted((scores.double() - labels.double()).abs().tolist())
        place = math.ceil((size + 1) * 0.9)
        expected = errors[place - 1] if place <= size else math.inf
        width = uncertainty.interval_width(scores, labels)
        assert width.item() == pytest.approx(expected)
        covered = uncertainty.interval_coverage(scores, labels, width).item()
        assert covered == pytest.approx(sum(e <= expected for e in errors) / size)
        assert covered >= min(0.9, 1 - 1e-9)
        from scipy.stats import norm

        variance = torch.rand(size, generator=generator) + 0.1
        likely = norm.logpdf(labels.double(), scores.double(), variance.double().sqrt())
        assert uncertainty.gaussian_nll(scores, variance, labels).item() == pytest.approx(-likely.mean())


class TestRobustness:
    def test_the_drop_has_a_sign_and_the_offset_has_none(self) -> None:
        clean, attacked = torch.tensor([0.4, 0.4, 0.0]), torch.tensor([0.1, 0.5, 0.1])
        assert robustness.drop(clean, attacked).tolist() == pytest.approx([0.75, -0.25, math.nan], nan_ok=True)
        assert robustness.offset(clean, attacked).tolist() == pytest.approx([0.75, 0.25, math.nan], nan_ok=True)

    def test_improvement_is_1_for_full_repair_0_for_none_and_below_for_worse(self) -> None:
        defended = torch.tensor([0.4, 0.1, 0.0, 0.25], dtype=torch.double)
        value, undefined = robustness.improvement(
            defended, torch.full_like(defended, 0.1), torch.full_like(defended, 0.4)
        )
        assert value.tolist() == pytest.approx([1, 0, -1 / 3, 0.5])
        assert undefined.tolist() == [0, 0, 0, 0]

    def test_improvement_is_not_defined_where_the_attack_had_no_effect_and_is_never_0_there(self) -> None:
        clean = torch.tensor([0.4, 0.4, 0.0, 0.4, 0.4], dtype=torch.double)
        undefended = torch.tensor([0.4, 0.4 - 3.9e-4, 0.0, 0.4 - 4.1e-4, 0.5], dtype=torch.double)
        value, undefined = robustness.improvement(clean, undefended, clean)
        assert undefined.tolist() == [1, 1, 1, 0, 1]  # the last one rose
        assert value.isnan().tolist() == [True, True, True, False, True]
        value, undefined = robustness.improvement(clean, undefended, clean, smaller=True)
        assert undefined.tolist() == [1, 1, 1, 1, 0]
        assert value[-1] == 1

    @given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=2, max_size=8, unique_by=lambda e: e[0]))
    def test_the_area_is_numpys_over_the_span(self, points: list[tuple[int, float]]) -> None:
        eps, values = (torch.tensor(each, dtype=torch.double) for each in zip(*points, strict=True))
        e, v = np.array(sorted(points)).T
        expected = np.trapezoid(v, e) / (e[-1] - e[0])
        assert robustness.area(eps, values).item() == pytest.approx(expected)

    def test_the_selection_gap_is_what_choosing_on_validation_costs(self) -> None:
        valid, test = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.5, 0.2, 0.4])
        assert robustness.selection_gap(valid, test).item() == pytest.approx(0.3)


class TestFairness:
    @given(
        st.lists(st.tuples(st.one_of(st.floats(0, 1), st.just(math.nan)), st.integers(-1, 3)), min_size=1, max_size=30)
    )
    def test_groups_are_the_loop(self, users: list[tuple[float, int]]) -> None:
        values, groups = torch.tensor([v for v, _ in users]).double(), torch.tensor([g for _, g in users])
        means, counts = fairness.by_group(values, groups, 4)
        inside = [
            [v for v, g in zip(values.tolist(), groups.tolist(), strict=True) if g == n and v == v] for n in range(4)
        ]
        assert counts.tolist() == [len(each) for each in inside]
        expected = [sum(each) / len(each) if each else math.nan for each in inside]
        assert means.tolist() == pytest.approx(expected, nan_ok=True)
        there = [each for each in expected if each == each]
        low, high = (min(there), max(there)) if there else (math.nan, math.nan)
        several = len(there) > 1  # one group alone is neither even nor uneven
        assert fairness.gap(means).item() == pytest.approx(high - low if several else math.nan, nan_ok=True)
        assert fairness.worst(means).item() == pytest.approx(low, nan_ok=True)
        assert fairness.worst(means, smaller=True).item() == pytest.approx(high, nan_ok=True)
        assert fairness.ratio(means).item() == pytest.approx(low / high if several and high else math.nan, nan_ok=True)

    @given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=40))
    def test_cvar_is_the_mean_of_the_worst_tenth(self, users: list[float]) -> None:
        known = sorted(each for each in users if each == each)
        worst = known[: math.ceil(len(known) / 10)]
        values = torch.tensor(users, dtype=torch.double)
        expected = sum(worst) / len(worst) if worst else math.nan
        assert fairness.cvar(values).item() == pytest.approx(expected, nan_ok=True)
        if known:
            assert fairness.spread(values).item() == pytest.approx(np.std(known), abs=1e-9)

    @given(seed=st.integers(0, 2**31))
    def test_parity_and_opportunity_are_the_loop(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        exposure = torch.randint(1, 9, (20,), generator=generator)
        groups = torch.randint(-1, 3, (20,), generator=generator)
        shown = {g: sum(e for e, h in zip(exposure.tolist(), groups.tolist(), strict=True) if h == g) for g in range(3)}
        size = {g: groups.tolist().count(g) for g in range(3)}
        expected = [abs(shown[g] / sum(shown.values()) - size[g] / sum(size.values())) for g in range(3)]
        assert fairness.parity(exposure, groups, 3).tolist() == pytest.approx(expected)
        hit = torch.randint(2, (20,), generator=generator).bool()
        rates = [
            mean([float(h) for h, g in zip(hit.tolist(), groups.tolist(), strict=True) if g == n]) for n in range(3)
        ]
        assert fairness.true_positive_rates(hit, groups, 3).tolist() == pytest.approx(rates, nan_ok=True)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class TestExplanations:
    def test_what_the_evidence_gives_and_what_it_suffices_for(self) -> None:
        full, without, only = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 3.0]), torch.tensor([3.0, 0.5])
        assert explanation.comprehensiveness(full, without).tolist() == [2, 0]
        assert explanation.sufficiency(full, only).tolist() == [0, 2.5]

    @given(st.lists(st.floats(-3, 3), min_size=2, max_size=11))
    def test_the_area_of_a_curve_is_numpys(self, curve: list[float]) -> None:
        share = np.linspace(0, 1, len(curve)) ** 2
        found = explanation.curve_area(torch.tensor([curve]), torch.from_numpy(share)).item()
        assert found == pytest.approx(np.trapezoid(curve, share), abs=1e-5)

    def test_an_item_that_leaves_the_list_was_explained(self) -> None:
        found = explanation.rank_fidelity(torch.tensor([1, 3, 9]), torch.tensor([7, 2, 10]), 5)
        assert found.tolist() == pytest.approx([1, 0, math.nan], nan_ok=True)

    def test_paths_are_compared_as_wholes(self) -> None:
        none = [-1, -1, -1]
        before = torch.tensor([[[1, 0, 2], [1, 0, -1], none], [none] * 3])
        after = torch.tensor([[[1, 0, -1], none, [4, 4, 4]], [none] * 3])
        assert explanation.path_jaccard(before, after).tolist() == pytest.approx([1 / 3, math.nan], nan_ok=True)
        assert explanation.path_jaccard(before, before)[0] == 1
        assert explanation.path_length(before).tolist() == pytest.approx([2.5, math.nan], nan_ok=True)

    def test_sparsity_coverage_and_diversity(self) -> None:
        assert explanation.sparsity(torch.tensor([1, 4]), torch.tensor([4, 4])).tolist() == [0.75, 0]
        assert explanation.coverage(torch.tensor([0, 2, 1, 0])).item() == 0.5
        relations = torch.tensor([[0, 1, -1], [2, 2, 2], [-1, -1, -1]])
        found = explanation.relation_diversity(relations, 3).tolist()
        assert found == pytest.approx([math.log(2), 0, math.nan], nan_ok=True, abs=1e-12)


class TestCost:
    def test_a_plain_step_is_three_forward_passes_and_validation_none(self) -> None:
        model = build("mf").train()
        batch = batch_for(model)
        with Passes(model) as passes:
            Shifted(model)(batch).scores.sum().backward()
            model.eval()
            Shifted(model)(batch)
        assert (passes.forward, passes.backward, passes.equivalents) == (1, 1, 3)
        model.train()
        Shifted(model)(batch)
        assert passes.forward == 1

    def test_parameters_are_those_that_are_trained(self) -> None:
        model = build("mf")
        every = sum(each.numel() for each in model.parameters())
        assert parameters(model) == every
        next(iter(model.parameters())).requires_grad_(False)
        assert parameters(model) < every
