"""Matrix factorisation against its formula."""

from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, penalty
from scipy import stats

from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.models.mf import MF
from robustbench_rec.shifted import Shifted


def model_of(**changes: Any) -> MF:
    model = build("mf", **({"dim": 5} | changes))
    assert isinstance(model, MF)
    return model


@pytest.mark.parametrize("items", [None, torch.tensor([[3, 0, 3], [19, 7, 1]])], ids=["all", "some"])
def test_scores_are_dot_products_with_their_gradients(items: torch.Tensor | None) -> None:
    model, users = model_of(), torch.tensor([4, 0])
    found = Shifted(model)(Batch.unlabelled(users, items)).scores
    chosen = torch.arange(DATA.n_items).expand(2, -1) if items is None else items
    expected = torch.einsum("bd,bcd->bc", model.user.weight[users], model.item.weight[chosen])
    torch.testing.assert_close(found, expected)
    weights, outer = list(model.parameters()), torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(each, weights, outer) for each in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_penalty_is_the_naive_sum_over_the_events_of_a_batch() -> None:
    model = model_of(l2=0.3)
    batch = batch_for(model)
    assert batch.items is not None
    total = torch.zeros(())
    for user, items in zip(batch.users.tolist(), batch.items.tolist(), strict=True):
        total = total + model.user.weight[user].square().sum()
        total = total + sum(model.item.weight[item].square().sum() for item in items)
    torch.testing.assert_close(penalty(model, batch), 0.3 * 0.5 * total / len(batch))
    assert penalty(model_of(l2=0.0), batch) == 0


def test_vectors_start_xavier_normal() -> None:
    model = model_of(dim=64)
    assert {name for name, _ in model.named_parameters()} == {"user.weight", "item.weight"}  # no biases
    for table in (model.user.weight, model.item.weight):
        spread = (2 / sum(table.shape)) ** 0.5
        assert stats.kstest(table.detach().flatten(), "norm", (0, spread)).pvalue > 1e-3


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RrecError, match="dim"):
        model_of(dim=0)
