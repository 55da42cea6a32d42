"""Lookups and pairs against the operators of torch, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec.lookup import half_square, pairs, rows, rows_only


def table(n: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, dim, dtype=dtype, requires_grad=True)


def gradients(value: Tensor, *of: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)
    return [each.to_dense() for each in torch.autograd.grad((value * weights).sum(), of)]


sizes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 40), st.integers(1, 4))


@given(sizes, st.integers(0, 1000), st.booleans(), st.booleans())
def test_pairs_are_dot_products_with_their_gradients(
    size: tuple[int, int, int, int], seed: int, ordered: bool, sparse: bool
) -> None:
    torch.manual_seed(seed)
    n, m, count, width = size
    left, right = table(n), table(m)
    if sparse:
        rows_only(left)
        rows_only(right)
    index, candidates = torch.randint(n, (count,)), torch.randint(m, (count, width))
    index = index.sort().values if ordered else index
    found = pairs(left, index, right, candidates)
    expected = (left[index][:, None] * right[candidates]).sum(2)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, left, right), gradients(expected, left, right), strict=True):
        torch.testing.assert_close(one, other)


@given(st.integers(0, 20), st.integers(1, 4), st.integers(0, 100))
def test_pairs_of_the_rows_themselves_need_no_index(count: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    left, right, candidates = table(count), table(9), torch.randint(9, (count, width))
    found, expected = pairs(left, None, right, candidates), (left[:, None] * right[candidates]).sum(2)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, left, right), gradients(expected, left, right), strict=True):
        torch.testing.assert_close(one, other)


@given(st.lists(st.integers(0, 11), max_size=40), st.booleans())
def test_rows_and_their_half_square(names: list[int], sparse: bool) -> None:
    torch.manual_seed(0)
    weight, index = table(12), torch.tensor(names, dtype=torch.long)
    if sparse:
        rows_only(weight)
    for found, expected in (
        (rows(weight, index), weight[index]),
        (half_square(weight, index), 0.5 * weight[index].square().sum()),
    ):
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(found, weight)[0], gradients(expected, weight)[0])


def test_an_index_of_any_shape() -> None:
    weight, index = table(6), torch.randint(6, (2, 3, 4))
    torch.testing.assert_close(rows(weight, index), weight[index])
    torch.testing.assert_close(gradients(rows(weight, index), weight), gradients(weight[index], weight))


def test_a_gradient_of_rows_only_has_the_rows_that_were_touched() -> None:
    left, right = table(1000), table(70_000)
    for each in (left, right):
        rows_only(each)
    index, candidates = torch.tensor([3, 3, 900]), torch.tensor([[1, 69_999], [1, 5], [5, 5]])
    value = pairs(left, index, right, candidates).sum() + half_square(right, candidates)
    on_left, on_right = torch.autograd.grad(value, (left, right))
    assert on_left.coalesce().indices().tolist() == [[3, 900]]
    assert on_right.coalesce().indices().tolist() == [[1, 5, 69_999]]


def test_a_moved_table_gets_the_gradient_of_all_its_rows() -> None:
    weight = table(8)
    rows_only(weight)
    found = torch.autograd.grad(rows(weight + 1.0, torch.tensor([2, 2])).sum(), weight)[0]
    assert not found.is_sparse
    assert found[2].tolist() == [2.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_memory_held_before_never_reaches_a_score(dtype: torch.dtype) -> None:
    left, right = table(80, dtype=dtype), table(90, dtype=dtype)
    index, candidates = torch.arange(80).repeat_interleave(25), torch.randint(90, (2000, 2))
    for _ in range(50):
        waste = torch.full((4000,), torch.nan, dtype=dtype)
        del waste
        assert pairs(left, index, right, candidates).isfinite().all()


def test_autocast_is_kept() -> None:
    left, right = table(4, dtype=torch.float32), table(4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = pairs(left, torch.arange(4), right, torch.arange(4)[:, None])
    torch.testing.assert_close(found.squeeze(1).float(), (left * right).sum(1), rtol=2e-2, atol=2e-2)
