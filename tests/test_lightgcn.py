"""LightGCN's propagation against dense algebra."""

from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, moved, penalty, question
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.models.lightgcn import LightGCN
from robustbench_rec.shifted import Shifted


def model_of(**changes: Any) -> LightGCN:
    model = build("lightgcn", **{"dim": 5, **changes})
    assert isinstance(model, LightGCN)
    return model


def adjacency() -> Tensor:
    """D^-½ A D^-½, users before items."""
    n = DATA.n_users + DATA.n_items
    a = torch.zeros(n, n)
    for user, item in zip(DATA.train.users.tolist(), DATA.train.items.tolist(), strict=True):
        a[user, DATA.n_users + item] = a[DATA.n_users + item, user] = 1
    root = a.sum(1).clamp_min(1).rsqrt()
    return root[:, None] * a * root


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
class TestPropagation:
    def test_it_is_the_mean_of_the_powers_of_the_adjacency_in_value_and_gradient(self, layers: int) -> None:
        model, a = model_of(layers=layers), adjacency()
        weights = [model.user.weight, model.item.weight]
        x = torch.cat(weights)
        expected = sum((torch.linalg.matrix_power(a, each) @ x for each in range(layers + 1)), torch.zeros(())) / (
            layers + 1
        )
        found = torch.cat(model.encode())
        torch.testing.assert_close(found, expected)
        outer = torch.randn_like(found)
        ours, dense = (torch.autograd.grad(each, weights, outer) for each in (found, expected))
        torch.testing.assert_close(ours, dense)

    def test_scores_are_dot_products_of_what_was_propagated(self, layers: int) -> None:
        model = model_of(layers=layers)
        users, items = model.encode()
        asked = torch.tensor([3, 0, 3])
        found = Shifted(model)(question(model, asked)).scores
        torch.testing.assert_close(found, users[asked] @ items.T)
        chosen = torch.tensor([[0, 5], [1, 1], [2, 9]])
        listed = Shifted(model)(question(model, asked, chosen)).scores
        torch.testing.assert_close(listed, (users[asked] @ items.T).gather(1, chosen))

    def test_a_shift_of_a_vector_is_propagated(self, layers: int) -> None:
        model, asked = model_of(layers=layers), torch.arange(DATA.n_users)
        delta = {"item.weight": torch.randn_like(model.item.weight)}
        shifted = Shifted(model, delta)(question(model, asked)).scores
        torch.testing.assert_close(shifted, Shifted(moved(model, delta))(question(model, asked)).scores)


def test_a_shift_of_a_site_goes_through_the_layers_above_it() -> None:
    model, a = model_of(layers=2), adjacency()
    shift = torch.randn(DATA.n_users + DATA.n_items, 5)
    at, start = Shifted(model, {"sites.0.shift": shift}), torch.cat(model.encode())
    torch.testing.assert_close(torch.cat(at.encoded), start + (shift + a @ shift) / 3)


def test_the_penalty_is_on_the_vectors_before_propagation() -> None:
    model = model_of(l2=0.5)
    batch = batch_for(model)
    assert batch.items is not None
    squared = model.user.weight[batch.users].square().sum() + model.item.weight[batch.items].square().sum()
    torch.testing.assert_close(penalty(model, batch), 0.5 * 0.5 * squared / len(batch))
    assert penalty(model_of(l2=0), batch) == 0


def test_only_the_vectors_are_stored() -> None:
    assert set(model_of().state_dict()) == {"user.weight", "item.weight"}


@pytest.mark.parametrize("changes", [{"dim": 0}, {"layers": -1}], ids=str)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=f"{next(iter(changes))}={next(iter(changes.values()))}"):
        model_of(**changes)
