"""The interaction MLP against a network that reads dense rows and columns."""

from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, configured, gradients, moved, question
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_rec import checkpoint
from robustbench_rec.errors import RrecError
from robustbench_rec.models import _pairs
from robustbench_rec.models.deepcf_mlp import DeepCFMLP
from robustbench_rec.shifted import Shifted, surface

USERS = torch.arange(DATA.n_users)
SMALL: dict[str, Any] = {"dim": 9, "hidden": [8, 6, 4]}


def model_of(**changes: Any) -> DeepCFMLP:
    model = build("deepcf_mlp", **(SMALL | changes))
    assert isinstance(model, DeepCFMLP)
    return model


def reference(model: DeepCFMLP) -> Tensor:
    """All scores `[n_users, n_items]` from dense 0/1 rows and columns."""
    clicks = torch.zeros(DATA.n_users, DATA.n_items)
    clicks[DATA.train.users, DATA.train.items] = 1
    users = F.linear(clicks, model.user.weight.T, model.user_bias)[:, None].expand(-1, DATA.n_items, -1)
    items = F.linear(clicks.T, model.item.weight.T, model.item_bias)[None].expand(DATA.n_users, -1, -1)
    x = torch.cat([users, items], 2)
    for layer in model.hidden.layers:
        x = F.relu(layer(x))
    return model.out(x).squeeze(2)  # type: ignore[no-any-return]


def scores(model: DeepCFMLP, delta: dict[str, Tensor] | None = None) -> Tensor:
    return Shifted(model, delta or {})(question(model, USERS)).scores


@pytest.mark.parametrize("pieces", [True, False])
def test_scores_and_gradients_are_those_of_dense_rows_and_columns(
    pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces:
        room = 3 * DATA.n_users * sum(SMALL["hidden"])
        monkeypatch.setattr(_pairs, "GRADED", room)
        monkeypatch.setattr(_pairs, "KEPT", room)
    model, outer = model_of(), torch.randn(DATA.n_users, DATA.n_items)
    torch.testing.assert_close(scores(model), reference(model))
    ours, dense = (gradients(model, (each(model) * outer).sum()) for each in (scores, reference))
    for name, each in dense.items():
        torch.testing.assert_close(ours[name], each, rtol=1e-4, atol=1e-5)


def test_a_training_batch_reads_the_same_scores() -> None:
    model = model_of()
    batch = batch_for(model)
    assert batch.items is not None
    assert batch.items.shape[1] == 5  # four negatives
    torch.testing.assert_close(Shifted(model)(batch).scores, reference(model)[batch.users].gather(1, batch.items))


def test_a_shift_reaches_rows_and_columns() -> None:
    model = model_of()
    delta = {name: 0.2 * torch.randn_like(model.get_parameter(name)) for name in surface(model, "weight")}
    torch.testing.assert_close(scores(model, delta), reference(moved(model, delta)))


def test_the_configured_network_has_the_nine_matrices_of_rawp() -> None:
    model = checkpoint.build(configured("model", "deepcf_mlp"), DATA)
    sizes = [tuple(model.get_parameter(each).shape) for each in surface(model, "weight")]
    halves = [(512, 1024), (256, 512), (128, 256), (64, 128), (32, 64), (16, 32), (1, 16)]
    assert sizes == [(DATA.n_items, 512), (DATA.n_users, 512), *halves]


def test_it_starts_as_linear_layers_of_torch_do() -> None:
    model = model_of(dim=64, hidden=[32, 16])
    inputs = {"user": DATA.n_items, "item": DATA.n_users}  # numbers that the maps of rows and columns read
    inputs |= {name: each.in_features for name, each in model.named_modules() if isinstance(each, nn.Linear)}
    for name, each in model.named_parameters():
        bound = inputs[name.removesuffix(".weight").removesuffix(".bias").removesuffix("_bias")] ** -0.5
        assert stats.kstest(each.detach().flatten(), "uniform", (-bound, 2 * bound)).pvalue > 1e-3, name


def test_a_training_event_is_part_of_its_own_input() -> None:
    model = model_of()
    user, item = int(DATA.train.users[0]), int(DATA.train.items[0])
    found = gradients(model, scores(model)[user, item])
    assert found["user.weight"][item].any()
    assert found["item.weight"][user].any()


def test_every_hidden_layer_has_a_site() -> None:
    found = Shifted(model_of()).activations(surface(model_of(), "activation"), question(model_of(), USERS))
    shapes = {name.removesuffix(".shift"): tuple(each.shape) for name, each in found.items()}
    pairs = {f"hidden.sites.{index}": (DATA.n_users, DATA.n_items, size) for index, size in enumerate(SMALL["hidden"])}
    assert shapes == {"user_site": (DATA.n_users, 9), "item_site": (DATA.n_items, 9), **pairs}


@pytest.mark.parametrize("changes", [{"dim": 0}, {"hidden": []}, {"hidden": [4, 0]}], ids=str)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="sizes are at least 1"):
        model_of(**changes)
