"""NeuMF against the layers of the paper on concatenated vectors; pieces of the catalogue against the whole."""

from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, batch_of, build, gradients, moved, question
from torch import Tensor
from torch.nn import functional as F

from robustbench_rec.ascent import Ascent
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.models import _pairs
from robustbench_rec.models.neumf import NeuMF
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Plain
from robustbench_rec.shifted import Shifted

USERS = torch.arange(DATA.n_users)
SMALL: dict[str, Any] = {"mf_dim": 5, "mlp_dim": 4, "hidden": [7, 6, 3], "dropout": 0.0}


def model_of(**changes: Any) -> NeuMF:
    model = build("neumf", **(SMALL | changes))
    assert isinstance(model, NeuMF)
    with torch.no_grad():  # far from the initial scores, which are nearly constant
        for each in (model.user_mf, model.item_mf, model.user_mlp, model.item_mlp):
            each.weight.mul_(100)
    return model.eval()


def reference(model: NeuMF, users: Tensor, items: Tensor) -> Tensor:
    """Score of pairs `[N]`, every vector looked up and concatenated."""
    x = torch.cat([model.user_mlp(users), model.item_mlp(items)], 1)
    for layer in model.hidden.layers:
        x = F.relu(layer(x))
    return model.out(torch.cat([model.user_mf(users) * model.item_mf(items), x], 1)).squeeze(1)  # type: ignore[no-any-return]


def everything(model: NeuMF) -> Tensor:
    users, items = USERS.repeat_interleave(DATA.n_items), torch.arange(DATA.n_items).repeat(DATA.n_users)
    return reference(model, users, items).view(DATA.n_users, DATA.n_items)


def scores(model: NeuMF, delta: dict[str, Tensor] | None = None, items: Tensor | None = None) -> Tensor:
    return Shifted(model, delta or {})(question(model, USERS, items)).scores


