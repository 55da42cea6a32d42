"""The largest of each row against torch's topk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec import largest as module
from robustbench_rec.largest import largest

SIZES = [(5, 700, 10), (3, 3000, 21), (2, 2**15 + 37, 30), (4, 640, 10), (1, 200, 3)]


def drawn(rows: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def agrees(scores: Tensor, count: int) -> None:
    for ordered in (None, scores.sort(1).values):
        values, columns = largest(scores, count, ordered=ordered)
        torch.testing.assert_close(values, scores.topk(count, 1).values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(values, scores.gather(1, columns), rtol=0, atol=0, equal_nan=True)
        assert all(len(set(row)) == count for row in columns.tolist())


@pytest.mark.parametrize(("rows", "n", "count"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_topk_by_way_of_the_peaks(rows: int, n: int, count: int, dtype: torch.dtype) -> None:
    scores = drawn(rows, n, dtype=dtype)
    assert module._above_a_bound(scores, count, None) is not None
    assert module._above_a_bound(scores, count, scores.sort(1).values) is not None
    agrees(scores, count)


@given(st.integers(0, 2**31), st.sampled_from(SIZES), st.integers(1, 12), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_equal_and_infinite_scores(seed: int, size: tuple[int, int, int], levels: int, gone: float) -> None:
    rows, n, count = size
    scores = drawn(rows, n, seed)
    agrees((scores * levels).round(), count)
    agrees(scores.masked_fill(drawn(rows, n, seed + 1).sigmoid() < gone, -torch.inf), count)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 500, 699])
def test_what_is_no_number_comes_first(value: float, place: int) -> None:
    scores = drawn(3, 700)
    scores[1, place] = value
    agrees(scores, 10)


@pytest.mark.parametrize(("rows", "n", "count"), [(0, 700, 10), (3, 700, 0), (3, 12, 12), (3, 1, 1)])
def test_small_ones_are_left_to_torch(rows: int, n: int, count: int) -> None:
    assert module._above_a_bound(drawn(rows, n), count, None) is None
    agrees(drawn(rows, n), count)


def test_views_are_read_as_they_are() -> None:
    agrees(drawn(700, 8).T, 10)
    agrees(drawn(8, 1400)[:, ::2], 10)


def test_values_have_their_gradient() -> None:
    scores, weights = drawn(5, 700).requires_grad_(), drawn(5, 10, seed=1)
    (ours,) = torch.autograd.grad((weights * largest(scores, 10)[0]).sum(), scores)
    (theirs,) = torch.autograd.grad((weights * scores.topk(10, 1).values).sum(), scores)
    assert torch.equal(ours, theirs)
