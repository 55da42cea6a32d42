"""EASE against numpy's closed form and against the problem that it solves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DATA, build, configured, interactions, make_data, question
from scipy import sparse
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attacks import attacks
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.models import _item_based
from robustbench_rec.models.ease import EASE, LARGEST
from robustbench_rec.shifted import SURFACES, Shifted

WORLD = make_data(n_users=60, n_items=25, train=8)


def model_of(data: Data = WORLD, l2: float = 7.0) -> EASE:
    model = build("ease", data, l2=l2)
    assert isinstance(model, EASE)
    return model


def matrix(data: Data) -> sparse.csr_matrix:
    pairs = (data.train.users.numpy(), data.train.items.numpy())
    found = sparse.csr_matrix((np.ones(len(data.train)), pairs), shape=(data.n_users, data.n_items))
    found.data[:] = 1  # duplicates are summed by scipy
    return found


def closed_form(x: sparse.csr_matrix, l2: float) -> np.ndarray:
    """As RecBole writes it: P = (XᵀX + λI)⁻¹, B = P / -diag(P), diagonal 0."""
    inverse = np.linalg.inv((x.T @ x).toarray() + l2 * np.identity(x.shape[1]))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def scores(model: EASE, users: Tensor, items: Tensor | None = None, data: Data = WORLD) -> Tensor:
    return Shifted(model)(question(model, users, items, data)).scores


@pytest.mark.parametrize("l2", [1e-3, 1.0, 250.0])
def test_weights_and_scores_are_the_closed_form(l2: float) -> None:
    model, x = model_of(l2=l2), matrix(WORLD)
    expected = closed_form(x, l2)
    np.testing.assert_allclose(model.weight.numpy(), expected, rtol=1e-5, atol=1e-6)
    users = torch.tensor([5, 0, 59])
    np.testing.assert_allclose(scores(model, users).numpy(), x[users.numpy()] @ expected, rtol=1e-4, atol=1e-5)


def test_weights_minimise_the_ridge_loss_under_a_zero_diagonal() -> None:
    x, l2 = torch.tensor(matrix(WORLD).toarray()), 7.0
    weight = model_of(l2=l2).weight.double().requires_grad_()
    loss = (x - x @ weight).square().sum() + l2 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    off = ~torch.eye(WORLD.n_items, dtype=torch.bool)
    torch.testing.assert_close(gradient[off], torch.zeros_like(gradient[off]), rtol=0, atol=1e-4)
    assert not weight.diagonal().any()


def test_an_event_that_happened_twice_counts_once() -> None:
    train = interactions(WORLD.train.users.repeat(2), WORLD.train.items.repeat(2))
    assert torch.equal(model_of(replace(WORLD, train=train)).weight, model_of().weight)


def test_portions_of_users_and_of_items_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = torch.tensor([5, 0, 5, 59, 7]), torch.randint(WORLD.n_items, (5, 3))
    weight, listed = model_of().weight, scores(model_of(), users, items)
    torch.testing.assert_close(listed, scores(model_of(), users).gather(1, items))
    monkeypatch.setattr(_item_based, "CELLS", 2 * WORLD.n_items + 1)  # two rows at a time, and one item
    torch.testing.assert_close(scores(model_of(), users, items), listed)
    monkeypatch.setattr(_item_based, "CELLS", 3 * (WORLD.n_users + WORLD.n_items))
    assert torch.equal(model_of().weight, weight)


def test_a_user_without_training_events_has_no_preference() -> None:
    train = interactions(WORLD.train.users[8:], WORLD.train.items[8:])  # user 0 has nothing
    data = replace(WORLD, train=train)
    assert not scores(model_of(data), torch.tensor([0]), data=data).any()


def test_the_rows_of_users_come_from_the_data_and_only_weights_are_stored() -> None:
    assert set(model_of().state_dict()) == {"weight"}


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("name", ["ease", "itemknn"])
def test_a_gradient_attack_is_refused_in_one_line(name: str, surface: str) -> None:
    attack = attacks.build(configured("attack", "pgd", surface=surface))
    with pytest.raises(RrecError, match=f"^model '{name}' has no {surface} surface to attack") as raised:
        attack.check(build(name))
    assert "\n" not in str(raised.value)


def test_a_catalogue_beyond_memory_is_refused() -> None:
    data = replace(DATA, item_ids=[""] * (LARGEST + 1))
    with pytest.raises(RrecError, match=f"{LARGEST + 1} items and {LARGEST} are the most"):
        checkpoint.build(configured("model", "ease"), data)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
def test_a_penalty_that_makes_no_sense_is_refused(l2: float) -> None:
    with pytest.raises(RrecError, match="model.l2"):
        model_of(l2=l2)


def test_a_penalty_that_is_too_small_for_items_that_are_alike_is_refused() -> None:
    train = interactions([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 0, 1, 0, 1])  # √4 is exact
    with pytest.raises(RrecError, match="model.l2=1e-300: too small to invert"):
        model_of(replace(WORLD, train=train), l2=1e-300).fit(replace(WORLD, train=train))
