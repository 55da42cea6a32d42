"""Sparse products against dense algebra."""

import pytest
import torch
from conftest import DATA, interactions
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.graph import Csr, Sparse, clicked, normalised, pointers, product, sums

ROWS, COLUMNS = torch.tensor([4, 0, 2, 0, 2, 0]), torch.tensor([2, 1, 0, 1, 3, 3])  # (0, 1) twice, rows 1, 3 empty
VALUES = torch.tensor([0.5, -1.0, 2.0, 0.25, 1.5, -3.0])


def dense(values: Tensor | None = VALUES) -> Tensor:
    found = torch.ones(6) if values is None else values
    return torch.zeros(5, 4).index_put((ROWS, COLUMNS), found, accumulate=True)


@pytest.mark.parametrize("values", [VALUES, None], ids=["weights", "ones"])
class TestProduct:
    def pair(self, values: Tensor | None) -> tuple[Csr, Csr]:
        return Sparse(ROWS, COLUMNS, 5, values).csr, Sparse(COLUMNS, ROWS, 4, values).csr

    def test_value_and_gradient_are_those_of_the_dense_product_with_duplicates_summed(
        self, values: Tensor | None
    ) -> None:
        x = torch.randn(4, 3, requires_grad=True)
        found = product(x, *self.pair(values))
        torch.testing.assert_close(found, dense(values) @ x)
        outer = torch.randn(5, 3)
        (gradient,) = torch.autograd.grad(found, x, outer)
        torch.testing.assert_close(gradient, dense(values).T @ outer)

    def test_reduced_precision_is_summed_in_single(self, values: Tensor | None) -> None:
        x = torch.randn(4, 3).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = product(x, *self.pair(values))
        torch.testing.assert_close(found, dense(values) @ x.float())
        found.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == torch.bfloat16

    def test_double_precision_stays(self, values: Tensor | None) -> None:
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        one, other = self.pair(values)
        torch.testing.assert_close(sums(x, one), dense(values).double() @ x)
        assert torch.autograd.gradcheck(lambda each: product(each, one, other), x)

    def test_chosen_rows_are_those_of_the_matrix_in_the_order_asked_for(self, values: Tensor | None) -> None:
        chosen = torch.tensor([2, 0, 1, 0])
        part = self.pair(values)[0].rows(chosen)
        torch.testing.assert_close(part.dense(4), dense(values)[chosen])
        x = torch.randn(4, 3)
        torch.testing.assert_close(sums(x, part), dense(values)[chosen] @ x)

    def test_columns_of_a_row_ascend_whatever_the_order_of_the_pairs(self, values: Tensor | None) -> None:
        matrix, _ = self.pair(values)
        assert matrix.starts.tolist() == [0, 3, 3, 5, 5, 6]
        assert matrix.columns.tolist() == [1, 1, 3, 0, 3, 2]

    def test_no_checkpoint_stores_it(self, values: Tensor | None) -> None:
        assert not Sparse(ROWS, COLUMNS, 5, values).state_dict()


def test_a_matrix_without_entries_gives_zeros() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    x = torch.randn(4, 3, requires_grad=True)
    found = product(x, Sparse(nothing, nothing, 5).csr, Sparse(nothing, nothing, 4).csr)
    assert torch.equal(found, torch.zeros(5, 3))
    found.sum().backward()
    assert torch.equal(x.grad, torch.zeros(4, 3))


def test_pointers_count_the_rows_and_the_empty_ones() -> None:
    assert pointers(torch.tensor([1, 1, 3]), 5).tolist() == [0, 0, 2, 2, 3, 3]


def events(users: list[int], items: list[int]) -> Data:
    train = interactions(users, items)
    return Data("drawn", "", train, interactions([1], [0]), train, ["a", "b", "c"], ["x", "y", "z", "never"])


class TestClicks:
    def test_a_pair_that_happened_twice_is_one_click_and_test_events_are_none(self) -> None:
        users, items = clicked(events([1, 0, 1, 0], [2, 1, 2, 0]))
        assert list(zip(users.tolist(), items.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 2)]

    def test_normalisation_divides_by_the_roots_of_both_degrees(self) -> None:
        data = events([0, 0, 1, 1], [0, 1, 1, 1])  # user 2 and items 2, 3 have nothing
        a = torch.zeros(7, 7)
        for user, item in ((0, 0), (0, 1), (1, 1)):
            a[user, 3 + item] = a[3 + item, user] = 1
        degree = a.sum(1)
        root = torch.where(degree > 0, degree, torch.ones(())).rsqrt()
        found = normalised(data).csr.dense(7)
        torch.testing.assert_close(found, root[:, None] * a * root)
        assert torch.equal(found, found.T)

    def test_its_largest_eigenvalue_is_one(self) -> None:
        values = torch.linalg.eigvalsh(normalised(DATA).csr.dense(DATA.n_users + DATA.n_items))
        torch.testing.assert_close(values.abs().max(), torch.ones(()))
