"""Popularity, spread and stability of lists, and the model that counts: against loops, scipy and scikit-learn."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import DATA, build, question
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from robustbench_rec.metrics import popularity, stability
from robustbench_rec.shifted import Shifted

N_ITEMS = 12


@st.composite
def shown(draw: st.DrawFn, k: int | None = None, rows: int | None = None) -> Tensor:
    """Lists of different items, some shorter than K, some empty."""
    k = k or draw(st.integers(1, 8))
    rows = rows or draw(st.integers(1, 5))
    lists = []
    for _ in range(rows):
        items = draw(st.permutations(range(N_ITEMS)))[: draw(st.integers(0, k))]
        lists.append([*items, *[-1] * (k - len(items))])
    return torch.tensor(lists)


@st.composite
def pair(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    k, rows = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    return draw(shown(k, rows)), draw(shown(k, rows))


counts = st.lists(st.integers(0, 30), min_size=N_ITEMS, max_size=N_ITEMS)


def real(row: list[int]) -> list[int]:
    return [item for item in row if item >= 0]


def same(found: Tensor, expected: list[float]) -> None:
    assert found.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class TestPopularity:
    @given(lists=shown(), events=counts)
    def test_arp_is_the_mean_over_the_items_of_a_list(self, lists: Tensor, events: list[int]) -> None:
        rows = [real(row) for row in lists.tolist()]
        same(popularity.arp(lists, torch.tensor(events)), [mean([events[i] for i in row]) for row in rows])
        expected = [mean([math.log(1 + events[i]) for i in row]) for row in rows]
        same(popularity.log_arp(lists, torch.tensor(events)), expected)

    @given(lists=shown(), events=counts)
    def test_aplt_is_the_share_of_the_tail(self, lists: Tensor, events: list[int]) -> None:
        ordered, head, had = sorted(events, reverse=True), [], 0
        for each in ordered:
            if had < popularity.HEAD * sum(events):
                head.append(each)
            had += each
        tail = [each < (head[-1] if head else math.inf) for each in events]
        assert popularity.tail(torch.tensor(events)).tolist() == tail
        expected = [mean([float(tail[i]) for i in real(row)]) for row in lists.tolist()]
        same(popularity.aplt(lists, torch.tensor(events)), expected)

    @given(lists=shown())
    def test_exposure_coverage_and_entropy(self, lists: Tensor) -> None:
        seen = Counter(item for row in lists.tolist() for item in real(row))
        found = popularity.exposure(lists, N_ITEMS)
        assert found.tolist() == [seen[item] for item in range(N_ITEMS)]
        assert popularity.coverage(found).item() == len(seen) / N_ITEMS
        expected = stats.entropy(list(seen.values())) if seen else math.nan
        assert popularity.entropy(found).item() == pytest.approx(expected, abs=1e-9, nan_ok=True)

    @given(values=counts)
    def test_gini_is_half_the_mean_difference_over_the_mean(self, values: list[int]) -> None:
        total, n = sum(values), len(values)
        apart = sum(abs(a - b) for a in values for b in values)
        expected = apart / (2 * n * total) if total else math.nan
        found = popularity.gini(torch.tensor(values)).item()
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert math.isnan(found) or -1e-12 <= found <= 1

    def test_gini_goes_from_even_to_alone(self) -> None:
        assert popularity.gini(torch.full((5,), 3)).item() == pytest.approx(0)
        assert popularity.gini(torch.tensor([0, 0, 9, 0])).item() == pytest.approx(1 - 1 / 4)

    @given(
        seed=st.integers(0, 10_000), sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4), levels=st.integers(1, 9)
    )
    def test_pru_is_minus_spearman_of_each_user(self, seed: int, sizes: list[int], levels: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        mixed = torch.randperm(len(rows), generator=generator)
        rows = rows[mixed]
        places, events = torch.randint(levels, (2, len(rows)), generator=generator)
        expected = []
        for row in range(len(sizes)):
            own, of = places[rows == row], events[rows == row]
            defined = len(own) > 1 and len(own.unique()) > 1 and len(of.unique()) > 1
            expected.append(-stats.spearmanr(own, of).statistic if defined else math.nan)
        same(popularity.pru(rows, places, events, len(sizes)), expected)


class TestPop:
    @pytest.mark.parametrize("clicks", [True, False], ids=["clicks", "ratings"])
    def test_scores_are_counts_of_the_training_events_that_are_no_refusals(self, clicks: bool) -> None:
        values = (torch.arange(len(DATA.train)) % 3 > 0).float()  # a third of the labels is 0, or of the ratings
        data = replace(DATA, train=replace(DATA.train, values=values if clicks else 4 * values))
        items = DATA.train.items.tolist()
        seen = Counter(item for item, value in zip(items, values.tolist(), strict=True) if value or not clicks)
        expected = torch.tensor([float(seen[item]) for item in range(DATA.n_items)])
        model, users, some = build("pop", data), torch.tensor([3, 0]), torch.tensor([[5, 5, 0], [1, 2, 3]])
        assert torch.equal(Shifted(model)(question(model, users)).scores, expected.expand(2, -1))
        assert torch.equal(Shifted(model)(question(model, users, some)).scores, expected[some])


def rbo(one: list[int], two: list[int], p: float) -> float:
    longest = max(len(one), len(two))
    overlaps = [len(set(one[:d]) & set(two[:d])) / d for d in range(1, longest + 1)]
    return (1 - p) * sum(p ** (d - 1) * each for d, each in enumerate(overlaps, 1)) if longest else math.nan


def tau(one: list[int], two: list[int], k: int) -> float:
    union = sorted({*one, *two})
    if not union:
        return math.nan
    if one == two:
        return 1.0
    if len(union) == 1:
        return math.nan
    first, second = ([each.index(i) + 1 if i in each else k + 1 for i in union] for each in (one, two))
    return float(stats.kendalltau(first, second).statistic)


class TestStability:
    @settings(max_examples=40)
    @given(lists=pair())
    def test_every_measure_is_its_plain_definition(self, lists: tuple[Tensor, Tensor]) -> None:
        before, after = lists
        rows = [(real(one), real(two)) for one, two in zip(before.tolist(), after.tolist(), strict=True)]
        k = before.shape[1]
        jaccard = [len({*a} & {*b}) / len({*a, *b}) if a or b else math.nan for a, b in rows]
        same(stability.jaccard(before, after), jaccard)
        for p in (0.5, 0.9, 0.98):
            same(stability.rbo(before, after, p), [rbo(a, b, p) for a, b in rows])
            whole = [rbo(a, b, p) / (1 - p ** max(len(a), len(b))) if a or b else math.nan for a, b in rows]
            same(stability.frbo(before, after, p), whole)
        same(stability.kendall(before, after), [tau(a, b, k) for a, b in rows])
        same(stability.top1(before, after), [float(a[:1] == b[:1]) if a or b else math.nan for a, b in rows])

    @given(lists=pair())
    def test_it_is_symmetric_and_between_its_bounds(self, lists: tuple[Tensor, Tensor]) -> None:
        for name, measure in {**stability.STABILITY, "top1": stability.top1}.items():
            there, back = measure(*lists), measure(*lists[::-1])
            torch.testing.assert_close(there, back, equal_nan=True)
            known = there[~there.isnan()]
            assert (known <= 1 + 1e-9).all(), name
            assert (known >= (-1 if name == "kendall" else 0) - 1e-9).all(), name

    @given(lists=shown())
    def test_frbo_is_1_for_equal_lists_and_0_for_disjoint_ones(self, lists: Tensor) -> None:
        there = (lists >= 0).any(1)
        for name, measure in {**stability.STABILITY, "top1": stability.top1}.items():
            assert measure(lists, lists)[there].tolist() == pytest.approx([1.0] * int(there.sum())), name
            assert measure(lists, lists)[~there].isnan().all()
        others = torch.where(lists >= 0, lists + N_ITEMS, lists)
        for measure in (stability.frbo, stability.jaccard, stability.top1):
            assert (measure(lists, others)[there] == 0).all()

    def test_truncated_rbo_of_equal_lists_is_short_of_1(self) -> None:
        lists = torch.arange(10)[None]
        assert stability.rbo(lists, lists).item() == pytest.approx(1 - 0.9**10)

    def test_many_lists_are_compared_in_portions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lists = torch.rand(50, N_ITEMS, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :5]
        others = lists.roll(1, 0)
        expected = stability.kendall(lists, others)
        monkeypatch.setattr(stability, "ROWS", 1)
        assert torch.equal(stability.kendall(lists, others), expected)
