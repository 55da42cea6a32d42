"""Gaussians of items, users and intents against direct formulas and Monte Carlo."""

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, penalty
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from robustbench_rec.batch import Batch, History
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.models._gaussians import Gaussian, Items, WassersteinBlock, apart, deviation, nearness, seen
from robustbench_rec.models.multi_intent_gaussian import (
    FUSIONS,
    Intents,
    MultiIntentGaussian,
    divergence,
    likeness,
    mixture,
    probit,
    product,
)
from robustbench_rec.models.stosa import STOSA
from robustbench_rec.objective import Plain
from robustbench_rec.shifted import Shifted

DRAWS = 400_000


def gaussian(*shape: int) -> Gaussian:
    return Gaussian(torch.randn(*shape), torch.rand(*shape) + 0.1)


def distances(one: Gaussian, two: Gaussian) -> Tensor:
    """W₂² of all pairs, as it is written in books."""
    means = (one.mean[:, None] - two.mean[None]).square().sum(2)
    return means + (one.covariance.sqrt()[:, None] - two.covariance.sqrt()[None]).square().sum(2)


def stosa(**changes: Any) -> STOSA:
    model = build("stosa", **{"dim": 8, "window": 6, "heads": 2, **changes})
    assert isinstance(model, STOSA)
    return model


def fused(**changes: Any) -> MultiIntentGaussian:
    model = build("multi_intent_gaussian", **{"dim": 8, "window": 6, "heads": 2, **changes})
    assert isinstance(model, MultiIntentGaussian)
    return model


def history(rows: list[list[int]], steps: list[int] | None = None) -> Batch:
    width = max(map(len, rows))
    items = torch.tensor([row + [DATA.n_items] * (width - len(row)) for row in rows])
    known = History(items, torch.tensor([len(row) for row in rows]), None if steps is None else torch.tensor(steps))
    return Batch.unlabelled(torch.arange(len(rows)), history=known)


def near(points: Tensor, others: Tensor, items: Tensor | None = None) -> Tensor:
    given = nearness(points, others, Batch.unlabelled(torch.arange(len(points)), items))
    assert isinstance(given, Tensor)
    return given


def disturb(module: nn.Module) -> None:
    """Away from initial values, which hide what a part does."""
    with torch.no_grad():
        for each in module.parameters():
            each.add_(torch.randn_like(each), alpha=0.5)


def embedded(items: Items, row: list[int]) -> Gaussian:
    """The events of a history by the formulas `[1, L, D]`; the latest has the last place."""
    mean = items.mean_norm(items.mean.weight[row] + items.place_mean.weight[-len(row) :])
    raw = items.covariance_norm(items.covariance.weight[row] + items.place_covariance.weight[-len(row) :])
    return Gaussian(F.elu(mean)[None], F.elu(raw)[None] + 1)


def attended(block: WassersteinBlock, events: Gaussian) -> Gaussian:
    """A block by the formulas, row by row and head by head `[B, L, D]`."""
    n, length, dim = events.mean.shape
    step = torch.arange(length)
    back = step[:, None] - step
    sees = (back >= 0) & (back < (block.span or length))
    covariances = F.elu(block.covariance.qkv(events.covariance)) + 1
    both = zip(block.mean.qkv(events.mean).chunk(3, 2), covariances.chunk(3, 2), strict=True)
    query, key, value = (Gaussian(*each) for each in both)
    around = Gaussian(torch.zeros_like(events.mean), torch.zeros_like(events.mean))
    for row, part in itertools.product(range(n), torch.arange(dim).chunk(block.heads)):
        q, k, v = (Gaussian(each.mean[row][:, part], each.covariance[row][:, part]) for each in (query, key, value))
        logits = -distances(q, k) / math.sqrt(len(part))
        shares = logits.masked_fill(~sees, -math.inf).softmax(1)
        around.mean[row, :, part] = shares @ v.mean
        around.covariance[row, :, part] = shares.square() @ v.covariance
    found = []
    for path, own, other in zip((block.mean, block.covariance), events, around, strict=True):
        x = path.attention_norm(own + path.out(other))
        found.append(path.feed_norm(x + path.last(F.elu(path.first(x)))))
    return Gaussian(found[0], F.elu(found[1]) + 1)