@pytest.fixture(params=[0, 4, DATA.n_items], ids=["all again", "some again", "none again"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for two candidates of all users at once, and for some of what the backward needs."""
    column = DATA.n_users * sum(SMALL["hidden"])
    monkeypatch.setattr(_pairs, "PIECE", 2 * column)
    monkeypatch.setattr(_pairs, "GRADED", 2 * column)
    monkeypatch.setattr(_pairs, "KEPT", request.param * column)


@pytest.mark.parametrize("training", [True, False])
def test_scores_are_those_of_the_layers_on_concatenated_vectors(training: bool) -> None:
    model = model_of().train(training)
    torch.testing.assert_close(scores(model), everything(model))
    items = torch.randint(DATA.n_items, (DATA.n_users, 3))
    torch.testing.assert_close(scores(model, items=items), everything(model).gather(1, items))


@pytest.mark.usefixtures("few")
class TestPieces:
    def test_they_give_the_scores_of_the_whole(self) -> None:
        model, items = model_of(), torch.randint(DATA.n_items, (DATA.n_users, 7))
        with torch.no_grad():
            torch.testing.assert_close(scores(model), everything(model))
            torch.testing.assert_close(scores(model, items=items), everything(model).gather(1, items))

    @pytest.mark.parametrize("listed", [True, False])
    def test_they_give_the_gradients_of_the_whole(self, listed: bool) -> None:
        model = model_of()
        items = torch.randint(DATA.n_items, (DATA.n_users, 7)) if listed else None
        outer = torch.randn(DATA.n_users, 7 if listed else DATA.n_items)
        expected = everything(model) if items is None else everything(model).gather(1, items)
        ours, theirs = (gradients(model, (each * outer).sum()) for each in (scores(model, items=items), expected))
        for name, each in theirs.items():
            torch.testing.assert_close(ours[name], each, rtol=1e-4, atol=1e-5)

    def test_what_is_computed_again_is_computed_at_the_shifted_point(self) -> None:
        model = model_of()
        delta = {
            name: (0.3 * torch.randn_like(each)).requires_grad_()
            for name, each in model.named_parameters()
            if each.ndim > 1
        }
        there = moved(model, {name: each.detach() for name, each in delta.items()})
        outer = torch.randn(DATA.n_users, DATA.n_items)
        found = torch.autograd.grad((scores(model, delta) * outer).sum(), [*delta.values()])
        expected = gradients(there, (everything(there) * outer).sum())
        for name, each in zip(delta, found, strict=True):
            torch.testing.assert_close(each, expected[name], rtol=1e-4, atol=1e-5)

    def test_dropout_is_the_same_when_it_is_computed_again(self) -> None:
        model = model_of(dropout=0.5).train().double()  # for steps so small that no ReLU turns
        weight, outer = model.hidden.layers[1].weight, torch.randn(DATA.n_users, DATA.n_items, dtype=torch.double)

        def at(step: float) -> Tensor:
            torch.manual_seed(3)
            return (scores(model, {"hidden.layers.1.weight": step * direction}) * outer).sum()

        direction = torch.randn_like(weight)
        torch.manual_seed(3)
        (gradient,) = torch.autograd.grad((scores(model) * outer).sum(), weight)
        slope = (at(1e-6) - at(-1e-6)).detach() / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


class TestSites:
    def test_each_hidden_layer_and_the_product_have_one(self) -> None:
        found = Shifted(model_of()).activations(
            ["product.shift", *(f"hidden.sites.{each}.shift" for each in range(3))], question(model_of(), USERS)
        )
        sizes = [each.shape for each in found.values()]
        assert sizes == [(DATA.n_users, DATA.n_items, each) for each in (5, 7, 6, 3)]

    def test_they_hold_what_stands_before_relu(self) -> None:
        model = model_of()
        found = Shifted(model).activations(["hidden.sites.0.shift", "hidden.sites.1.shift"], question(model, USERS))
        first, second = found.values()
        torch.testing.assert_close(second, model.hidden.layers[1](F.relu(first)))
        assert (first < 0).any()

    @pytest.mark.usefixtures("few")
    def test_a_shift_moves_the_pairs_that_it_names_and_no_other(self) -> None:
        model, before = model_of(), scores(model_of())
        for name, width in (("product", 5), ("hidden.sites.1", 6)):
            shift = torch.zeros(DATA.n_users, DATA.n_items, width)
            shift[3, 4] = 5.0
            changed = (scores(model, {f"{name}.shift": shift}) - before).abs() > 1e-4
            assert changed.nonzero().tolist() == [[3, 4]]

    def test_more_activations_than_fit_are_refused_in_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_of()
        ascent = Ascent(surface="activation", ball=Ball(eps=0.1, norm="l2", per="row", relative="own"), steps=1)
        ascent(Shifted(model), batch_of(), Plain(loss("bce")))
        monkeypatch.setattr(_pairs, "MOST", 10)
        with pytest.raises(RrecError, match="judge with protocol=sampled"):
            ascent(Shifted(model), batch_of(), Plain(loss("bce")))
        with torch.no_grad():
            assert scores(model).isfinite().all()  # nothing to shift: nothing to refuse


def test_training_does_not_touch_the_whole_catalogue() -> None:
    model = model_of().train()
    assert model.encode() is None
    batch = batch_for(model)
    assert batch.items is not None
    found = gradients(model, Plain(loss("bce"))(Shifted(model), batch))["item_mlp.weight"]
    assert set(found.abs().sum(1).nonzero().squeeze(1).tolist()) <= set(batch.items.flatten().tolist())


@pytest.mark.parametrize(
    "changes", [{"mf_dim": 0}, {"mlp_dim": 0}, {"hidden": []}, {"hidden": [8, 0]}, {"dropout": 1.0}], ids=str
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="sizes are at least 1"):
        build("neumf", **(SMALL | changes))
