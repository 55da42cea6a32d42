"""Perturbed embeddings and activations as a model reads them: SMART, FreeLB, RAT; and the squared hinge."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import (
    DATA,
    assert_gradients,
    batch_for,
    batch_of,
    build,
    buildable,
    defended,
    delta_of,
    gradients,
    learner,
    moved,
    usual,
)
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, kl_divergence

from robustbench_rec.ascent import climb
from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.defenses.rat import Previous
from robustbench_rec.errors import RrecError
from robustbench_rec.hardware import autocast
from robustbench_rec.losses import bce, bpr, divergence, margin, mse, softmax, squared_hinge
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, start_batch, start_epoch
from robustbench_rec.shifted import SURFACES, Shifted, inputs

TITLES = ["sea", "old sea house", None, "red night song", "winter", "song sea"]
MIXED: Data = replace(
    DATA, item_table=pd.DataFrame({"title": [TITLES[each % len(TITLES)] for each in range(DATA.n_items)]})
)
RAGGED = replace(DATA, train=DATA.train.where((DATA.train.users % 3 > 0) | (torch.arange(len(DATA.train)) % 5 < 4)))
READERS = ["mf", "sasrec", "gru4rec", "comirec", "lstm_text", "deepfm", "kgat", "stosa"]
TOKENS = ["sasrec", "gru4rec", "comirec", "lstm_text"]


def reader(name: str) -> RecModel:
    """Without dropout, so that passes can be compared, and with texts of several lengths."""
    return build(name, MIXED if name == "lstm_text" else DATA).eval()


def case(name: str) -> tuple[RecModel, Batch]:
    model = reader(name)
    return model, batch_for(model, MIXED if name == "lstm_text" else RAGGED, size=40)


def _seeded(objective: Objective, model: RecModel, batch: Batch) -> Tensor:
    torch.manual_seed(3)
    value: Tensor = objective(Shifted(model), batch)
    return value


def real(model: RecModel, batch: Batch) -> Tensor:
    """Which places hold a token or an event, `[…, L]`."""
    if batch.history is not None:
        return batch.history.real
    lengths = model.get_buffer("lengths")  # of all items, which are read in evaluation
    return torch.arange(int(lengths.max())) < lengths[:, None]


class TestDivergence:
    ONE, TWO = (3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    BATCH = Batch(torch.arange(5), None, torch.zeros(5, 4))

    def of(self, loss: Any, batch: Batch | None = None) -> Tensor:
        return divergence(Output(self.ONE), Output(self.TWO), batch or self.BATCH, loss)

    def test_of_a_loss_of_single_candidates_it_is_the_symmetric_kl_of_bernoullis(self) -> None:
        one, two = Bernoulli(logits=self.ONE), Bernoulli(logits=self.TWO)
        expected = (kl_divergence(one, two) + kl_divergence(two, one)).mean(1)
        torch.testing.assert_close(self.of(bce), expected)
        torch.testing.assert_close(self.of(squared_hinge), expected)

    def test_of_a_loss_of_lists_it_is_that_of_softmaxes(self) -> None:
        one, two = Categorical(logits=self.ONE), Categorical(logits=self.TWO)
        expected = kl_divergence(one, two) + kl_divergence(two, one)
        torch.testing.assert_close(self.of(softmax), expected)
        torch.testing.assert_close(self.of(bpr), expected)

    def test_of_ratings_it_is_the_squared_difference(self) -> None:
        torch.testing.assert_close(self.of(mse), (self.ONE - self.TWO).square().mean(1))

    @pytest.mark.parametrize("loss", [bce, softmax, mse])
    def test_candidates_that_do_not_count_are_left_out(self, loss: Any) -> None:
        mask = torch.ones(5, 4, dtype=torch.bool)
        mask[:, 3] = False
        masked = self.of(loss, replace(self.BATCH, mask=mask))
        short = divergence(Output(self.ONE[:, :3]), Output(self.TWO[:, :3]), self.BATCH, loss)
        torch.testing.assert_close(masked, short)


class TestConformanceOfSMART:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("name", READERS)
    def test_no_noise_gives_no_loss(self, name: str, training: bool) -> None:
        """With dropout too: both outputs have the same masks."""
        model, batch = case(name)
        model.train(training)
        found, plain = (
            _seeded(objective, model, batch) for objective in (defended("smart", model, eps=0.0), usual(model))
        )
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("name", READERS)
    def test_the_inner_gradient_is_zero_at_the_point_itself_and_not_at_a_random_start(self, name: str) -> None:
        model, batch = case(name)
        objective, at = defended("smart", model), Shifted(model)
        with torch.no_grad():
            clean = at(batch)

        def apart(at: Shifted, batch: Batch) -> Tensor:
            return divergence(at(batch), clean, batch, objective.loss).sum()

        base = objective.noise.base(at, batch)
        _, flat = climb(at, batch, apart, {key: torch.zeros_like(each) for key, each in base.items()})
        assert not any(each is not None and each.abs().max() > 1e-6 for each in flat.values())
        steep = objective.perturbation(at, batch, clean, Masks(at, batch))
        assert all(each.isfinite().all() for each in steep.values())
        assert max(each.abs().max() for each in steep.values()) > 0

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    @pytest.mark.parametrize("name", READERS)
    def test_the_noise_is_in_the_ball_of_each_row_and_parts_the_scores_more_than_chance(
        self, name: str, norm: str
    ) -> None:
        model, batch = case(name)
        objective, at = defended("smart", model, eps=0.1, norm=norm), Shifted(model)
        with torch.no_grad():
            clean = at(batch)
        delta = objective.perturbation(at, batch, clean, Masks(at, batch))
        base, ball = objective.noise.base(at, batch), objective.noise.ball
        draw = torch.Generator().manual_seed(1)
        random = {key: ball.radius(each) * ball.surface(each, draw) for key, each in base.items()}
        for key, each in base.items():
            assert (ball.size(delta[key]) <= ball.radius(each) * (1 + 1e-5)).all()
        with torch.no_grad():
            values = [
                divergence(Shifted(model, each)(batch), clean, batch, objective.loss).sum() for each in (delta, random)
            ]
        assert values[0] > 0
        if norm == "l2":  # a corner of the box is longer than the step of SMART
            assert values[0] > values[1]

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_a_step_is_uphill_from_the_random_start(self, norm: str) -> None:
        """To first order: the divergence rises along δ₁ − δ₀, by the gradient at δ₀."""
        model, batch = case("mf")
        at = Shifted(model)
        with torch.no_grad():
            clean = at(batch)
        changes: dict[str, Any] = {"eps": 0.1, "norm": norm, "start": 0.5}
        start, end = (
            defended("smart", model, steps=steps, **changes).perturbation(at, batch, clean, Masks(at, batch))
            for steps in (0, 1)
        )

        def apart(at: Shifted, batch: Batch) -> Tensor:
            return divergence(at(batch), clean, batch, bpr).sum()

        _, slopes = climb(at, batch, apart, start)
        for name, slope in slopes.items():
            assert slope is not None
            read = slope.ne(0).any(1)
            assert not end[name][~read].any()
            rise = (slope * (end[name] - start[name])).sum(1)[read]
            assert (rise >= 0).float().mean() > 0.95  # where the projection takes back more than a step gives

    @pytest.mark.parametrize("name", TOKENS)
    @pytest.mark.parametrize("defense", ["smart", "freelb"])
    def test_noise_is_on_real_tokens_only(self, name: str, defense: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, batch = case(name)
        (site,) = inputs(model)[1]
        seen: list[Tensor] = []
        shift = Shifted.shift

        def watched(at: Shifted, delta: dict[str, Tensor]) -> Shifted:
            seen.append(delta[site].detach())
            return shift(at, delta)

        monkeypatch.setattr(Shifted, "shift", watched)
        start = {"start": 0.5} if defense == "freelb" else {}
        defended(defense, model, steps=3, **start)(Shifted(model), batch)
        places = real(model, batch)
        assert not places.all()
        trained = seen[-1] if defense == "smart" else torch.stack(seen[1:]).abs().amax(0)
        assert not trained[~places].any()
        assert (trained[places].abs().amax(-1) > 0).any()

    @pytest.mark.parametrize("defense", ["smart", "freelb"])
    @pytest.mark.skipif(not buildable("text_tower"), reason="needs the extra `text`")
    def test_tokens_of_a_pretrained_encoder_are_reached_behind_its_embeddings(self, defense: str) -> None:
        model = build("text_tower", lora={"rank": 2, "alpha": 4, "dropout": 0.0}).eval()
        kind, (name,) = inputs(model)
        assert (kind, name.rpartition(".")[0].endswith("entry")) == ("activation", True)
        found = gradients(model, defended(defense, model)(Shifted(model), batch_for(model)))
        assert any(each.any() for each in found.values())

    @pytest.mark.parametrize("defense", ["smart", "freelb"])
    @pytest.mark.skipif(not buildable("text_tower"), reason="needs the extra `text`")
    def test_where_there_are_no_tables_what_a_frozen_encoder_gave_moves(self, defense: str) -> None:
        model = build("text_tower", user="history").eval()
        assert inputs(model) == ("embedding", ["feature_text"])
        batch = batch_for(model)
        found = gradients(model, defended(defense, model)(Shifted(model), batch))
        plain = gradients(model, usual(model)(Shifted(model), batch))
        assert any(not torch.equal(found[key], plain[key]) for key in plain)

    def test_where_no_token_is_read_the_rows_of_the_tables_move(self) -> None:
        assert inputs(build("mf")) == ("embedding", ["user.weight", "item.weight"])
        assert inputs(build("lstm_text")) == ("activation", ["embedded.shift"])

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_one_step_is_the_formula_of_the_paper(self, norm: str) -> None:
        """Reference: matrix factorisation written out, δ constant, with slopes in both sides of the divergence."""
        model, batch = build("mf"), batch_of(negatives=3)
        assert batch.items is not None
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(5)  # so that δ parts the scores by more than the rounding does
        tables = {name: model.get_parameter(name) for name in ("user.weight", "item.weight")}

        def scores(delta: dict[str, Tensor]) -> Tensor:
            users, items = (tables[name] + delta[name] if delta else tables[name] for name in tables)
            return (users[batch.users][:, None] * items[batch.items]).sum(2)

        def apart(delta: dict[str, Tensor]) -> Tensor:
            one, two = Categorical(logits=scores({})), Categorical(logits=scores(delta))
            return kl_divergence(one, two) + kl_divergence(two, one)

        def size(x: Tensor) -> Tensor:
            found: Tensor = torch.linalg.vector_norm(x, 2 if norm == "l2" else float("inf"), dim=1, keepdim=True)
            return found

        draw, start = torch.Generator().manual_seed(0), {}
        radii = {name: 0.3 * size(each.detach()) for name, each in tables.items()}
        for name, each in tables.items():
            if norm == "l2":
                drawn = torch.randn(each.shape, generator=draw)
                drawn = drawn / size(drawn) * torch.rand(len(each), 1, generator=draw) ** (1 / each.shape[1])
            else:
                drawn = 2 * torch.rand(each.shape, generator=draw) - 1
            start[name] = (0.5 * radii[name] * drawn).requires_grad_()
        slopes = torch.autograd.grad(apart(start).sum(), list(start.values()))
        delta = {}
        for (name, before), slope in zip(start.items(), slopes, strict=True):
            moved = before.detach() + radii[name] * slope / size(slope).clamp_min(1e-30)
            shrunk = moved * (radii[name] / size(moved)).clamp_max(1)
            inside = shrunk if norm == "l2" else torch.maximum(torch.minimum(moved, radii[name]), -radii[name])
            delta[name] = inside * slope.ne(0).any(1, keepdim=True)
        objective = defended("smart", model, eps=0.3, norm=norm, start=0.5, steps=1, weight=2.5)
        found, expected = objective.added(Shifted(model), batch), 2.5 * apart(delta).mean()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
        assert_gradients(gradients(model, found), gradients(model, expected), rtol=1e-2, atol=1e-5)

    def test_reduced_precision_sees_the_noise(self) -> None:
        model, batch = case("sasrec")
        with autocast("bf16", torch.device("cpu")):
            plain = usual(model)(Shifted(model), batch)
            found = defended("smart", model, weight=100.0, eps=0.02)(Shifted(model), batch)
        single = usual(model)(Shifted(model), batch)
        exact = defended("smart", model, weight=100.0, eps=0.02)(Shifted(model), batch)
        assert (found - plain).item() == pytest.approx((exact - single).item(), rel=0.05)

    @pytest.mark.parametrize(
        "changes", [{"weight": -1.0}, {"steps": -1}, {"start": 2.0}, {"eps": -1.0}, {"norm": "l1"}], ids=str
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match=next(iter(changes))):
            defended("smart", build("mf"), **changes)


class TestFreeLB:
    @pytest.mark.parametrize("size", [0.5, 0.8])  # two steps of 0.8 radii leave the ball
    def test_it_is_the_mean_over_the_steps_of_an_ascent(self, size: float) -> None:
        """Reference: the loop of the paper with really moved tables."""
        model, batch = build("mf").double(), batch_of()
        found = defended("freelb", model, eps=0.4, relative="no", steps=3, step_size=size)(Shifted(model), batch)
        names = ["user.weight", "item.weight"]
        delta = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        total = {name: torch.zeros_like(each) for name, each in delta.items()}
        values = []
        for _ in range(3):
            there = moved(model, delta)
            value = usual(there)(Shifted(there), batch)
            values.append(value.item())
            for name, gradient in gradients(there, value).items():
                total[name] += gradient / 3
                slope = gradient.norm(dim=1, keepdim=True)
                delta[name] = delta[name] + size * 0.4 * torch.where(slope > 0, gradient / slope, 0.0)
                length = delta[name].norm(dim=1, keepdim=True)
                delta[name] = delta[name] * (0.4 / length.clamp_min(1e-30)).clamp_max(1)
        assert found.item() == pytest.approx(sum(values) / 3, rel=1e-6)
        assert values == sorted(values)
        assert_gradients(gradients(model, found), total, rtol=1e-5, atol=1e-9)

    def test_all_steps_have_the_same_dropout_masks(self) -> None:
        model = build("neumf", dropout=0.5).train()
        objective = defended("freelb", model, eps=1e-7, steps=4)
        values: list[Tensor] = []
        model.hidden.register_forward_hook(lambda *args: values.append(args[2].detach()))
        objective(Shifted(model), batch_for(model))
        assert len(values) >= 4
        for each in values[1:]:
            torch.testing.assert_close(each, values[0], rtol=1e-4, atol=1e-5)

    def test_a_random_start_is_a_share_of_the_radius_and_on_rows_that_are_read(self) -> None:
        model, batch = build("mf"), batch_of(size=4)
        objective, at = defended("freelb", model, eps=0.4, relative="no", start=0.5), Shifted(model)
        base = objective.noise.base(at, batch)
        sizes = objective._start(at, batch, base, objective.noise.radii(base))["user.weight"].norm(dim=1)
        read = torch.zeros(len(sizes), dtype=torch.bool).index_fill(0, batch.users, True)
        assert not sizes[~read].any()
        assert sizes[read].max() <= 0.2 * (1 + 1e-6)
        assert sizes[read].min() > 0.1  # uniform in the volume of a ball of many dimensions
        plain = usual(model)(at, batch)
        assert defended("freelb", model, start=0.5, steps=1)(at, batch) != plain

    @pytest.mark.parametrize("name", READERS)
    @pytest.mark.parametrize("changes", [{"eps": 0.0, "steps": 2}, {"steps": 1}], ids=str)
    def test_no_noise_is_plain_training_bit_for_bit(self, name: str, changes: dict[str, Any]) -> None:
        model, batch = case(name)
        plain, found = (
            usual(model)(Shifted(model), batch),
            defended("freelb", model, start=0.0, **changes)(Shifted(model), batch),
        )
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    @pytest.mark.parametrize("changes", [{"steps": 0}, {"step_size": 0.0}, {"start": -0.1}, {"eps": -1.0}], ids=str)
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match=next(iter(changes))):
            defended("freelb", build("mf"), **changes)


class TestRAT:
    @pytest.mark.parametrize("name", ["toy", "neumf", "sasrec", "kgat"])
    def test_it_is_the_clean_loss_plus_the_one_with_moved_activations(self, name: str) -> None:
        model = learner(name)
        batch = batch_for(model)
        objective = defended("rat", model, eps=0.3, p=1.0, weight=0.5)
        delta = delta_of(objective, model, batch)
        base = objective.attack.base(Shifted(model), batch)
        for key, each in delta.items():
            size, own = each.norm(dim=-1), base[key].norm(dim=-1)
            reached = size > 0
            torch.testing.assert_close(size[reached], (0.3 * own)[reached], rtol=1e-4, atol=1e-6)
        assert any(each.any() for each in delta.values())
        expected = usual(model)(Shifted(model), batch) + 0.5 * usual(model)(Shifted(model, delta), batch)
        torch.testing.assert_close(objective(Shifted(model), batch), expected)

    def test_several_steps_reach_the_ball_and_climb_higher(self) -> None:
        model = learner("toy")
        batch = batch_for(model)
        values = []
        for steps in (1, 10):
            objective = defended("rat", model, eps=0.5, p=1.0, steps=steps, norm="linf", relative="no")
            delta = delta_of(objective, model, batch)
            assert all(each.abs().max() <= 0.5 + 1e-9 for each in delta.values())
            values.append(objective(Shifted(model), batch).item())
        assert values[1] >= values[0]

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_each_of_two_steps_is_half_a_radius_long(self, norm: str) -> None:
        model, batch, name = learner("toy"), batch_of(), "hidden.shift"
        objective = defended("rat", model, eps=0.4, p=1.0, steps=2, norm=norm, relative="no", modules=["hidden"])
        expected = torch.zeros_like(objective.attack.base(Shifted(model), batch)[name])
        for _ in range(2):
            slope = climb(Shifted(model), batch, usual(model), {name: expected})[1][name]
            assert slope is not None
            size = slope.norm(dim=-1, keepdim=True)
            expected = expected + 0.2 * (slope.sign() if norm == "linf" else torch.where(size > 0, slope / size, 0.0))
        torch.testing.assert_close(delta_of(objective, model, batch)[name], expected)

    def test_layers_are_drawn_every_epoch_each_with_its_own_coin(self) -> None:
        model = build("neumf").eval()
        objective, seen = defended("rat", model, p=0.5), []
        for epoch in range(200):
            start_epoch(objective, epoch, torch.Generator().manual_seed(epoch))
            seen.append(frozenset(objective.attack.names))
        share = sum(map(len, seen)) / len(seen) / len(objective.names)
        assert share == pytest.approx(0.5, abs=0.05)
        assert len(set(seen)) > 4
        start_epoch(objective, 3, torch.Generator().manual_seed(3))
        assert frozenset(objective.attack.names) == seen[3]

    @pytest.mark.parametrize("changes", [{"p": 0.0}, {"p": 1.0, "eps": 0.0}], ids=str)
    def test_no_layer_or_no_radius_doubles_the_plain_gradient(self, changes: dict[str, float]) -> None:
        model, batch = learner("toy"), batch_of()
        found = gradients(model, defended("rat", model, **changes)(Shifted(model), batch))
        plain = gradients(model, usual(model)(Shifted(model), batch))
        assert_gradients(found, {key: 2 * each for key, each in plain.items()})

    def test_a_stale_direction_is_the_gradient_of_the_batch_before(self) -> None:
        model, name = learner("toy"), "hidden.shift"
        objective = defended("rat", model, p=1.0, stale=True, modules=["hidden"], eps=0.2, relative="no")
        one, two = batch_of(seed=0), batch_of(seed=1)
        plain = usual(model)
        assert objective(Shifted(model), one).item() == pytest.approx(2 * plain(Shifted(model), one).item())
        base = objective.attack.base(Shifted(model), one)[name]
        _, before = climb(Shifted(model), one, plain, {name: torch.zeros_like(base)})
        assert before[name] is not None
        moved = {name: objective.attack.ball.steepest(before[name], torch.tensor(0.2))}
        expected = plain(Shifted(model), two) + plain(Shifted(model, moved), two)
        start_batch(objective)
        torch.testing.assert_close(objective(Shifted(model), two), expected)

    @pytest.mark.parametrize("name", ["sasrec", "gru4rec", "stosa"])
    def test_of_models_whose_batches_differ_in_shape_nothing_is_stale(self, name: str) -> None:
        with pytest.raises(RrecError, match="stale=true: no two batches of this model have states of one shape"):
            defended("rat", build(name), stale=True)

    def test_sites_of_the_distinct_users_of_a_batch_are_refused_in_the_second_one(self) -> None:
        model = build("deepcf_mlp")
        objective = defended("rat", model, p=1.0, stale=True, modules=["user_site"])
        start_epoch(objective, 0, torch.Generator().manual_seed(0), batches=2)
        users = torch.arange(8)
        start_batch(objective)
        labels = torch.tensor([[1.0, 0.0]] * 8)
        items = torch.stack([users, users + 8], 1)
        objective(Shifted(model), Batch(users, items, labels))
        start_batch(objective)
        with pytest.raises(
            RrecError, match="stale=true: 'user_site.shift' of this model has other rows in every batch"
        ):
            objective(Shifted(model), Batch(users % 5, items, labels))

    @pytest.mark.parametrize(("batches", "told"), [(1, True), (2, False)])
    def test_one_batch_an_epoch_leaves_nothing_to_perturb(
        self, batches: int, told: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        objective = defended("rat", learner("toy"), p=1.0, stale=True, modules=["hidden"])
        caplog.clear()
        start_epoch(objective, 0, torch.Generator().manual_seed(0), batches=batches)
        assert ("an epoch has one batch" in caplog.text) == told

    def test_it_forgets_between_epochs_and_leaves_batches_of_another_shape_alone(self) -> None:
        model = learner("toy")
        objective = defended("rat", model, p=1.0, stale=True, modules=["hidden"])
        objective(Shifted(model), batch_of())
        start_batch(objective)
        short = batch_of(size=7)
        assert objective(Shifted(model), short).item() == pytest.approx(2 * usual(model)(Shifted(model), short).item())
        start_epoch(objective, 1, torch.Generator())
        assert isinstance(objective.attack.direction, Previous)
        start_batch(objective)
        assert not objective.attack.direction.before

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"p": 1.1}, "p=1.1"),
            ({"weight": -1.0}, "weight=-1"),
            ({"steps": 0}, "steps=0"),
            ({"steps": 3, "stale": True}, "one if stale"),
            ({"modules": ["nowhere"]}, "no module 'nowhere' on the activation surface"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            defended("rat", learner("toy"), **changes)


class TestConformanceOfTheSquaredHinge:
    """y = ±1, margin y·score, mean max(0, κ − margin)²: the version of it that has the sign right."""

    LABELS = torch.tensor([[1.0, 0.0, 1.0]])

    def value(self, scores: list[float], kappa: float = 1.0) -> float:
        return squared_hinge(
            Output(torch.tensor([scores])), Batch(torch.zeros(1, dtype=torch.long), None, self.LABELS), kappa=kappa
        ).item()

    def test_it_is_the_formula(self) -> None:
        assert self.value([0.5, -2.0, -1.0], 1.5) == pytest.approx((1.0**2 + 0 + 2.5**2) / 3)

    def test_it_falls_as_a_prediction_gets_right_and_is_zero_only_then(self) -> None:
        path = [self.value([t, -t, t]) for t in torch.linspace(-3, 1, 20).tolist()]
        assert all(after < before for before, after in pairwise(path))
        assert path[-1] == 0
        # max(0, ε − d) with d the distance to the label has it the wrong way round
        wrong = [sum(max(0.0, 5 - abs(t - y)) for t, y in ((t, 1), (-t, -1), (t, 1))) for t in (-3.0, 0.0, 1.0)]
        assert wrong == sorted(wrong)

    def test_a_target_among_the_whole_catalogue_is_the_positive(self) -> None:
        scores = torch.randn(4, 6)
        targets = torch.tensor([0, 3, 5, 3])
        labels = torch.nn.functional.one_hot(targets, 6).float()
        users = torch.arange(4)
        whole = Batch(users, None, labels[:, :0], targets=targets)
        torch.testing.assert_close(
            squared_hinge(Output(scores), whole), squared_hinge(Output(scores), Batch(users, None, labels))
        )

    def test_clean_weight_one_is_plain_training_bit_for_bit(self) -> None:
        model, batch = build("mf"), batch_of()
        found = defended("at", model, clean_weight=1.0, robust_loss="squared_hinge")(Shifted(model), batch)
        plain = usual(model)(Shifted(model), batch)
        assert torch.equal(found, plain)
        assert_gradients(gradients(model, found), gradients(model, plain), rtol=0, atol=0)

    @pytest.mark.parametrize("clean_weight", [0.0, 0.3])
    def test_the_robust_term_is_the_hinge_at_the_point_that_climbs_the_loss(self, clean_weight: float) -> None:
        model, batch = build("mf"), batch_of()
        changes: dict[str, Any] = {"clean_weight": clean_weight, "robust_loss": "squared_hinge", "kappa": 0.7}
        objective = defended("at", model, **changes)
        there, _ = objective.attack(Shifted(model), batch, usual(model))
        robust = squared_hinge(there(batch), batch, kappa=0.7).mean()
        expected = clean_weight * usual(model)(Shifted(model), batch) + (1 - clean_weight) * robust
        found = objective(Shifted(model), batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert_gradients(gradients(model, found), gradients(model, expected), rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("name", READERS)
    def test_no_surface_has_ids_of_tokens_users_or_items(self, name: str) -> None:
        """Gradients in integers do not exist: vectors are perturbed, never what they are looked up with."""
        model = build(name)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for find in SURFACES.values():
            assert all(tensors[each].is_floating_point() for each in find(model))

    def test_settings_that_make_no_sense_are_refused(self) -> None:
        with pytest.raises(RrecError, match=r"unknown defense.robust_loss 'hinge'.*null, squared_hinge"):
            defended("at", build("mf"), robust_loss="hinge")
        with pytest.raises(RrecError, match="kappa=0"):
            defended("at", build("mf"), kappa=0.0)
        with pytest.raises(RrecError, match="loss=mse has no candidates"):  # a rating of 1 is no click
            defended("at", build("biased_mf"), Plain(mse), robust_loss="squared_hinge")
        with pytest.raises(RrecError, match="loss=margin"):
            defended("vat_user", build("mf"), Plain(margin))

    @pytest.mark.parametrize(
        ("name", "key"), [("apr", "steps"), ("awp", "steps"), ("rawp", "steps"), ("smart", "start")]
    )
    def test_what_would_perturb_nothing_is_refused(self, name: str, key: str) -> None:
        with pytest.raises(RrecError, match=f"{key}=0"):
            defended(name, build("mf"), **{key: 0})
