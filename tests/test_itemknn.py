"""ItemKNN against scikit-learn's cosine similarity."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import build, make_data, question
from sklearn.metrics.pairwise import cosine_similarity

from robustbench_rec.errors import RrecError
from robustbench_rec.models import _item_based
from robustbench_rec.models.itemknn import ItemKNN
from robustbench_rec.shifted import Shifted

WORLD = make_data(n_users=60, n_items=25, train=8)


def model_of(**changes: Any) -> ItemKNN:
    model = build("itemknn", WORLD, **{"k": 4, **changes})
    assert isinstance(model, ItemKNN)
    return model


def clicks() -> np.ndarray:
    x = np.zeros((WORLD.n_users, WORLD.n_items))
    x[WORLD.train.users.numpy(), WORLD.train.items.numpy()] = 1
    return x


def similar(shrink: float) -> np.ndarray:
    x = clicks()
    norm = np.linalg.norm(x, axis=0)
    found = cosine_similarity(x.T) * np.outer(norm, norm) / (np.outer(norm, norm) + shrink)
    np.fill_diagonal(found, -1)
    return found


@pytest.mark.parametrize("shrink", [0.0, 5.0])
@pytest.mark.parametrize("k", [1, 4, 24, 100])
class TestNeighbours:
    def test_they_are_the_most_similar_other_items(self, k: int, shrink: float) -> None:
        model = model_of(k=k, shrink=shrink)
        expected = -np.sort(-similar(shrink), axis=1)[:, : min(k, 24)]
        np.testing.assert_allclose(model.similarity.numpy(), expected, rtol=1e-5)
        rows = np.arange(WORLD.n_items)[:, None]
        np.testing.assert_allclose(similar(shrink)[rows, model.neighbour.numpy()], expected, rtol=1e-5)
        assert not (model.neighbour == torch.arange(WORLD.n_items)[:, None]).any()

    def test_a_score_sums_the_similarities_of_an_item_to_its_neighbours_that_the_user_has(
        self, k: int, shrink: float
    ) -> None:
        model = model_of(k=k, shrink=shrink)
        kept = np.zeros((WORLD.n_items, WORLD.n_items))
        kept[model.neighbour.numpy(), np.arange(WORLD.n_items)[:, None]] = model.similarity.numpy()
        users = torch.tensor([5, 0, 59])
        found = Shifted(model)(question(model, users, data=WORLD)).scores
        np.testing.assert_allclose(found.numpy(), clicks()[users.numpy()] @ kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("neighbour", [-1, WORLD.n_items])
def test_a_neighbour_that_is_no_item_is_refused(neighbour: int) -> None:
    model = model_of()
    model.get_buffer("neighbour")[0, 0] = neighbour
    with pytest.raises(RrecError, match="a neighbour is not among"):
        model.refresh()


def test_portions_of_items_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model_of().state_dict()
    monkeypatch.setattr(_item_based, "CELLS", 3 * (WORLD.n_users + WORLD.n_items))
    for name, each in model_of().state_dict().items():
        assert torch.equal(each, whole[name])


@pytest.mark.parametrize("changes", [{"k": 0}, {"shrink": -1.0}], ids=str)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=f"{next(iter(changes))}={next(iter(changes.values()))}"):
        model_of(**changes)
