"""Biased matrix factorisation against its formula, and what it learns of ratings."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import DATA, build, penalty
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.models.biased_mf import BiasedMF
from robustbench_rec.objective import Plain
from robustbench_rec.sampling import Labelled, sampler
from robustbench_rec.shifted import Shifted


def rated(seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 6, (len(DATA.train),), generator=generator).float()
    return replace(DATA, train=replace(DATA.train, values=values))


RATED = rated()


def model_of(data: Data = RATED, **changes: Any) -> BiasedMF:
    model = build("biased_mf", data, **({"dim": 3} | changes))
    assert isinstance(model, BiasedMF)
    with torch.no_grad():
        model.user_bias.normal_()
        model.item_bias.normal_()
    return model


def formula(model: BiasedMF, user: int, item: int) -> float:
    dot = model.user.weight[user] @ model.item.weight[item]
    return (model.mean + model.user_bias[user] + model.item_bias[item] + dot).item()


def test_scores_are_mean_biases_and_dot_product() -> None:
    model = model_of()
    found: Tensor = Shifted(model)(Batch.unlabelled(torch.tensor([4, 0]))).scores
    expected = [[formula(model, user, item) for item in range(DATA.n_items)] for user in (4, 0)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_mean_is_that_of_the_training_ratings_and_is_stored() -> None:
    model = model_of()
    assert model.mean.item() == pytest.approx(RATED.train.values.mean().item())
    assert "mean" in model.state_dict()


def test_it_is_trained_on_every_rating_by_itself() -> None:
    built = sampler(RATED, model_of(), loss="mse", batch_size=16, negatives=None)
    assert isinstance(built, Labelled)


def test_the_penalty_is_the_naive_sum_over_the_events_of_a_batch() -> None:
    model = model_of(l2=0.3)
    batch = Batch(torch.tensor([1, 1, 2]), torch.tensor([[5], [6], [5]]), torch.ones(3, 1))
    total = 0.0
    for user, item in ((1, 5), (1, 6), (2, 5)):
        total += model.user.weight[user].square().sum().item() + model.item.weight[item].square().sum().item()
        total += model.user_bias[user].item() ** 2 + model.item_bias[item].item() ** 2
    found = penalty(model, batch)
    assert isinstance(found, Tensor)
    assert found.item() == pytest.approx(0.3 * 0.5 * total / 3, rel=1e-5)
    assert penalty(model_of(l2=0.0), batch) == 0


def test_with_vectors_held_still_the_biases_reach_the_ridge_solution() -> None:
    """min Σ (r − μ − b_u − b_i)² / N + l2/2 Σ (b_u² + b_i²) / N over the events is a linear system."""
    torch.manual_seed(0)
    model, l2 = build("biased_mf", RATED, dim=1, l2=0.5).double(), 0.5
    assert isinstance(model, BiasedMF)
    for table in (model.user, model.item):
        torch.nn.init.zeros_(table.weight).requires_grad_(False)
    batch = Batch(RATED.train.users, RATED.train.items[:, None], RATED.train.values[:, None].double())
    n, m = DATA.n_users, DATA.n_items
    design = torch.zeros(len(batch), n + m, dtype=torch.float64)
    rows = torch.arange(len(batch))
    design[rows, RATED.train.users] = 1
    design[rows, n + RATED.train.items] = 1
    counts = torch.diag(design.sum(0))
    seen = design.sum(0) > 0
    residual = RATED.train.values.double() - model.mean
    expected = torch.linalg.solve((design.T @ design + l2 / 2 * counts)[seen][:, seen], (design.T @ residual)[seen])
    optimizer = torch.optim.LBFGS([model.user_bias, model.item_bias], max_iter=200, tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = Plain(loss("mse"))(Shifted(model), batch) + penalty(model, batch)
        value.backward()
        return value  # type: ignore[no-any-return]

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = torch.cat([model.user_bias, model.item_bias]).detach()[seen]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # losses are computed in single precision


@pytest.mark.parametrize("changes", [{"dim": 0}, {"spread": 0.0}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=next(iter(changes))):
        model_of(**changes)
