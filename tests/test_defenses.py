"""APR, AWP, RAWP and adversarial training against their definitions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import (
    DATA,
    Toy,
    assert_gradients,
    batch_for,
    batch_of,
    build,
    configured,
    defended,
    delta_of,
    gradients,
    learner,
    moved,
    surfaces,
    usual,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec.adversarial import AdamProxy, Adversarial, weight_ascent
from robustbench_rec.ascent import Ascent
from robustbench_rec.batch import Batch, Output
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses.rawp import RAWP
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import lead, loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective, Plain, start_batch, start_epoch
from robustbench_rec.shifted import Shifted, surface

BPR = Plain(loss("bpr"))
LEARNERS = [name for name in models if build(name).trainable]


class TestAPR:
    @given(st.integers(0, 10_000), st.floats(0.01, 2.0))
    def test_the_perturbed_margin_is_the_closed_form(self, seed: int, eps: float) -> None:
        """x' = p·D − 2ε‖p‖ − ε‖D‖ + 2ε² D·p / (‖D‖‖p‖), D = q_i − q_j (He et al., 2018)."""
        model = build("mf", seed=seed).double()
        draw = torch.Generator().manual_seed(seed)
        user, (i, j) = (
            torch.randint(DATA.n_users, (1,), generator=draw),
            torch.randperm(DATA.n_items, generator=draw)[:2],
        )
        batch = Batch(user, torch.stack([i, j])[None], torch.tensor([[1.0, 0.0]]))

        def exact(output: Output, batch: Batch) -> Tensor:
            return torch.nn.functional.softplus(output.scores[:, 1] - output.scores[:, 0])

        objective = defended("apr", model, Plain(exact), eps=eps, relative="no")
        worse, _ = objective.attack(Shifted(model), batch, objective.inner)
        scores = worse(batch).scores[0]
        with torch.no_grad():
            p = model.get_parameter("user.weight")[user[0]]
            d = model.get_parameter("item.weight")[i] - model.get_parameter("item.weight")[j]
            expected = p @ d - 2 * eps * p.norm() - eps * d.norm() + 2 * eps**2 * (d @ p) / (d.norm() * p.norm())
        assert (scores[0] - scores[1]).item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-9)

    def test_rows_of_the_batch_move_by_exactly_eps_and_others_not_at_all(self) -> None:
        model, batch = build("mf"), batch_of(size=4)
        assert batch.items is not None
        delta = delta_of(defended("apr", model, eps=0.37, relative="no"), model, batch)
        for name, rows in (("user.weight", batch.users), ("item.weight", batch.items.flatten())):
            touched = torch.zeros(len(delta[name]), dtype=torch.bool)
            touched[rows] = True
            size = delta[name].norm(dim=1)
            torch.testing.assert_close(size[touched], torch.full_like(size[touched], 0.37))
            assert not size[~touched].any()

    def test_the_gradients_of_samples_that_share_a_row_are_summed_first(self) -> None:
        model, batch = build("mf"), batch_of()
        delta = delta_of(defended("apr", model, eps=0.5, relative="no"), model, batch)
        summed = gradients(model, usual(model)(Shifted(model), batch))
        for name, each in delta.items():
            size = summed[name].norm(dim=1, keepdim=True)
            direction = torch.where(size > 0, summed[name] / size, 0.0)
            torch.testing.assert_close(each, 0.5 * direction, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
    def test_it_is_the_clean_loss_plus_lambda_times_the_one_at_constant_delta(self, weight: float) -> None:
        model, batch = build("mf"), batch_of()
        objective = defended("apr", model, weight=weight)
        delta = delta_of(objective, model, batch)
        there = moved(model, delta)
        clean, robust = (
            gradients(model, usual(model)(Shifted(model), batch)),
            gradients(there, usual(model)(Shifted(there), batch)),
        )
        found = gradients(model, objective(Shifted(model), batch))
        assert_gradients(found, {name: clean[name] + weight * robust[name] for name in clean}, rtol=1e-5, atol=1e-8)

    def test_no_eps_doubles_the_plain_gradient(self) -> None:
        model, batch = build("mf"), batch_of()
        found = gradients(model, defended("apr", model, eps=0.0, weight=1.0)(Shifted(model), batch))
        plain = gradients(model, usual(model)(Shifted(model), batch))
        assert_gradients(found, {name: 2 * each for name, each in plain.items()})

    def test_a_negative_weight_is_refused(self) -> None:
        with pytest.raises(RrecError, match="defense.weight=-1"):
            defended("apr", build("mf"), weight=-1.0)


def perturb_backward_restore(model: RecModel, batch: Batch, gamma: float, per: str) -> tuple[Tensor, dict[str, Tensor]]:
    """AWP as it is published: move the weights themselves, take the gradient there, move them back."""
    names = surface(model, "weight")
    first = gradients(model, usual(model)(Shifted(model), batch))
    kept = {}
    with torch.no_grad():
        for name in names:
            weight: Tensor = model.get_parameter(name)
            g = first[name]
            if per == "layer":
                step = gamma * g * weight.norm() / g.norm().clamp_min(1e-30)
            elif per == "row":
                size = g.norm(dim=-1, keepdim=True)
                step = gamma * g * weight.norm(dim=-1, keepdim=True) / size.clamp_min(1e-30)
            else:
                step = gamma * g.sign() * weight.abs()
            kept[name] = weight.clone()
            weight.add_(step)
    value = usual(model)(Shifted(model), batch)
    found = gradients(model, value)
    with torch.no_grad():
        for name, before in kept.items():
            model.get_parameter(name).copy_(before)
    return value.detach(), found


class TestAWP:
    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    @pytest.mark.parametrize("per", ["layer", "row", "element"])
    def test_its_gradient_is_that_of_perturb_backward_restore(self, name: str, per: str) -> None:
        model = learner(name).double()  # so that the bound holds through any number of layers
        batch = batch_for(model)
        value, expected = perturb_backward_restore(model, batch, 0.05, per)
        objective = defended("awp", model, gamma=0.05, per=per)
        found = objective(Shifted(model), batch)
        torch.testing.assert_close(found.detach(), value, rtol=1e-6, atol=1e-6)
        assert_gradients(gradients(model, found), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    def test_every_layer_moves_by_gamma_times_its_norm_and_biases_not_at_all(self, name: str) -> None:
        model = learner(name).double()
        batch = batch_for(model)
        delta = delta_of(defended("awp", model, gamma=0.03), model, batch)
        reached = gradients(model, usual(model)(Shifted(model), batch))
        assert set(delta) == {key for key, each in model.named_parameters() if each.ndim > 1}
        for key, each in delta.items():
            own = model.get_parameter(key).norm() if reached[key].any() else torch.tensor(0.0)
            assert each.norm().item() == pytest.approx(0.03 * own.item(), rel=1e-5), key

    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    def test_no_gamma_is_plain_training_bit_for_bit(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        plain = usual(model)(Shifted(model), batch)
        found = defended("awp", model, gamma=0.0)(Shifted(model), batch)
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    def test_several_steps_stay_within_gamma_and_are_not_weaker(self) -> None:
        model = learner("toy")
        batch = batch_for(model)
        values = []
        for steps in (1, 10):
            objective = defended("awp", model, gamma=0.3, steps=steps)
            for key, each in delta_of(objective, model, batch).items():
                assert each.norm() <= 0.3 * model.get_parameter(key).norm() * (1 + 1e-9)
            values.append(objective(Shifted(model), batch).item())
        assert values[1] > values[0]

    def test_clean_weight_mixes_the_two_terms(self) -> None:
        model = learner("kgat")
        batch = batch_for(model)
        clean = gradients(model, usual(model)(Shifted(model), batch))
        robust = gradients(model, defended("awp", model, gamma=0.05)(Shifted(model), batch))
        found = gradients(model, defended("awp", model, gamma=0.05, clean_weight=0.25)(Shifted(model), batch))
        expected = {key: 0.25 * clean[key] + 0.75 * robust[key] for key in clean}
        assert_gradients(found, expected, rtol=1e-4, atol=1e-7)
        only = gradients(model, defended("awp", model, clean_weight=1.0)(Shifted(model), batch))
        assert_gradients(only, clean, rtol=0, atol=0)

    def test_a_weight_of_zeros_is_never_perturbed(self) -> None:
        model = learner("toy")
        torch.nn.init.zeros_(model.get_parameter("lift.weight"))
        assert not delta_of(defended("awp", model), model, batch_of())["lift.weight"].any()


class TestRAWP:
    def test_layers_that_are_not_chosen_do_not_move(self) -> None:
        model = learner("kgat")
        batch = batch_for(model)
        objective = defended("rawp", model, p=0.5)
        delta = delta_of(objective, model, batch)
        assert isinstance(objective.attack, Ascent)
        assert 0 < len(delta) < len(surface(model, "weight"))
        assert set(delta) == set(objective.attack.names or ())

    def masks(self, model: RecModel, epochs: int, **changes: Any) -> list[tuple[tuple[str, ...], float]]:
        objective = defended("rawp", model, **changes)
        found = []
        for epoch in range(epochs):
            start_epoch(objective, epoch, torch.Generator().manual_seed(epoch))
            assert isinstance(objective.attack, Ascent)
            found.append((objective.attack.names or (), objective.attack.ball.eps))
        return found

    def test_mask_and_gamma_are_drawn_anew_every_epoch_within_their_ranges(self) -> None:
        model = learner("kgat")
        drawn = self.masks(model, 400, gamma=0.01, p=0.3, jitter=[0.8, 1.2])
        shares = [len(names) / len(surface(model, "weight")) for names, _ in drawn]
        gammas = torch.tensor([gamma for _, gamma in drawn]) / 0.01
        assert sum(shares) / len(shares) == pytest.approx(0.3, abs=0.05)
        assert 0.8 <= gammas.min() < 0.82
        assert 1.18 < gammas.max() <= 1.2
        assert gammas.mean().item() == pytest.approx(1.0, abs=0.03)
        assert len({names for names, _ in drawn}) > 20

    def test_layers_have_coins_of_their_own(self) -> None:
        model = learner("kgat")
        names = surface(model, "weight")
        chosen = torch.tensor([[name in mask for name in names] for mask, _ in self.masks(model, 400, p=0.5)]).double()
        off_diagonal = torch.corrcoef(chosen.T) - torch.eye(len(names))
        assert off_diagonal.abs().max() < 0.25

    @pytest.mark.parametrize(("resample", "changes"), [("epoch", False), ("batch", True)])
    def test_resample_says_how_often(self, resample: str, changes: bool) -> None:
        model = learner("kgat")
        objective = defended("rawp", model, resample=resample)
        seen = set()
        for _ in range(5):
            start_batch(objective)
            objective(Shifted(model), batch_of())
            assert isinstance(objective.attack, Ascent)
            seen.add((objective.attack.names, objective.attack.ball.eps))
        assert (len(seen) > 1) == changes

    def test_the_same_epoch_draws_the_same(self) -> None:
        model = learner("kgat")
        assert self.masks(model, 5) == self.masks(model, 5)

    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    def test_every_layer_and_no_jitter_is_awp_bit_for_bit(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        awp = defended("awp", model, gamma=0.02)(Shifted(model), batch)
        rawp = defended("rawp", model, gamma=0.02, p=1.0, jitter=[1.0, 1.0])(Shifted(model), batch)
        assert torch.equal(awp, rawp)
        assert_gradients(gradients(model, rawp), gradients(model, awp), rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    @pytest.mark.parametrize("changes", [{"gamma": 0.0}, {"p": 0.0}, {"gamma": 0.0, "proxy": "adam"}], ids=str)
    def test_no_gamma_or_no_layer_is_plain_training_bit_for_bit(self, name: str, changes: dict[str, Any]) -> None:
        model = learner(name)
        batch = batch_for(model)
        plain = usual(model)(Shifted(model), batch)
        found = defended("rawp", model, **changes)(Shifted(model), batch)
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    @pytest.mark.parametrize("clean_weight", [0.0, 0.5])
    def test_a_mask_that_misses_the_scores_leaves_a_plain_step(self, clean_weight: float) -> None:
        """KGAT's relation parameters learn in their own phase; a mask may hold nothing else."""
        model = learner("kgat")
        batch = batch_for(model)
        objective, missed = defended("rawp", model, p=0.3, clean_weight=clean_weight), 0
        plain = usual(model)(Shifted(model), batch)
        for epoch in range(60):
            start_epoch(objective, epoch, torch.Generator().manual_seed(epoch))
            value = objective(Shifted(model), batch)
            assert isinstance(objective.attack, Ascent)
            if set(objective.attack.names or ()) <= {"relation.weight", "projection"}:
                torch.testing.assert_close(value, plain)
                missed += 1
        assert missed

    def test_the_model_is_the_same_bits_after_every_step(self) -> None:
        model = learner("kgat")
        before = {key: each.clone() for key, each in model.state_dict().items()}
        for epoch in range(6):
            gradients(model, defended("rawp", model, epoch=epoch, gamma=0.1)(Shifted(model), batch_of()))
        assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())

    @pytest.mark.parametrize(
        "changes",
        [
            {"p": 1.5},
            {"p": -0.1},
            {"jitter": [1.2, 0.8]},
            {"jitter": [1.0]},
            {"proxy": "rmsprop"},
            {"resample": "never"},
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match="defense"):
            defended("rawp", build("mf"), **changes)


class TestAdamProxy:
    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-8])
    def test_its_direction_is_the_step_of_torch_adam(self, scale: float) -> None:
        torch.manual_seed(1)
        weights = {"a": torch.zeros(4, 3, dtype=torch.float64), "b": torch.zeros(2, 5, dtype=torch.float64)}
        proxy = AdamProxy(weights)
        own = {name: each.clone().requires_grad_() for name, each in weights.items()}
        adam = torch.optim.Adam(own.values(), lr=1.0)
        for batch in range(12):
            grads = {name: scale * torch.randn_like(each) for name, each in weights.items()}
            grads["a"][2] *= batch < 3  # later a row without a gradient of its own, which keeps moving
            for name, each in own.items():
                each.grad = -grads[name]  # the optimiser descends, the proxy climbs
            before = {name: each.detach().clone() for name, each in own.items()}
            adam.step()
            for name, each in own.items():
                ours, step = proxy(name, grads[name]), each.detach() - before[name]
                torch.testing.assert_close(ours, step, rtol=1e-3, atol=1e-9)
                torch.testing.assert_close(ours / ours.norm(), step / step.norm(), rtol=1e-5, atol=1e-9)

    def test_its_moments_outlive_the_epoch_and_are_saved(self) -> None:
        model = learner("mf")
        objective = defended("rawp", model, proxy="adam", p=1.0)
        for seed in range(3):
            objective(Shifted(model), batch_of(seed=seed))
        stored = {key: each.clone() for key, each in objective.state_dict().items()}
        assert any(each.any() for each in stored.values())
        fresh = defended("rawp", model, proxy="adam", p=1.0)
        fresh.load_state_dict(stored)
        one, two = (delta_of(each, model, batch_of(seed=7)) for each in (objective, fresh))
        for key in one:
            assert torch.equal(one[key], two[key])

    def test_it_differs_from_the_true_gradient(self) -> None:
        model = learner("mf")
        batch = batch_for(model)
        sgd, adam = (delta_of(defended("rawp", model, p=1.0, proxy=each), model, batch) for each in ("sgd", "adam"))
        assert not torch.allclose(sgd["user.weight"], adam["user.weight"])
        torch.testing.assert_close(sgd["user.weight"].norm(), adam["user.weight"].norm(), rtol=0.3, atol=0)


class TestAdversarialTraining:
    def test_clean_weight_one_is_plain_training_bit_for_bit(self) -> None:
        model = learner("mf")
        batch = batch_for(model)
        found = gradients(model, defended("at", model, clean_weight=1.0)(Shifted(model), batch))
        assert_gradients(found, gradients(model, usual(model)(Shifted(model), batch)), rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["toy", *LEARNERS])
    @pytest.mark.parametrize("clean_weight", [0.0, 0.5])
    def test_it_mixes_the_clean_and_the_attacked_loss(self, name: str, clean_weight: float) -> None:
        model = learner(name)
        batch = batch_for(model)
        for kind in surfaces(model):
            attack = configured("attack", "pgd", surface=kind, eps=0.1, steps=3)
            objective = defended("at", model, clean_weight=clean_weight, attack=attack)
            worse, _ = objective.attack(Shifted(model), batch, usual(model))
            here, there = (usual(model)(at, batch) for at in (Shifted(model), worse))
            reference = clean_weight * here + (1 - clean_weight) * there
            expected = gradients(model, reference)
            assert_gradients(gradients(model, objective(Shifted(model), batch)), expected, rtol=1e-4, atol=1e-7)

    @pytest.mark.parametrize("name", ["at", "awp", "rawp"])
    @pytest.mark.parametrize("clean_weight", [-0.1, 1.1])
    def test_a_share_is_between_nothing_and_all(self, name: str, clean_weight: float) -> None:
        with pytest.raises(RrecError, match="between 0 and 1"):
            defended(name, build("mf"), clean_weight=clean_weight)

    def test_an_inner_attack_that_the_model_cannot_suffer_names_what_it_can(self) -> None:
        with pytest.raises(RrecError, match="no feature surface"):
            defended("at", build("mf"), attack=configured("attack", "pgd", surface="feature"))

    @pytest.mark.parametrize("attack", ["cw", "fab"])
    @pytest.mark.parametrize("clean_weight", [0.0, 0.5])
    def test_a_smallest_perturbation_brings_every_positive_level_and_is_trained_on(
        self, attack: str, clean_weight: float
    ) -> None:
        points: list[Shifted] = []

        class Watched(Plain):
            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                points.append(at)
                return super().forward(at, batch)

        model = build("mf", dim=6).eval()
        batch, inner = batch_of(negatives=3), Watched(loss("bpr"))
        assert (lead(Shifted(model)(batch), batch) < 0).any()
        config = configured("attack", attack, surface="activation", eps=None)
        objective = defended("at", model, inner, clean_weight=clean_weight, attack=config)
        found = gradients(model, objective(Shifted(model), batch))
        worse = points[-1]
        assert not lead(worse(batch), batch).any()
        reference = clean_weight * BPR(Shifted(model), batch) + (1 - clean_weight) * BPR(worse, batch)
        assert_gradients(found, gradients(model, reference), rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("attack", ["cw", "fab"])
    @pytest.mark.parametrize("name", [each for each in LEARNERS if models[each].loss != "mse"])
    def test_a_smallest_perturbation_is_found_for_every_model(self, name: str, attack: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        config = configured("attack", attack, eps=None, surface=surfaces(model)[0], steps=3)
        objective = defended("at", model, clean_weight=0.0, attack=config)
        assert objective(Shifted(model), batch) > usual(model)(Shifted(model), batch)

    @pytest.mark.parametrize("attack", ["cw", "fab"])
    def test_a_smallest_perturbation_has_no_goal_among_ratings(self, attack: str) -> None:
        model = build("mf")
        with pytest.raises(RrecError, match=f"'{attack}' needs a goal .*; loss=mse has none"):
            defended("at", model, Plain(loss("mse")), attack=configured("attack", attack))

    def test_an_inner_attack_on_each_user_by_itself_is_refused(self) -> None:
        with pytest.raises(RrecError, match="scope=user: .* use scope=all"):
            defended("at", build("mf"), attack=configured("attack", "pgd", scope="user"))

    def test_a_random_attack_is_not_the_same_draw_in_every_batch(self) -> None:
        model, batch = build("mf"), batch_of()
        objective = defended("at", model, attack=configured("attack", "noise", surface="weight"))
        one, two = (delta_of(objective, model, batch) for _ in range(2))
        assert not torch.equal(one["user.weight"], two["user.weight"])


@pytest.mark.parametrize("name", sorted(set(defenses) - {"none", "amr", "dp_sgd", "neftune", "rdrop"}))
def test_what_else_is_learnt_at_the_point_of_a_step_keeps_its_gradient(name: str) -> None:
    model, batch = build("lightgcn").train(), batch_of()
    at = Shifted(model)
    defended(name, model, epoch=9)(at, batch)
    found = gradients(model, at(batch).scores.square().sum())
    assert_gradients(found, gradients(model, Shifted(model)(batch).scores.square().sum()))


class TestNesting:
    def test_awp_around_apr_climbs_the_whole_inner_objective(self, toy: Toy) -> None:
        """Reference: the inner objective computed by two separate terms, perturbed and differentiated by hand."""

        class Separate(Objective):
            def __init__(self, inner: Objective, attack: Ascent) -> None:
                super().__init__()
                self.inner, self.attack = inner, attack

            def forward(self, at: Shifted, batch: Batch) -> Tensor:
                worse, _ = self.attack(at, batch, self.inner)
                value: Tensor = self.inner(at, batch) + self.inner(worse, batch)
                return value

        apr = Ascent(surface="embedding", ball=Ball(eps=0.3, norm="l2", per="row", relative="no"), steps=1)
        outer = weight_ascent(0.05, "layer", 1)
        nested = Adversarial(Adversarial(BPR, apr, clean=1.0, robust=1.0), outer, clean=0.0, robust=1.0)
        reference = Adversarial(Separate(BPR, apr), outer, clean=0.0, robust=1.0)
        found = gradients(toy, nested(Shifted(toy), batch_of()))
        assert_gradients(found, gradients(toy, reference(Shifted(toy), batch_of())), rtol=1e-6, atol=1e-10)

    def test_every_nested_objective_hears_that_an_epoch_begins(self, toy: Toy) -> None:
        heard: list[int] = []

        class Listening(Plain):
            def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
                heard.append(epoch)

        inner: Objective = Listening(loss("bpr"))
        around: Callable[[Objective], Objective] = lambda each: Adversarial(  # noqa: E731
            each, weight_ascent(0.01, "layer", 1), clean=0.0, robust=1.0
        )
        start_epoch(around(around(inner)), 3, torch.Generator())
        assert heard == [3]

    def test_rawp_is_what_the_registry_calls_rawp(self) -> None:
        assert defenses["rawp"] is RAWP