def joined(parts: list[Gaussian]) -> Gaussian:
    """The last steps of some rows."""
    return Gaussian(*(torch.stack([each[0, -1] for each in field]) for field in zip(*parts, strict=True)))


def assert_same(model: nn.Module, found: Tensor, expected: Tensor) -> None:
    """In value and gradient."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    weights, outer = list(model.parameters()), torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(each, weights, outer) for each in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert all(each.any() for each in theirs)


class TestDistance:
    def test_it_is_the_formula(self) -> None:
        users, items = gaussian(5, 4), gaussian(9, 4)
        expected = -distances(users, items)
        torch.testing.assert_close(near(users.point(), items.point()), expected)
        chosen = torch.randint(9, (5, 3))
        torch.testing.assert_close(near(users.point(), items.point(), chosen), expected.gather(1, chosen))

    def test_it_is_a_metric(self) -> None:
        points = gaussian(12, 3).point().double()
        squared = torch.cdist(points, points).square()
        torch.testing.assert_close(-near(points, points).double(), squared, atol=1e-5, rtol=1e-5)
        root = (-near(points, points)).clamp_min(0).sqrt()
        torch.testing.assert_close(root, root.T, atol=1e-5, rtol=0)
        assert (root.diagonal() < 2e-3).all()
        assert (root + torch.eye(12) > 1e-2).all()
        assert (root[:, :, None] <= root[:, None, :] + root.T[None] + 1e-3).all()  # i to j over k

    def test_it_is_that_of_the_best_coupling(self) -> None:
        """In one dimension the best coupling joins equal quantiles."""
        one, two = (
            Gaussian(torch.tensor([[0.3]]), torch.tensor([[0.5]])),
            Gaussian(torch.tensor([[-1.0]]), torch.tensor([[2.0]])),
        )
        quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        values = [Normal(each.mean.double(), each.covariance.double().sqrt()).icdf(quantiles) for each in (one, two)]
        expected = (values[0] - values[1]).square().mean()
        assert -near(one.point(), two.point()).item() == pytest.approx(expected.item(), rel=1e-3)

    def test_positives_are_pushed_no_further_than_the_negatives_are_from_them(self) -> None:
        users, items, chosen = gaussian(6, 4), gaussian(9, 4), torch.randint(9, (6, 3))
        own = distances(users, items).gather(1, chosen[:, :1])
        between = distances(items, items)[chosen[:, :1], chosen[:, 1:]]
        torch.testing.assert_close(apart(users.point(), items.point(), chosen), F.relu(own - between).mean())


class TestDeviation:
    def test_it_is_the_root_of_elu_plus_one(self) -> None:
        raw = torch.linspace(-10, 50, 500, dtype=torch.float64)
        torch.testing.assert_close(deviation(raw), (F.elu(raw) + 1).sqrt())

    def test_it_is_positive_with_a_finite_slope_anywhere(self) -> None:
        raw = torch.tensor([-150.0, -80.0, -20.0, 0.0, 20.0, 1e4], requires_grad=True)
        values = deviation(raw)
        (slope,) = torch.autograd.grad(values.sum(), raw)
        assert (values > 0).all()
        assert slope.isfinite().all()
        assert (slope > 0).all()


class TestBlock:
    @pytest.mark.parametrize("span", [None, 2, 5, 100])
    def test_attention_sums_to_one_over_what_a_step_sees(self, span: int | None) -> None:
        block = WassersteinBlock(8, 2, 0.0, span)
        weights = block.attention(torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8), seen(7, span, torch.device("cpu")))
        torch.testing.assert_close(weights.sum(3), torch.ones(3, 2, 7))
        for step in range(7):
            for other in range(7):
                visible = other <= step and (span is None or step - other < span)
                assert bool((weights[:, :, step, other] > 0).all()) == visible
                assert bool(seen(7, span, torch.device("cpu"))[step, other]) == visible

    def test_attention_is_the_softmax_of_negative_distances(self) -> None:
        block = WassersteinBlock(8, 1, 0.0)
        query, key = gaussian(5, 8), gaussian(5, 8)
        expected = (-distances(query, key) / math.sqrt(8)).masked_fill(~torch.ones(5, 5).bool().tril(), -math.inf)
        sees = seen(5, None, torch.device("cpu"))
        found = block.attention(query.point()[None, None], key.point()[None, None], sees)[0, 0]
        torch.testing.assert_close(found, expected.softmax(1))

    @pytest.mark.parametrize("span", [None, 2])
    @pytest.mark.parametrize("steps", [None, [0, 2, 4, 7]])
    def test_what_a_history_reads_is_computed_alone(self, steps: list[int] | None, span: int | None) -> None:
        block = WassersteinBlock(8, 2, 0.0, span)
        for each in block.parameters():
            nn.init.normal_(each)
        events, widths, read = Gaussian(torch.randn(3, 4, 8), torch.rand(3, 4, 8)), [], []
        known = history([[1, 2, 3, 4], [5, 6], []], steps).history
        assert known is not None
        whole = block(events).read(known)
        block.mean.hidden.register_forward_hook(lambda _, __, found: widths.append(found.shape[1]))
        block.mean.qkv.register_forward_hook(lambda _, __, found: read.append(found.shape[1]))
        for found, expected in zip(block(events, known), whole, strict=True):
            torch.testing.assert_close(found, expected)
        assert widths == [1 if steps is None else 4]
        assert read == [span if steps is None and span else 4]

    def test_covariances_of_a_block_are_positive(self) -> None:
        block = WassersteinBlock(8, 2, 0.0)
        with torch.no_grad():
            for each in block.parameters():
                each.normal_(std=3)
        events = Gaussian(torch.randn(4, 6, 8) * 10, torch.rand(4, 6, 8) * 10)
        assert (block(events).covariance > 0).all()

    @pytest.mark.parametrize("span", [None, 2])
    def test_values_and_gradients_are_those_of_the_formulas(self, span: int | None) -> None:
        block, events = WassersteinBlock(8, 2, 0.0, span), gaussian(3, 5, 8)
        disturb(block)
        found, expected = (torch.cat(each, 2) for each in (block(events), attended(block, events)))
        assert_same(block, found, expected)

    def test_the_covariance_of_a_weighted_sum_is_that_of_samples(self) -> None:
        block, events = WassersteinBlock(3, 1, 0.0), gaussian(1, 4, 3)
        disturb(block)
        shares, spreads = [], []
        block.dropout.register_forward_hook(lambda _, __, found: shares.append(found[0, 0]))  # the attention [L, L]
        block.covariance.out.register_forward_pre_hook(lambda _, given: spreads.append(given[0][0]))  # [L, D]
        with torch.no_grad():
            block(events)
            mean = block.mean.qkv(events.mean)[0, :, 6:]
            root = deviation(block.covariance.qkv(events.covariance)[0, :, 6:])
            drawn = shares[0] @ (mean + root * torch.randn(DRAWS, 4, 3))
        torch.testing.assert_close(spreads[0], drawn.var(0), rtol=0.02, atol=0)


class TestSTOSA:
    def test_scores_and_gradients_are_those_of_the_formulas(self) -> None:
        model, rows, users = stosa(layers=2).eval(), [[3, 1, 4, 1], [5], [9, 2, 6]], []
        disturb(model)
        for row in rows:
            states = embedded(model.items, row)
            for block in model.blocks:
                assert isinstance(block, WassersteinBlock)
                states = attended(block, states)
            users.append(states)
        items = Gaussian(model.items.mean.weight, F.elu(model.items.covariance.weight) + 1)
        assert_same(model, Shifted(model)(history(rows)).scores, -distances(joined(users), items))

    def test_all_raw_values_and_maps_start_as_published(self) -> None:
        for name, each in stosa(dim=32, window=20).named_parameters():
            if "norm" not in name and "bias" not in name:
                assert stats.kstest(each.detach().flatten(), "norm", (0.01, 0.02)).pvalue > 1e-3, name
            elif "norm" not in name:
                assert not each.any(), name

    def test_an_early_item_changes_the_mean_of_the_last_step(self) -> None:
        """The released code loses what its layers compute of the means."""
        model = stosa().eval()
        one, two = (Shifted(model)(history([row])).hidden for row in ([1, 2, 3, 4], [7, 2, 3, 4]))
        for name in ("user_mean", "user_covariance"):
            assert (one[name] - two[name]).abs().max() > 1e-6, name

    def test_as_released_the_mean_is_that_of_the_latest_event(self) -> None:
        model = stosa(as_released=True).eval()
        one, two, three = (Shifted(model)(history([row])).hidden for row in ([1, 2, 3, 4], [7, 2, 3, 4], [1, 2, 3, 9]))
        assert torch.equal(one["user_mean"], two["user_mean"])
        assert not torch.equal(one["user_mean"], three["user_mean"])
        assert not torch.equal(one["user_covariance"], two["user_covariance"])

    def test_a_later_item_changes_no_earlier_step(self) -> None:
        model = stosa(layers=2).eval()
        one, two = (Shifted(model)(history([row], [0, 1, 2, 3])).hidden for row in ([1, 2, 3, 4], [1, 2, 9, 4]))
        for name in ("user_mean", "user_covariance"):
            assert torch.equal(one[name][:2], two[name][:2])
            assert not torch.equal(one[name][2:], two[name][2:])

    def test_covariances_of_users_are_positive_and_scores_are_distances(self) -> None:
        model = stosa().eval()
        output = Shifted(model)(history([[1, 2, 3], [4]]))
        user = Gaussian(output.hidden["user_mean"], output.hidden["user_covariance"])
        assert (user.covariance > 0).all()
        items = Gaussian(model.items.mean.weight, F.elu(model.items.covariance.weight) + 1)
        torch.testing.assert_close(output.scores, -distances(user, items))

    def test_the_penalty_is_that_of_sampled_negatives_alone(self) -> None:
        model = stosa(pvn=0.5).eval()
        batch = batch_for(model)
        assert penalty(model, batch) == 0.0
        drawn = replace(batch, items=torch.randint(DATA.n_items, (len(batch), 3)), targets=None)
        user = Shifted(model)(batch).hidden
        points = Gaussian(user["user_mean"], user["user_covariance"]).point()
        assert drawn.items is not None
        torch.testing.assert_close(penalty(model, drawn), 0.5 * apart(points, model.encode(), drawn.items))
        assert penalty(stosa(pvn=0.0), drawn) == 0.0
        assert penalty(model, replace(drawn, items=drawn.items[:, :1])) == 0.0  # an event alone has no negatives


class TestMoments:
    def test_the_moments_of_a_mixture_are_those_of_samples(self) -> None:
        parts, shares = gaussian(1, 3, 2), torch.tensor([0.2, 0.5, 0.3])
        which = torch.multinomial(shares, DRAWS, replacement=True)
        drawn = parts.mean[0, which] + parts.covariance[0, which].sqrt() * torch.randn(DRAWS, 2)
        found = mixture(parts, shares[None, :, None])
        torch.testing.assert_close(found.mean[0], drawn.mean(0), rtol=0, atol=0.01)
        torch.testing.assert_close(found.covariance[0], drawn.var(0), rtol=0.02, atol=0)

    def test_the_variance_of_a_dot_product_is_that_of_samples(self) -> None:
        user, items = gaussian(1, 4), gaussian(3, 4)
        drawn = user.mean + user.covariance.sqrt() * torch.randn(DRAWS, 1, 4)
        others = items.mean + items.covariance.sqrt() * torch.randn(DRAWS, 3, 4)
        products = (drawn * others).sum(2)  # [DRAWS, 3]
        logits = products.mean(0) / (1 + math.pi / 8 * products.var(0)).sqrt()
        torch.testing.assert_close(probit(user, items, None)[0], logits, rtol=0, atol=0.02)
        # and it is what one expects of a click
        torch.testing.assert_close(
            probit(user, items, None)[0].sigmoid(), products.sigmoid().mean(0), rtol=0, atol=0.03
        )
        chosen = torch.tensor([[2, 0]])
        torch.testing.assert_close(probit(user, items, chosen), probit(user, items, None)[:, [2, 0]])

    def test_a_product_of_experts_is_the_normalised_product_of_densities(self) -> None:
        one, two = gaussian(1, 1), gaussian(1, 1)
        grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
        density = torch.ones_like(grid)
        for each in (one, two):
            density *= Normal(each.mean.item(), each.covariance.sqrt().item()).log_prob(grid).exp()
        density /= density.sum()
        mean = (density * grid).sum()
        found = product(one, two)
        assert found.mean.item() == pytest.approx(mean.item(), abs=1e-4)
        assert found.covariance.item() == pytest.approx((density * (grid - mean).square()).sum().item(), rel=1e-3)

    def test_the_divergence_is_that_of_torch_and_never_negative(self) -> None:
        user = gaussian(50, 4)
        judge = Independent(Normal(user.mean, user.covariance.sqrt()), 1)
        standard = Independent(Normal(torch.zeros(50, 4), torch.ones(50, 4)), 1)
        torch.testing.assert_close(divergence(user, 0.0), kl_divergence(judge, standard).mean())
        assert divergence(Gaussian(torch.zeros(3, 4), torch.ones(3, 4)), 0.0) == 0
        assert 0 < divergence(user, 0.5) < divergence(user, 0.0)

    def test_likeness_is_the_mean_squared_cosine_of_different_intents(self) -> None:
        intents = torch.randn(3, 4, 5)
        pairs = [
            F.cosine_similarity(intents[:, one], intents[:, two]).square()
            for one, two in itertools.permutations(range(4), 2)
        ]
        torch.testing.assert_close(likeness(intents), torch.stack(pairs).mean())
        assert likeness(intents[:, :1]) == 0


class TestDoubt:
    @pytest.mark.parametrize("score", ["stosa", "wasserstein", "probit"])
    def test_it_is_the_deviation_of_samples(self, score: str) -> None:
        model: STOSA | MultiIntentGaussian = stosa() if score == "stosa" else fused(score=score)
        disturb(model.eval())
        batch = replace(history([[1, 2, 3]]), items=torch.tensor([[2, 0, 5]]))
        encoded: Any = model.encode()
        with torch.no_grad():
            user, items = Gaussian(*[*model(batch, encoded).hidden.values()][:2]), model.items.gaussians()
            drawn = user.mean + user.covariance.sqrt() * torch.randn(DRAWS, 1, 8)
            others = items.mean[[2, 0, 5]] + items.covariance[[2, 0, 5]].sqrt() * torch.randn(DRAWS, 3, 8)
            each = drawn * others if score == "probit" else (drawn - others).square()
            found = model.deviation(batch, encoded)
        expected = each.sum(2).std(0)
        if score == "probit":  # in units of the score, which is a dot product over this
            expected = expected / (1 + math.pi / 8 * expected.square()).sqrt()
        torch.testing.assert_close(found[0], expected, rtol=0.02, atol=0)


class TestIntents:
    def test_attention_sums_to_one_and_reads_nothing_that_is_to_come(self) -> None:
        intents, batch = Intents(8, 3), history([[1, 2, 3, 4, 5], [1, 2]], [0, 1, 2, 3, 4, 5, 6])
        assert batch.history is not None
        states = gaussian(2, 5, 8)
        every = intents.attention(states, batch.history)  # [B, K, T, L]
        torch.testing.assert_close(every.sum(3), torch.ones(2, 3, 5))
        assert not every.triu(1).any()
        last = intents.attention(states, replace(batch.history, steps=None))
        torch.testing.assert_close(last[0, :, 0], every[0, :, 4])
        torch.testing.assert_close(last[1, :, 0], every[1, :, 1])

    def test_uncertain_events_weigh_less(self) -> None:
        intents, batch = Intents(8, 3), history([[1, 2, 3]])
        assert batch.history is not None
        states = gaussian(1, 3, 8)
        doubted = Gaussian(states.mean, states.covariance * torch.tensor([1.0, 9.0, 1.0])[:, None])
        before, after = (intents.attention(each, batch.history)[0, :, 0] for each in (states, doubted))
        assert (after[:, 1] < before[:, 1]).all()
        assert (after[:, [0, 2]] > before[:, [0, 2]]).all()

    def test_events_that_disagree_make_an_intent_uncertain(self) -> None:
        intents, batch = Intents(8, 3), history([[1, 2, 3]])
        assert batch.history is not None
        alike = Gaussian(torch.ones(1, 3, 8), torch.ones(1, 3, 8))
        apart = Gaussian(torch.tensor([-3.0, 1.0, 5.0])[:, None] * torch.ones(1, 3, 8), torch.ones(1, 3, 8))
        one, two = (intents(each, batch.history).covariance for each in (alike, apart))
        assert (one < two).all()


class TestMultiIntentGaussian:
    @pytest.mark.parametrize("score", ["wasserstein", "probit"])
    def test_scores_and_gradients_are_those_of_the_formulas(self, score: str) -> None:
        model, rows, users = fused(layers=2, recent=2, score=score).eval(), [[3, 1, 4, 1], [5], [9, 2, 6]], []
        disturb(model)
        own = model.intents
        for row in rows:
            states = events = embedded(model.items, row)
            for block in model.blocks:
                assert isinstance(block, WassersteinBlock)
                states = attended(block, states)
            (mean, covariance), recent = (each[0] for each in states), joined([attended(model.recent, events)])
            doubt = F.softplus(own.caution) / 2 * covariance.log().mean(1, keepdim=True)
            shares = (own.last(torch.tanh(own.first(mean))) - doubt).softmax(0).T  # [K, L]
            centre = shares @ mean
            away = (shares[..., None] * (mean - centre[:, None]).square()).sum(1)
            intents = Gaussian(centre, shares.square() @ covariance + away)
            short = torch.cat([recent.mean, recent.covariance.log()], 1)  # [1, 2D]
            told = torch.cat([intents.mean, intents.covariance.log(), short.expand(len(centre), -1)], 1)
            votes = own.vote(torch.tanh(own.ask(told))).softmax(0)  # [K, 1]
            centre = votes.T @ intents.mean
            long = Gaussian(centre, votes.T @ (intents.covariance + (intents.mean - centre).square()))
            gate = model.gate(torch.cat([long.mean, long.covariance.log(), short], 1)).sigmoid()
            mean = gate * long.mean + (1 - gate) * recent.mean
            covariance = gate.square() * long.covariance + (1 - gate).square() * recent.covariance
            users.append(Gaussian(mean[None], covariance[None]))
        user, items = joined(users), Gaussian(model.items.mean.weight, F.elu(model.items.covariance.weight) + 1)
        expected = -distances(user, items)
        if score == "probit":
            one, other = (Gaussian(each.mean.square(), each.covariance) for each in (user, items))
            variance = one.mean @ other.covariance.T + one.covariance @ (other.mean + other.covariance).T
            expected = user.mean @ items.mean.T / (1 + math.pi / 8 * variance).sqrt()
        assert_same(model, Shifted(model)(history(rows)).scores, expected)

    def test_a_gate_without_weights_starts_at_a_half(self) -> None:
        model, long, short = fused(), gaussian(5, 8), gaussian(5, 8)
        nn.init.zeros_(model.gate.weight)
        found = model._fused(long, short)
        torch.testing.assert_close(found.mean, (long.mean + short.mean) / 2)
        torch.testing.assert_close(found.covariance, (long.covariance + short.covariance) / 4)

    @pytest.mark.parametrize("score", ["wasserstein", "probit"])
    @pytest.mark.parametrize("fusion", FUSIONS)
    def test_every_variant_scores_and_trains_all_it_has(self, fusion: str, score: str) -> None:
        model = fused(fusion=fusion, score=score)
        batch = batch_for(model)
        output = Shifted(model)(batch)
        (F.cross_entropy(output.scores, batch.targets) + penalty(model, batch)).backward()
        assert (output.hidden["covariance"] > 0).all()
        assert all(each.grad is not None and each.grad.any() for each in model.parameters())
        assert ("intents" in output.hidden) == (fusion != "short")

    def test_the_fusions_are_their_formulas(self) -> None:
        long, short = gaussian(5, 8), gaussian(5, 8)
        found = {fusion: fused(fusion=fusion)._fused(long, short) for fusion in FUSIONS if fusion != "short"}
        assert found["long"] is long
        torch.testing.assert_close(found["sum"].mean, long.mean + short.mean)
        precision = 1 / long.covariance + 1 / short.covariance
        torch.testing.assert_close(found["poe"].covariance, 1 / precision)
        expected = (long.mean / long.covariance + short.mean / short.covariance) / precision
        torch.testing.assert_close(found["poe"].mean, expected)
        between = (found["gate"].mean - short.mean) / (long.mean - short.mean)
        assert ((between > 0) & (between < 1)).all()
        expected = between.square() * long.covariance + (1 - between).square() * short.covariance
        torch.testing.assert_close(found["gate"].covariance, expected, rtol=1e-3, atol=1e-4)

    def test_the_short_term_is_the_latest_events_alone(self) -> None:
        model = fused(fusion="short", recent=2).eval()
        one, two, three = (Shifted(model)(history([row])).scores for row in ([1, 2, 3, 4], [9, 9, 3, 4], [1, 2, 9, 4]))
        torch.testing.assert_close(one, two)
        assert not torch.equal(one, three)

    def test_scores_are_distances_of_the_gaussian_that_it_tells(self) -> None:
        model = fused().eval()
        output = Shifted(model)(history([[1, 2, 3], [4]]))
        user = Gaussian(output.hidden["mean"], output.hidden["covariance"])
        torch.testing.assert_close(output.scores, -distances(user, model.items.gaussians()))
        assert output.hidden["intents"].shape == output.hidden["intent_covariances"].shape == (2, 4, 8)

    def test_the_penalty_is_the_sum_of_its_parts(self) -> None:
        off = {"kl": 0.0, "diversity": 0.0, "pvn": 0.0}
        batch = batch_for(fused())
        drawn = replace(batch, items=torch.randint(DATA.n_items, (len(batch), 3)), targets=None)
        parts = [penalty(fused(**{**off, each: 0.3}).eval(), drawn) for each in off]
        assert penalty(fused(**off), drawn) == 0.0
        torch.testing.assert_close(sum(parts), penalty(fused(**dict.fromkeys(off, 0.3)).eval(), drawn))
        assert all(bool(each > 0) for each in parts)
        assert penalty(fused(**{**off, "pvn": 0.3}), batch) == 0.0  # the whole catalogue has no sampled negatives

    def test_a_training_step_reads_the_histories_once(self) -> None:
        model, reads = fused().train(), []
        model.items.register_forward_hook(lambda *_: reads.append(1))
        at, batch = Shifted(model), batch_for(model)
        (Plain(loss("softmax"))(at, batch) + model.penalty(batch, partial(at.said, batch))).backward()
        assert len(reads) == 1

    @pytest.mark.parametrize(
        ("key", "choices"), [("fusion", "gate, long, poe, short, sum"), ("score", "probit, wasserstein")]
    )
    def test_an_unknown_choice_names_the_choices(self, key: str, choices: str) -> None:
        with pytest.raises(RrecError, match=f"unknown {key} of multi_intent_gaussian 'best'.*{choices}"):
            fused(**{key: "best"})
