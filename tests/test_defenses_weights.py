"""SAM, ASAM and random weight perturbation against their definitions; random directions as a control."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from conftest import (
    Toy,
    assert_gradients,
    batch_for,
    batch_of,
    build,
    defended,
    delta_of,
    gradients,
    learner,
    moved,
    surfaces,
    usual,
)
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses.rwp import SCALES
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import start_batch, start_epoch
from robustbench_rec.shifted import Shifted, surface

NAMES = ["toy", "mf", "kgat", "neumf", "sasrec", "lstm_text"]


def two_steps(model: RecModel, batch: Batch, rho: float, scaled: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The two steps of the usual PyTorch implementation: to the top of the neighbourhood, its gradient, and back."""
    first = gradients(model, usual(model)(Shifted(model), batch))
    weights = dict(model.named_parameters())
    scales = {name: weights[name].detach().abs() if scaled else torch.ones_like(each) for name, each in first.items()}
    norm = torch.stack([(scales[name] * each).norm() for name, each in first.items()]).norm()
    there = moved(model, {name: rho * scales[name] ** 2 * each / norm for name, each in first.items()})
    value = usual(there)(Shifted(there), batch)
    return value.detach(), gradients(there, value)


@pytest.mark.parametrize(("defense", "scaled"), [("sam", False), ("asam", True)])
class TestSharpness:
    @pytest.mark.parametrize("name", NAMES)
    def test_its_gradient_is_that_of_the_two_step_implementation(self, name: str, defense: str, scaled: bool) -> None:
        model = learner(name).double()
        batch = batch_for(model)
        value, expected = two_steps(model, batch, 0.1, scaled)
        found = defended(defense, model, rho=0.1)(Shifted(model), batch)
        torch.testing.assert_close(found.detach(), value, rtol=1e-6, atol=1e-6)
        assert_gradients(gradients(model, found), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", NAMES)
    def test_no_rho_is_plain_training_bit_for_bit(self, name: str, defense: str, scaled: bool) -> None:
        model = learner(name)
        batch = batch_for(model)
        plain, found = usual(model)(Shifted(model), batch), defended(defense, model, rho=0.0)(Shifted(model), batch)
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    def test_clean_weight_mixes_the_two_terms(self, defense: str, scaled: bool) -> None:
        model, batch = learner("toy"), batch_of()
        clean = gradients(model, usual(model)(Shifted(model), batch))
        robust = gradients(model, defended(defense, model, rho=0.3)(Shifted(model), batch))
        found = gradients(model, defended(defense, model, rho=0.3, clean_weight=0.25)(Shifted(model), batch))
        assert_gradients(found, {key: 0.25 * clean[key] + 0.75 * robust[key] for key in clean}, rtol=1e-5, atol=1e-7)
        with pytest.raises(RrecError, match="clean_weight=2"):
            defended(defense, model, clean_weight=2.0)


def test_sam_moves_all_parameters_together_by_exactly_rho() -> None:
    model = learner("toy")
    delta = delta_of(defended("sam", model, rho=0.3), model, batch_of())
    assert torch.stack([each.norm() for each in delta.values()]).norm().item() == pytest.approx(0.3)
    assert delta["first.bias"].any()  # biases too


class TwoLayers(RecModel):
    """ReLU network without biases; scaling one layer down and the next one up changes nothing."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("x", torch.randn(12, 5, dtype=torch.float64))
        self.one, self.two = (nn.Linear(*sizes, bias=False, dtype=torch.float64) for sizes in ((5, 8), (8, 20)))
        with torch.no_grad():
            self.one.weight.mul_(scale)
            self.two.weight.div_(scale)

    def forward(self, batch: Batch, encoded: None) -> Output:
        scores = self.two(torch.relu(self.one(self.get_buffer("x")[batch.users])))
        return Output(scores if batch.items is None else scores.gather(1, batch.items))


def test_asam_does_not_see_a_rescaling_that_changes_nothing_and_sam_does() -> None:
    batch = batch_of()

    def at(name: str, scale: float) -> float:
        model = TwoLayers(scale)
        value: float = defended(name, model, rho=0.3)(Shifted(model), batch).item()
        return value

    assert at("asam", 1.0) == pytest.approx(at("asam", 5.0), rel=1e-6)
    assert at("sam", 1.0) != pytest.approx(at("sam", 5.0), rel=1e-2)


@pytest.mark.parametrize("name", ["awp", "rawp", "rwp"])
@pytest.mark.parametrize("changes", [{}, {"direction": "random"}], ids=str)
def test_frozen_weights_do_not_move(name: str, changes: dict[str, str]) -> None:
    if changes and name != "awp":
        pytest.skip("awp alone has a direction")
    model, batch = learner("toy"), batch_of()
    model.get_parameter("first.weight").requires_grad_(False)
    moved = {
        key
        for _ in range(9)
        for key, each in delta_of(defended(name, model, **changes), model, batch).items()
        if each.any()
    }
    assert moved
    assert "first.weight" not in moved
    if name == "rawp":
        with pytest.raises(RrecError, match=r"its module 'first' is frozen \(adaptation\)"):
            defended(name, model, modules=["first", "last"])
    for each in model.parameters():
        each.requires_grad_(False)
    with pytest.raises(RrecError, match=r"all its weight matrices are frozen \(adaptation\)"):
        defended(name, model, **changes)


class TestRWP:
    def scale(self, variant: str, weight: Tensor) -> Tensor:
        rows = weight.square().sum(-1, keepdim=True).sqrt()
        return {
            "isotropic": torch.ones_like(weight),
            "layer": weight.square().sum().sqrt().expand_as(weight),
            "element": weight.abs(),
            "row": rows.expand_as(weight),
            "row_width": (rows / weight.shape[-1] ** 0.5).expand_as(weight),
            "fisher": (rows / weight.shape[-1] ** 0.5).expand_as(weight),  # before any gradient was seen
        }[variant]

    @pytest.mark.parametrize("variant", SCALES)
    def test_an_element_has_the_standard_deviation_of_its_variant(self, variant: str) -> None:
        model, batch = learner("toy"), batch_of()
        objective = defended("rwp", model, variant=variant, sigma=0.3)
        drawn = [delta_of(objective, model, batch) for _ in range(600)]
        assert set(drawn[0]) == set(surface(model, "weight"))
        for name in ("first.weight", "item.weight"):
            found = torch.stack([each[name] for each in drawn])
            expected = 0.3 * self.scale(variant, model.get_parameter(name).detach())
            ratio = found.std(0) / expected
            assert ratio.mean().item() == pytest.approx(1, abs=0.02)
            assert ratio.min() > 0.8
            assert ratio.max() < 1.2
            assert (found.mean(0).abs() / expected).max() < 0.25

    @pytest.mark.parametrize("variant", SCALES)
    @pytest.mark.parametrize("name", NAMES)
    def test_no_sigma_is_plain_training_bit_for_bit(self, name: str, variant: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        plain = usual(model)(Shifted(model), batch)
        found = defended("rwp", model, sigma=0.0, variant=variant, clean_weight=0.0)(Shifted(model), batch)
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    def test_it_is_the_mixture_of_the_clean_and_the_noisy_gradient(self) -> None:
        model, batch = learner("toy"), batch_of()
        there = moved(model, delta_of(defended("rwp", model), model, batch))
        clean = gradients(model, usual(model)(Shifted(model), batch))
        noisy = gradients(there, usual(there)(Shifted(there), batch))
        found = gradients(model, defended("rwp", model, clean_weight=0.25)(Shifted(model), batch))
        assert_gradients(found, {key: 0.25 * clean[key] + 0.75 * noisy[key] for key in clean}, rtol=1e-5, atol=1e-7)

    def test_sigma_grows_as_half_a_cosine(self) -> None:
        objective = defended("rwp", learner("toy"), sigma=0.4, growth=4)
        found = []
        for epoch in range(6):
            start_epoch(objective, epoch, torch.Generator())
            found.append(objective.attack.ball.eps)
        assert found == pytest.approx([0, 0.4 * 0.146447, 0.2, 0.4 * 0.853553, 0.4, 0.4], rel=1e-5)
        assert defended("rwp", learner("toy"), sigma=0.4, growth=0).attack.ball.eps == 0.4

    @pytest.mark.parametrize("name", ["stosa", "multi_intent_gaussian"])
    def test_fisher_leaves_the_penalty_of_a_model_its_output(self, name: str) -> None:
        model = learner(name)
        batch, at = batch_for(model), Shifted(model)
        objective = defended("rwp", model, variant="fisher", clean_weight=0.5)
        (objective(at, batch) + model.penalty(batch, partial(at.said, batch))).backward()
        assert any(each.grad is not None and each.grad.any() for each in model.parameters())

    def test_fisher_is_the_running_mean_of_squared_gradients_and_makes_noise_smaller_where_it_is_large(self) -> None:
        model, batch = learner("toy"), batch_of()
        changes: dict[str, Any] = {"variant": "fisher", "decay": 0.5, "clean_weight": 0.0}
        objective = defended("rwp", model, **changes)
        running = torch.zeros_like(model.get_parameter("first.weight"))
        for _ in range(3):
            start_batch(objective)
            found = gradients(model, objective(Shifted(model), batch))
            running = 0.5 * running + 0.5 * found["first.weight"].square()
        (number,) = [each for name, each in objective.index.items() if name == "first.weight"]
        torch.testing.assert_close(objective.get_buffer(f"fisher_{number}"), running)
        start_epoch(objective, 1, torch.Generator().manual_seed(3))
        plain = defended("rwp", model, sigma=objective.config.sigma, variant="row_width")
        start_epoch(plain, 1, torch.Generator().manual_seed(3))
        ours, theirs = (delta_of(each, model, batch)["first.weight"] for each in (objective, plain))
        torch.testing.assert_close(ours, theirs / (1 + running / running.mean()).sqrt())
        assert (ours.abs() < 0.8 * theirs.abs()).any()  # with the η that it comes with

    def test_two_batches_have_two_draws_and_an_epoch_can_be_repeated(self) -> None:
        model, batch = learner("toy"), batch_of()
        objective = defended("rwp", model)
        one, two = (delta_of(objective, model, batch)["first.weight"] for _ in range(2))
        again = delta_of(defended("rwp", model), model, batch)["first.weight"]
        assert not torch.equal(one, two)
        assert torch.equal(one, again)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"variant": "column"},
                "unknown defense.variant 'column' .*element, fisher, isotropic, layer, row, row_width",
            ),
            ({"sigma": -1.0}, "sigma=-1.0: a budget"),
            ({"growth": -1}, "growth=-1"),
            ({"eta": -1.0}, "eta=-1"),
            ({"decay": 1.0}, "decay=1"),
            ({"clean_weight": 1.5}, "clean_weight=1.5"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            defended("rwp", learner("toy"), **changes)


class TestConformanceOfRandomControls:
    """A control has the norms of what it controls for; it differs in the direction alone."""

    @pytest.mark.parametrize("per", ["layer", "row"])
    def test_that_of_awp_has_its_norms_in_every_unit(self, per: str) -> None:
        model, batch = learner("toy"), batch_of()
        delta = delta_of(defended("awp", model, gamma=0.03, per=per, direction="random"), model, batch)
        assert set(delta) == set(surface(model, "weight"))
        for name, each in delta.items():
            weight, dims = model.get_parameter(name).detach(), (-1,) if per == "row" else (0, 1)
            torch.testing.assert_close(each.norm(dim=dims), 0.03 * weight.norm(dim=dims))

    def test_that_of_apr_has_its_norm_in_every_row(self) -> None:
        model, batch = build("mf"), batch_of()
        delta = delta_of(defended("apr", model, eps=0.4, relative="no", direction="random"), model, batch)
        for each in delta.values():
            torch.testing.assert_close(each.norm(dim=1), torch.full((len(each),), 0.4))

    @pytest.mark.parametrize(("defense", "changes"), [("awp", {"gamma": 0.1}), ("apr", {"eps": 0.3})])
    def test_it_is_weaker_and_drawn_for_every_batch(self, defense: str, changes: dict[str, float]) -> None:
        model, batch = build("mf"), batch_of()
        random = defended(defense, model, direction="random", **changes)
        uphill = defended(defense, model, **changes)(Shifted(model), batch).item()
        values = [random(Shifted(model), batch).item() for _ in range(20)]
        assert max(values) < uphill
        assert len(set(values)) == 20

    @pytest.mark.parametrize(
        ("defense", "key"), [("awp", "gamma"), ("rawp", "gamma"), ("sam", "rho"), ("rwp", "sigma"), ("apr", "eps")]
    )
    @pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
    def test_what_is_no_budget_is_refused_by_its_own_name(self, defense: str, key: str, value: float) -> None:
        told = "a budget" if math.isfinite(value) else "not a finite number"
        with pytest.raises(RrecError, match=f"^defense.{key}={value}: {told}"):
            defended(defense, learner("toy"), **{key: value})

    @pytest.mark.parametrize("defense", ["awp", "apr"])
    def test_steps_that_it_does_not_take_are_told(self, defense: str, caplog: pytest.LogCaptureFixture) -> None:
        for direction in ("gradient", "random"):
            defended(defense, build("mf"), direction=direction, steps=3 if direction == "random" else 2)
        defended(defense, build("mf"), direction="random")
        assert caplog.messages == ["defense.steps=3 says nothing beside defense.direction=random: noise takes none"]

    @pytest.mark.parametrize("defense", ["awp", "apr", "amr"])
    def test_another_direction_is_refused(self, defense: str) -> None:
        with pytest.raises(RrecError, match=r"unknown defense.direction 'down' \(choices: gradient, random\)"):
            defended(defense, learner("toy"), direction="down")


class TestModulesOfRAWP:
    def test_only_the_named_layers_are_ever_perturbed(self) -> None:
        model = learner("kgat")
        objective = defended("rawp", model, p=0.7, modules=["node", "sum.0"])
        seen = set()
        for epoch in range(20):
            start_epoch(objective, epoch, torch.Generator().manual_seed(epoch))
            seen |= set(objective.attack.names)
        assert seen == {"node.weight", "sum.0.weight"}

    def test_an_unknown_layer_names_those_that_there_are(self) -> None:
        with pytest.raises(RrecError, match=r"model 'mf' has no module 'users' .*item, user"):
            defended("rawp", build("mf"), modules=["users"])


def test_a_model_without_parameters_has_no_weights_to_move() -> None:
    model = build("pop")
    assert "weight" not in surfaces(model)
    for name in ("sam", "asam", "rwp"):
        with pytest.raises(RrecError, match="model 'pop' has no weight surface"):
            defended(name, model)


def test_the_toy_has_a_weight_off_the_path_that_no_ascent_moves() -> None:
    model = Toy()
    for name in ("sam", "asam"):
        assert "aside.weight" not in delta_of(defended(name, model), model, batch_of())
