"""LazyAdam against torch: SparseAdam where gradients are sparse, Adam where every row is touched."""

import pytest
import torch
from conftest import build, fit
from torch import Tensor, nn

from robustbench_rec.errors import RrecError
from robustbench_rec.lookup import rows, rows_only
from robustbench_rec.optimizers import OPTIMIZERS, LazyAdam, check, optimizer


def steps(weight: nn.Parameter, built: torch.optim.Optimizer, batches: list[Tensor], *, sparse: bool) -> Tensor:
    for index in batches:
        built.zero_grad()
        found = nn.functional.embedding(index, weight, sparse=True) if sparse else rows(weight, index)
        (found.sin() * torch.arange(1.0, 5.0)).sum().backward()  # type: ignore[no-untyped-call]
        built.step()
    return weight.detach()


def test_rows_that_a_batch_touches_move_as_under_sparse_adam() -> None:
    start = torch.randn(20, 4)
    batches = [torch.randint(20, (6,)) for _ in range(30)]
    mine, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rows_only(mine)
    steps(mine, LazyAdam([mine], lr=0.05, weight_decay=0.0), batches, sparse=False)
    steps(other, torch.optim.SparseAdam([other], lr=0.05), batches, sparse=True)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_table_that_is_touched_whole_moves_as_under_adam() -> None:
    start, batches = torch.randn(20, 4), [torch.arange(20)] * 30
    mine, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    rows_only(mine)
    steps(mine, LazyAdam([mine], lr=0.05, weight_decay=0.1), batches, sparse=False)
    steps(other, torch.optim.Adam([other], lr=0.05, weight_decay=0.1), batches, sparse=False)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_row_without_a_gradient_stays_where_it_is() -> None:
    weight = nn.Parameter(torch.randn(9, 4))
    rows_only(weight)
    before = weight.detach().clone()
    built = LazyAdam([weight], lr=0.1, weight_decay=0.5)
    steps(weight, built, [torch.tensor([1, 2]), torch.tensor([2])], sparse=False)
    assert torch.equal(weight[[0, *range(3, 9)]], before[[0, *range(3, 9)]])
    assert not torch.equal(weight[1:3], before[1:3])


def test_a_row_rests_also_where_its_gradient_came_dense() -> None:
    start, batches = torch.randn(20, 4), [torch.randint(20, (6,)) for _ in range(30)]
    sparse, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for weight in (sparse, dense):
        rows_only(weight)
        built = LazyAdam([weight], lr=0.05, weight_decay=0.1)
        for index in batches:
            built.zero_grad()
            (rows(weight, index).sin() * torch.arange(1.0, 5.0)).sum().backward()  # type: ignore[no-untyped-call]
            if weight is dense:
                assert weight.grad is not None
                weight.grad = weight.grad.to_dense()
            built.step()
    torch.testing.assert_close(dense, sparse)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-8])
def test_small_gradients_move_as_far_as_under_adam(size: float) -> None:
    mine, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for weight, built in (
        (mine, LazyAdam([mine], lr=0.05, weight_decay=0.0)),
        (other, torch.optim.Adam([other], lr=0.05)),
    ):
        for _ in range(20):
            weight.grad = torch.full((3,), size)
            built.step()
    torch.testing.assert_close(mine, other)


def test_a_dense_gradient_is_taken_as_it_is() -> None:
    start = torch.randn(20, 4)
    mine, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    for weight, built in (
        (mine, LazyAdam([mine], lr=0.05, weight_decay=0.0)),
        (other, torch.optim.Adam([other], lr=0.05)),
    ):
        steps(weight, built, [torch.arange(20)] * 5, sparse=False)
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_frozen_parameters_out(name: str) -> None:
    model = build("mf")
    model.get_parameter("item.weight").requires_grad_(False)
    built = optimizer(model, fit(optimizer=name))
    assert [each for group in built.param_groups for each in group["params"]] == [model.get_parameter("user.weight")]


def test_unknown_names_and_combinations_are_refused() -> None:
    with pytest.raises(RrecError, match="unknown optimizer 'adm'.*did you mean 'adam'"):
        check(fit(optimizer="adm"))
    with pytest.raises(RrecError, match="clip_norm .*lazy_adam"):
        check(fit(optimizer="lazy_adam", clip_norm=1.0))
