"""Certificates: against brute force, other people's libraries, and attacks that must never beat them."""

import csv
import json
import math
from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    DATA,
    RECIPE,
    Fixed,
    build,
    buildable,
    compose,
    configured,
    interactions,
    judge,
    make_data,
    question,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from robustbench_rec import composing
from robustbench_rec.attacks import attacks
from robustbench_rec.certificates import certificates
from robustbench_rec.certificates._elections import chosen, histories, neighbours
from robustbench_rec.certificates.partition import hashed
from robustbench_rec.certificates.pore import PORE, clean_share
from robustbench_rec.certified import (
    Ballot,
    Certificate,
    barriers,
    candidates,
    certifiable,
    clopper_pearson,
    guaranteed,
    outvoted,
    vectors,
    worst_lists,
)
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.evaluation.worst import attacked, members
from robustbench_rec.goals import goals
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.poisons import poisons
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.tasks import train

METRICS = ["ndcg", "recall", "precision", "hr", "mrr", "map"]
DOTS = [name for name in models if buildable(name) and models[name].inner_product]


def judging(data: Data = DATA, k: int = 5) -> Full:
    return Full(data, judge(metrics=METRICS, top_k=[k]))


def loaded(model: RecModel, data: Data = DATA) -> Loaded:
    return Loaded(model, data, {}, RECIPE, data)


def proof(name: str, **changes: Any) -> Certificate:
    return certificates.build(configured("certify", name, **changes))


def spread(name: str, data: Data = DATA, *, seed: int = 0, **changes: Any) -> RecModel:
    """A model whose vectors are far apart, so that lists are not a matter of rounding."""
    model = build(name, data, seed=seed, **changes)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 2:
                each.normal_(generator=torch.Generator().manual_seed(seed))
    model.refresh()
    return model.eval()


def pairs(judging: Full, part: str = "test") -> tuple[Tensor, Tensor]:
    """Users and items of the relevant pairs, in the order of a certificate."""
    portions = judging.portions(part)
    return (
        torch.cat([each.users[each.relevant[0]] for each in portions]),
        torch.cat([each.relevant[1] for each in portions]),
    )


def assert_no_better(attacked: Result, proven: Result, slack: float = 1e-6) -> None:
    """User by user: what an attack leaves is no less than what is proven."""
    for name, bound in proven.per_user.items():
        assert (attacked.per_user[name] >= bound - slack).all(), name


class TestLists:
    @given(st.integers(0, 10_000), st.integers(1, 8))
    def test_exact_counts_give_the_metrics_of_the_list(self, seed: int, k: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        scores = torch.randn(DATA.n_users, DATA.n_items, generator=draw)
        model, judge = Fixed(scores), judging(k=k)
        above = []
        for portion in judge.portions("test"):
            found = scores[portion.users].clone()
            own = found[portion.relevant]
            found[portion.excluded] = found[portion.relevant] = -torch.inf
            above.append((found[portion.relevant[0]] >= own[:, None]).sum(1))
        proven, real = guaranteed(judge, "test", torch.cat(above)), judge.evaluate(Shifted(model), "test")
        for name in METRICS:
            assert proven.metrics[f"{name}@{k}"] == pytest.approx(real.metrics[f"{name}@{k}"], abs=1e-6)
        assert torch.equal(proven.users, real.users)

    @given(st.integers(0, 10_000))
    def test_no_list_within_the_bounds_is_worse(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        scores = torch.randn(DATA.n_users, DATA.n_items, generator=draw)
        judge, bounds = judging(), []
        for portion in judge.portions("test"):
            found = scores[portion.users].clone()
            own = found[portion.relevant]
            found[portion.excluded] = found[portion.relevant] = -torch.inf
            exact = (found[portion.relevant[0]] >= own[:, None]).sum(1)
            bounds.append(exact + torch.randint(3, exact.shape, generator=draw))
        assert_no_better(judge.evaluate(Shifted(Fixed(scores)), "test"), guaranteed(judge, "test", torch.cat(bounds)))

    def test_relevant_items_stand_behind_one_another(self) -> None:
        hits, counts = worst_lists(torch.tensor([1, 0, 1, 1]), torch.tensor([2, 0, 0, 2]), 2, 6)
        assert hits.int().tolist() == [[1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0]]
        assert counts.tolist() == [1, 3]

    def test_metrics_of_whole_lists_cannot_be_certified(self) -> None:
        with pytest.raises(RrecError, match="ndcg"):
            certifiable(Full(DATA, judge(metrics=["auc", "coverage"])))


class TestBounds:
    @given(st.integers(1, 60), st.floats(1e-6, 0.4))
    def test_clopper_pearson_is_that_of_scipy(self, n: int, alpha: float) -> None:
        lower, upper = clopper_pearson(n, alpha)
        for count in range(0, n + 1, max(1, n // 7)):
            expected = binomtest(count, n).proportion_ci(1 - 2 * alpha, "exact")
            assert lower[count].item() == pytest.approx(expected.low, abs=1e-9)
            assert upper[count].item() == pytest.approx(expected.high, abs=1e-9)

    @given(st.integers(5, 40), st.integers(1, 5), st.integers(0, 6))
    def test_the_share_of_clean_samples_is_the_ratio_of_binomials(self, n: int, s: int, fakes: int) -> None:
        assert clean_share(n, s, fakes) == pytest.approx(comb(n, s) / comb(n + fakes, s), rel=1e-9)

    def test_the_share_of_clean_samples_of_large_data_is_finite(self) -> None:
        assert 0 < clean_share(1_000_000, 500_000, 500) < 1e-100

    @given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0, 0.4))
    def test_votes_within_a_budget_lift_no_more_items_than_allowed(self, seed: int, votes: int, room: float) -> None:
        """Any votes after the attack whose sums over c items rise by at most room · min(c, votes)."""
        draw = torch.Generator().manual_seed(seed)
        upper = torch.rand(1, 6, generator=draw, dtype=torch.float64).sort(descending=True).values
        own = torch.rand(4, generator=draw, dtype=torch.float64)
        barrier = barriers(upper, lambda total, c: total + room * c.clamp_max(votes))
        allowed = outvoted(own, torch.zeros(4, dtype=torch.long), barrier)
        for extra in product([0.0, room / 2, room], repeat=6):
            if sum(extra) <= votes * room + 1e-12:
                after = upper[0] + torch.tensor(extra, dtype=torch.float64)
                assert ((after > own[:, None] + 1e-12).sum(1) <= allowed).all()

    def test_items_that_are_not_there_cannot_rise(self) -> None:
        upper = torch.tensor([[0.5, -torch.inf, -torch.inf]], dtype=torch.float64)
        barrier = barriers(upper, lambda total, c: total + c)
        assert outvoted(torch.zeros(1).double(), torch.zeros(1, dtype=torch.long), barrier).item() == 1


@pytest.mark.parametrize("name", DOTS)
class TestVectors:
    def test_their_dot_products_are_the_scores(self, name: str) -> None:
        model = build(name).eval()
        asked = question(model, torch.arange(DATA.n_users))
        at = Shifted(model)
        found = vectors(at, asked, DATA.n_items)
        torch.testing.assert_close(found[0] @ found[1].T, at(asked).scores, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("vectors", ["all", "item", "user"])
    def test_no_budget_certifies_the_list_itself_and_more_budget_less(self, name: str, vectors: str) -> None:
        judge = judging()
        certificate = proof("radius", vectors=vectors, budgets=[0, 0.01, 0.1, 1, 1e6])
        found = certificate.certify(loaded(build(name)), judge, "test")
        values = [guaranteed(judge, "test", above).metrics for above in found.above]
        for metric, clean in found.clean.metrics.items():
            assert values[0][metric] == pytest.approx(clean, abs=1e-6)
            curve = [each[metric] for each in values]
            assert curve == sorted(curve, reverse=True)
            assert curve[-1] == 0


def radius_of(vectors: str, users: Tensor, items: Tensor, scores: Tensor, row: int, own: int) -> Tensor:
    """The closed forms, pair by pair."""
    gap = scores[row, own] - scores[row]
    if vectors == "item":
        return gap / users[row].norm()
    return gap / (items[own] - items).norm(dim=1)


class TestRadius:
    def of(self, model: RecModel, judge: Full) -> tuple[Tensor, Tensor, Tensor]:
        users, items = model.get_parameter("user.weight").double(), model.get_parameter("item.weight").double()
        scores = (users @ items.T).detach()
        for portion in judge.portions("test"):
            rows, columns = portion.excluded
            scores[portion.users[rows], columns] = -torch.inf
        return users.detach(), items.detach(), scores

    def test_a_step_of_the_radius_and_a_little_along_the_closed_form_swaps_the_items(self) -> None:
        judge = judging(make_data(test=1), k=1)
        model = spread("mf", judge.data)
        users, items, scores = self.of(model, judge)
        certificate = proof("radius", vectors="user", budgets=[0])
        for user, own in zip(*(each.tolist() for each in pairs(judge)), strict=True):
            distance = radius_of("user", users, items, scores, user, own)
            rival = distance.masked_fill((torch.arange(len(items)) == own) | (scores[user].isinf()), torch.inf).argmin()
            if scores[user, own] < scores[user, rival]:
                continue
            direction = (items[rival] - items[own]) / (items[rival] - items[own]).norm()
            for factor, falls in ((0.99, False), (1.01, True)):
                there = users[user] + factor * distance[rival] * direction
                moved = (items @ there).masked_fill(scores[user].isinf(), -torch.inf)
                assert (moved.argmax().item() != own) == falls
        assert certificate.unit == "radius"

    @pytest.mark.parametrize("vectors", ["item", "user"])
    def test_the_counts_are_those_of_the_closed_forms(self, vectors: str) -> None:
        judge, budgets = judging(), [0.0, 0.1, 0.5, 1.0]
        model = spread("mf")
        users, items, scores = self.of(model, judge)
        found = proof("radius", vectors=vectors, budgets=budgets).certify(loaded(model), judge, "test").above
        owners, columns = pairs(judge)
        relevant = {(u, i) for u, i in zip(owners.tolist(), columns.tolist(), strict=True)}
        for pair, (user, own) in enumerate(zip(owners.tolist(), columns.tolist(), strict=True)):
            distance = radius_of(vectors, users, items, scores, user, own)
            others = [i for i in range(DATA.n_items) if (user, i) not in relevant and scores[user, i].isfinite()]
            for row, budget in enumerate(budgets):
                assert found[row, pair] == sum(distance[i].item() <= budget for i in others)

    @pytest.mark.parametrize("dim", [2, 3, 16])
    def test_the_best_step_of_all_vectors_lets_as_many_items_pass_as_it_says(self, dim: int) -> None:
        judge, model = judging(), spread("mf", dim=dim)
        users, items, scores = self.of(model, judge)
        owners, columns = pairs(judge)
        rivals = scores.isfinite().index_put((owners, columns), torch.tensor(False))[owners]  # [P, n_items]

        def passed(budget: float) -> Tensor:
            """How many can be let pass: steps of the user and of the two items, each the best against the others."""
            apart = items[columns][:, None] - items  # [P, n_items, D]
            there = users[owners][:, None].expand_as(apart)
            step = budget * torch.nn.functional.normalize(torch.randn(apart.shape, dtype=torch.double), dim=2)
            for _ in range(2000):
                other = apart - 2 * budget * torch.nn.functional.normalize(there + step, dim=2)
                step = -budget * torch.nn.functional.normalize(other, dim=2)
            return ((((there + step) * other).sum(2) < 0) & rivals).sum(1)

        torch.manual_seed(0)
        budgets = [0.05, 0.2, 0.5, 0.8]
        found = proof("radius", vectors="all", budgets=budgets).certify(loaded(model), judge, "test").above
        for budget, above in zip(budgets, found, strict=True):
            assert (above >= passed(budget)).all()
            assert (above <= passed(1.001 * budget)).all()
        assert (found[-1] > found[0]).any()

    def test_items_that_differ_by_rounding_can_pass_one_another(self) -> None:
        judge, model = judging(make_data(test=1), k=3), build("mf", make_data(test=1), dim=32)
        certificate = proof("radius", vectors="user", budgets=[1e9])
        apart = certificate.certify(loaded(model, judge.data), judge, "test").above
        with torch.no_grad():
            items = model.get_parameter("item.weight")
            twins = items[:1].expand_as(items).clone()
            places = torch.arange(len(items))
            twins[places, places % 32] = torch.nextafter(
                twins[places, places % 32], torch.tensor(9.0, dtype=items.dtype)
            )
            items.copy_(twins)
        assert torch.equal(certificate.certify(loaded(model, judge.data), judge, "test").above, apart)

    @pytest.mark.parametrize("vectors", ["user", "item", "all"])
    def test_no_more_is_certified_than_the_model_has_where_rounding_makes_items_level(self, vectors: str) -> None:
        judge, model = judging(make_data(test=1), k=3), build("mf", make_data(test=1), dim=4)
        with torch.no_grad():
            items = model.get_parameter("item.weight")
            drawn = torch.randn(items.shape, generator=torch.Generator().manual_seed(0))
            items.copy_(1 + 1e-7 * drawn)
        found = proof("radius", vectors=vectors, budgets=[0, 1e-4]).certify(loaded(model, judge.data), judge, "test")
        for above in found.above:
            assert_no_better(found.clean, guaranteed(judge, "test", above))

    def test_vectors_in_one_line_are_turned_by_all_three_steps(self) -> None:
        """p = q_t − q_k = e₁: the angles asin(r) and asin(2r) make a right one where r² + 4r² = 1."""
        judge, model = judging(make_data(test=1), k=1), build("mf", make_data(test=1), dim=2)
        with torch.no_grad():
            for each in model.parameters():
                each.zero_()
            model.get_parameter("user.weight")[:, 0] = 1
            model.get_parameter("item.weight")[pairs(judge)[1][0], 0] = 1
        budgets = [5**-0.5 * (1 - 1e-6), 5**-0.5 * (1 + 1e-6)]
        found = proof("radius", vectors="all", budgets=budgets).certify(loaded(model, judge.data), judge, "test").above
        assert found[0, 0] == 0
        assert found[1, 0] > 0

    def test_an_item_vector_that_moves_by_its_radius_leaves_the_list(self) -> None:
        judge = judging(make_data(test=1), k=3)
        model = spread("mf", judge.data)
        users, items, scores = self.of(model, judge)
        owners, columns = pairs(judge)
        radii = []
        for user, own in zip(owners.tolist(), columns.tolist(), strict=True):
            others = scores[user].clone()
            others[own] = -torch.inf
            radius = (scores[user, own] - others.topk(3).values[-1]) / users[user].norm()
            radii.append(radius.item())
            if radius > 0:
                away = users[user] / users[user].norm()
                for factor, inside in ((0.99, True), (1.01, False)):
                    score = users[user] @ (items[own] - factor * radius * away)
                    assert ((others > score).sum() < 3) == inside
        positive = sorted(each for each in radii if each > 0)
        told = proof("radius", vectors="item", budgets=[0]).certify(loaded(model, judge.data), judge, "test").notes
        assert told["median_radius@3"] == pytest.approx(positive[(len(positive) - 1) // 2])

    @pytest.mark.parametrize("name", ["pgd", "fab", "cw", "apgd"])
    def test_no_attack_on_the_users_vectors_beats_it(self, name: str) -> None:
        judge, model = judging(), spread("mf")
        for eps in (0.05, 0.3, 1.0):
            found = proof("radius", vectors="user", budgets=[eps]).certify(loaded(model), judge, "test")
            ball = {"eps": eps, "norm": "l2", "per": "row", "relative": "no", "surface": "activation"}
            suite = attacks.build(configured("attack", name, **ball, modules=["dots.user"])).prepared(model, DATA)
            goal = goals.build({"name": "untargeted", "k": 5}, DATA)
            (member,) = members(judge, suite, goal)
            moved, _ = attacked(judge, Shifted(model.requires_grad_(False)), member, "test", goal, None)
            assert_no_better(judge.evaluate(moved, "test"), guaranteed(judge, "test", found.above[0]))

    @pytest.mark.parametrize("name", ["cw", "fab"])
    @pytest.mark.parametrize("k", [1, 3])
    def test_no_smallest_perturbation_is_smaller(self, name: str, k: int) -> None:
        data = make_data(n_users=60, test=1)
        judge, model = judging(data, k=k), spread("mf", data).requires_grad_(False)
        users, items, scores = self.of(model, judge)
        config = configured("attack", name, eps=None, surface="activation", modules=["dots.user"])
        attack = attacks.build(config).prepared(model, data)
        goal = goals.build({"name": "untargeted", "k": k}, data)
        (member,) = members(judge, attack, goal)
        moved, _ = attacked(judge, Shifted(model), member, "test", goal, None)
        checked = 0
        for (at, batch), portion in zip(moved, judge.portions("test"), strict=True):  # type: ignore[misc]
            size = at.delta["dots.user.shift"].norm(dim=1)
            after = at(batch).scores
            after[portion.excluded] = -torch.inf
            for row, own in zip(*(each.tolist() for each in portion.relevant), strict=True):
                user = int(portion.users[row])
                distance = radius_of("user", users, items, scores, user, own)
                distance[own] = torch.inf
                radius = distance.clamp_min(0).masked_fill(scores[user].isinf(), torch.inf).topk(k, largest=False)
                left = (after[row] >= after[row, own]).sum() > k
                if left and radius.values[-1] > 0:
                    assert size[row] >= radius.values[-1] * (1 - 1e-4)
                    checked += 1
        assert checked

    def test_no_attack_on_all_vectors_beats_it(self) -> None:
        judge, model = judging(), spread("mf")
        certificate = proof("radius", vectors="all", budgets=[0.02, 0.1, 0.3], empirical=True)
        found = certificate.certify(loaded(model), judge, "test")
        for budget, above in zip(certificate.budgets, found.above, strict=True):
            left = certificate.attack(loaded(model), judge, "test", budget)
            assert_no_better(left, guaranteed(judge, "test", above))
            assert left.metrics["ndcg@5"] <= found.clean.metrics["ndcg@5"]

    def test_the_attack_for_one_item_s_vector_is_said_to_be_missing(self) -> None:
        with pytest.raises(RrecError, match="empirical"):
            proof("radius", vectors="item").attack(loaded(build("mf")), judging(), "test", 0.1)

    @pytest.mark.parametrize("vectors", ["all", "user"])
    def test_more_users_than_certified_cannot_be_shown_a_target(self, vectors: str) -> None:
        judge, model = judging(), spread("mf")
        users, items = model.get_parameter("user.weight"), model.get_parameter("item.weight")
        target, budget = 7, 1.5
        found = proof("radius", vectors=vectors, budgets=[0, budget], items=[DATA.item_ids[target]])
        told = found.certify(loaded(model), judge, "test").notes
        clean = judge.exposure(Shifted(model), "test", torch.tensor([target]))
        assert told["t_hr@5@0"] == pytest.approx(clean.metrics["t_hr@5"])
        best = 0.0
        for seed in range(30):
            towards = items[target] - items[torch.randint(DATA.n_items, (), generator=torch.manual_seed(seed))]
            step = towards / towards.norm().clamp_min(1e-9) * budget
            moved = judge.exposure(
                Shifted(model, {"user.weight": step.detach().expand_as(users)}), "test", torch.tensor([target])
            )
            best = max(best, moved.metrics["t_hr@5"])
        assert clean.metrics["t_hr@5"] < best <= told[f"t_hr@5@{budget}"]

    def test_models_without_dot_products_are_refused(self) -> None:
        with pytest.raises(RrecError, match="dot products"):
            proof("radius").certify(loaded(build("neumf")), judging(), "test")

    def test_unknown_vectors_are_refused(self) -> None:
        with pytest.raises(RrecError, match="all, item, user"):
            proof("radius", vectors="both")


def grouped(n_users: int = 60, n_items: int = 24, seed: int = 0) -> Data:
    """Users of three tastes, so that a small sample of them knows what the others like."""
    draw = torch.Generator().manual_seed(seed)
    base = make_data(n_users=n_users, n_items=n_items)
    taste = torch.arange(n_users) % 3
    weights = torch.full((n_users, n_items), 0.15)
    weights[torch.arange(n_items) % 3 == taste[:, None]] = 3.0
    order = (weights.log() - (-torch.rand(n_users, n_items, generator=draw).log()).log()).argsort(1, descending=True)

    def part(first: int, count: int) -> Any:
        return interactions(torch.arange(n_users).repeat_interleave(count), order[:, first : first + count].reshape(-1))

    return replace(base, train=part(0, 5), valid=part(5, 1), test=part(6, 1))


def published(p: Tensor, q: Tensor, n_votes: int, k: int, n: int, s: int, fakes: int) -> int:
    """§ of PORE, an item at a time: the largest r whose r-th best reference item cannot be pushed out.

    p: lower bounds of the reference items. q: upper bounds of the others. Both branches of the published minimum.
    """
    rho = math.prod((n + i - s) / (n + i) for i in range(1, fakes + 1))
    room = s / (n + fakes) - s / n * rho
    best = 0
    own, others = sorted(p.tolist(), reverse=True), sorted(q.tolist(), reverse=True)
    for r in range(1, min(k, len(own)) + 1):
        strongest = others[: k - r + 1]
        if len(strongest) < k - r + 1:
            best = r
            continue
        for above in range(len(strongest)):  # how many of them stand above the item already
            weakest = strongest[above:]
            mean = (sum(weakest) * rho + n_votes * room) / len(weakest)
            single = min(weakest) * rho + room
            if own[r - 1] * rho > min(mean, single):
                best = r
    return best


class TestPORE:
    @given(st.integers(0, 10_000), st.integers(0, 4), st.sampled_from([1, 2, 3]))
    def test_the_certified_intersection_is_that_of_a_scalar_computation(
        self, seed: int, fakes: int, votes: int
    ) -> None:
        draw = torch.Generator().manual_seed(seed)
        n, s, k = 40, 4, 4
        certificate = proof("pore", size=s, votes=votes)
        assert isinstance(certificate, PORE)
        data = make_data(n_users=n)
        own = torch.rand(3, generator=draw).double() * s / n
        others = (torch.rand(1, 9, generator=draw).double() * s / n * 0.6).sort(descending=True).values
        lower, barrier = certificate.after(own, others[:, :k], fakes, data)
        above = outvoted(lower, torch.zeros(3, dtype=torch.long), barrier)
        hits, _ = worst_lists(torch.zeros(3, dtype=torch.long), above, 1, k)
        found, told = int(hits.sum()), published(own, others[0], votes, k, n, s, fakes)
        assert found == told if votes == 1 else found >= told  # c items get c of several votes at most

    def test_a_vote_is_for_the_nearest_item_by_summed_cosines(self) -> None:
        data = grouped()
        owned = histories(data)
        scores = neighbours(owned[:7], owned[:20])
        part = owned[:20]
        for user, item in product(range(7), range(data.n_items)):
            expected = 0.0
            for mine in owned[user].nonzero().flatten().tolist():
                both = (part[:, mine] * part[:, item]).sum()
                size = (part[:, mine].sum() * part[:, item].sum()).sqrt().clamp_min(1)
                expected += (both / size).item()
            assert scores[user, item].item() == pytest.approx(expected, abs=1e-5)

    def test_excluded_items_and_items_out_of_reach_get_no_vote(self) -> None:
        scores = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
        open_ = torch.tensor([[False, True, True], [True, True, True]])
        items, voted = chosen(scores, open_, 2)
        assert items[0, 0] == 1
        assert voted.tolist() == [[True, False], [False, False]]

    def test_every_sub_sample_votes_at_most_so_often(self) -> None:
        data = grouped()
        judge = judging(data)
        certificate = proof("pore", samples=50, size=20, votes=2)
        assert isinstance(certificate, PORE)
        ballot = certificate.elect(data, judge, "test")
        users, open_ = candidates(judge, "test")
        assert not ballot.counts[~open_].any()
        assert ballot.counts.sum() <= 50 * 20 * 2
        assert ballot.counts.sum(1).max() <= 2 * 50
        # a user is in a third of the sub-samples
        assert ballot.counts.sum().item() / len(users) == pytest.approx(2 * 50 / 3, rel=0.1)

    @pytest.mark.parametrize("poison", ["random", "bandwagon"])
    def test_no_fake_users_beat_it(self, poison: str) -> None:
        data = grouped()
        judge = judging(data, k=3)
        fake = configured("poison", poison, count=1)
        certificate = proof("pore", budgets=[0, 1, 2, 4], samples=3000, size=12, votes=1, poison=fake)
        found = certificate.certify(loaded(build("pop", data), data), judge, "test")
        proven = [guaranteed(judge, "test", above) for above in found.above]
        assert proven[0].metrics["hr@3"] > 0.2
        for budget, bound in zip(certificate.budgets, proven, strict=True):
            if budget:
                left = certificate.attack(loaded(build("pop", data), data), judge, "test", budget)
                assert_no_better(left, bound)
        assert [each.metrics["hr@3"] for each in proven] == sorted(
            (each.metrics["hr@3"] for each in proven), reverse=True
        )

    def test_more_sub_samples_prove_more(self) -> None:
        data = grouped()
        judge, values = judging(data, k=3), []
        for samples in (100, 1000, 5000):
            found = proof("pore", budgets=[0], samples=samples, size=12).certify(
                loaded(build("pop", data), data), judge, "test"
            )
            values.append(guaranteed(judge, "test", found.above[0]).metrics["hr@3"])
        assert values == sorted(values)
        assert values[-1] > values[0]

    def test_every_bound_has_its_share_of_alpha(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every user and item has a bound of its own, and all hold together with probability 1 − alpha."""
        data = grouped(n_users=20)
        certificate: Any = proof("pore", budgets=[0], samples=30, size=10, alpha=0.01)
        asked: list[int] = []
        bounds = certificate.bounds

        def spied(ballot: Ballot, n_bounds: int) -> tuple[Tensor, Tensor]:
            asked.append(n_bounds)
            return bounds(ballot, n_bounds)  # type: ignore[no-any-return]

        monkeypatch.setattr(certificate, "bounds", spied)
        certificate.certify(loaded(build("pop", data), data), judging(data), "test")
        assert asked == [20 * 24]
        lower, upper = bounds(Ballot(torch.zeros(1, 1), 30, 1), 480)
        expected = binomtest(7, 30).proportion_ci(1 - 2 * 0.01 / 480, "exact")
        assert (lower[7].item(), upper[7].item()) == pytest.approx((expected.low, expected.high))

    def test_more_users_than_there_are_cannot_be_sampled(self) -> None:
        with pytest.raises(RrecError, match="certify.size"):
            proof("pore", size=1000).certify(loaded(build("pop")), judging(), "test")


def test_only_candidates_that_are_not_relevant_are_bounded_from_above() -> None:
    judge = judging(k=DATA.n_items)
    portions = judge.portions("test")
    counts = torch.zeros(sum(len(each.users) for each in portions), DATA.n_items, dtype=torch.int32)
    _, _, others = Ballot(counts, 5, 1).bounds(judge, "test", torch.zeros(6).double(), torch.full((6,), 0.3).double())
    left = [
        DATA.n_items - int((each.excluded[0] == row).sum()) - int((each.relevant[0] == row).sum())
        for each in portions
        for row in range(len(each.users))
    ]
    assert others.isfinite().sum(1).tolist() == left


class TestPartition:
    def test_the_group_of_a_user_depends_on_no_other(self) -> None:
        ids = [f"u{each}" for each in range(50)]
        assert torch.equal(hashed(ids, 7)[:20], hashed(ids[:20], 7))
        assert hashed(ids, 7).bincount(minlength=7).min() > 0

    @pytest.mark.parametrize("poison", ["random", "bandwagon", "covisit"])
    def test_no_fake_users_beat_it(self, poison: str) -> None:
        data = grouped()
        judge = judging(data, k=3)
        fake = configured("poison", poison, count=1)
        certificate = proof("partition", budgets=[0, 1, 2, 3, 20], groups=12, votes=2, poison=fake)
        found = certificate.certify(loaded(build("pop", data), data), judge, "test")
        proven = [guaranteed(judge, "test", above) for above in found.above]
        assert proven[0].metrics == pytest.approx(found.clean.metrics, abs=1e-6)
        assert proven[1].metrics["hr@3"] > 0.1
        assert proven[-1].metrics["hr@3"] == 0
        for budget, bound in zip(certificate.budgets, proven, strict=True):
            if budget:
                left = certificate.attack(loaded(build("pop", data), data), judge, "test", budget)
                assert_no_better(left, bound)

    def test_fake_users_change_the_votes_of_their_groups_alone(self) -> None:
        data = grouped()
        judge = judging(data)
        certificate = proof("partition", groups=12, votes=2)
        before = certificate.elect(data, judge, "test").counts  # type: ignore[attr-defined]
        one = poisons.build(configured("poison", "random", size=1 / data.n_users, count=1))
        after = certificate.elect(one(data), judge, "test").counts  # type: ignore[attr-defined]
        assert (before - after).abs().max() <= 1
        assert (after - before).clamp_min(0).sum(1).max() <= 2


@pytest.mark.parametrize("name", ["partition", "pore"])
def test_fake_users_that_cannot_be_made_are_said_before_the_elections(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = grouped()
    certificate = proof(name, budgets=[1], empirical=True, poison=configured("poison", "random", feedback="ratings"))
    monkeypatch.setattr(certificate, "elect", lambda *_: pytest.fail("an election was held"))
    with pytest.raises(RrecError, match="poison.feedback=ratings"):
        certificate.certify(loaded(build("pop", data), data), judging(data), "test")


@pytest.mark.parametrize("votes", [1, 2, 3])
@pytest.mark.parametrize("name", ["partition", "pore"])
def test_a_fake_user_moves_as_many_votes_as_are_cast_in_an_election(name: str, votes: int) -> None:
    """One fake user moves as many votes as are cast in one election: an item that needs 0.9 of one is not safe."""
    certificate: Any = proof(name, votes=votes, **({"size": 4} if name == "pore" else {}))
    others = torch.full((1, 4), 5.0, dtype=torch.double)
    own, fakes, rho, room = 6.9, 1, 1.0, 1.0
    if name == "pore":
        rho = 1 - 4 / (DATA.n_users + 1)
        room = 4 / (DATA.n_users + 1) - rho * 4 / DATA.n_users
        own = 5 + 0.9 * room / rho
    lower, barrier = certificate.after(torch.tensor([own]).double(), others, fakes, DATA)
    assert outvoted(lower, torch.zeros(1, dtype=torch.long), barrier).item() == votes


@pytest.mark.parametrize("name", ["partition", "pore"])
def test_fake_users_whose_number_is_not_for_the_budget_to_say_are_refused(name: str) -> None:
    with pytest.raises(RrecError, match="certify.poison=table: the budget says how many fake users"):
        proof(name, budgets=[1], empirical=True, poison=configured("poison", "table"))


@pytest.mark.parametrize("name", ["partition", "pore"])
def test_a_poison_that_makes_no_fake_users_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = grouped()
    certificate = proof(name, budgets=[0, 1], empirical=True, poison=configured("poison", "none"))
    monkeypatch.setattr(certificate, "elect", lambda *_: pytest.fail("an election was held"))
    with pytest.raises(RrecError, match="certify.poison=none makes no fake users"):
        certificate.certify(loaded(build("pop", data), data), judging(data), "test")


class TestTask:
    def run(self, verb: Any, name: str, out: Path, *words: str) -> dict[str, float]:
        out.mkdir(parents=True, exist_ok=True)
        metrics: dict[str, float] = verb.run(composing.typed(compose(name, *words), name), out)
        return metrics

    def test_a_certificate_stands_beside_the_metrics(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = ["dataset=synthetic", "dataset.n_users=60", "dataset.n_items=40", "device=cpu", f"data_dir='{tmp_path}'"]
        self.run(train, "train", tmp_path / "run", *data, "model=mf", "epochs=1")
        words = [f"ckpt='{tmp_path / 'run'}'", "device=cpu", f"data_dir='{tmp_path}'", "top_k=[5]"]
        with_attack = [*words, "certify=radius", "certify.budgets=[0,0.1]", "certify.empirical=true"]
        told = self.run(evaluate, "eval", tmp_path / "eval", *with_attack)
        assert told["certified/ndcg@5@0"] == pytest.approx(told["test/ndcg@5"], abs=1e-6)
        assert told["certified/ndcg@5@0.1"] <= told["empirical/ndcg@5@0.1"]
        gap = told["empirical/hr@5@0.1"] - told["certified/hr@5@0.1"]
        assert told["gap/hr@5@0.1"] == pytest.approx(gap)
        with open(tmp_path / "eval" / "certified.csv", newline="") as file:
            rows = {(row["metric"], float(row["radius"])): row for row in csv.DictReader(file)}
        assert float(rows["ndcg@5", 0.1]["certified"]) == told["certified/ndcg@5@0.1"]
        assert (tmp_path / "eval" / "certified.png").read_bytes()[:4] == b"\x89PNG"
        assert "white-box" in capsys.readouterr().out
        assert json.loads((tmp_path / "eval" / "run.json").read_text())["certify"]["name"] == "radius"
        plain = self.run(evaluate, "eval", tmp_path / "plain", *words)
        assert not [name for name in plain if name.startswith("certified")]
        monkeypatch.setattr("robustbench_rec.certificates.pore.PORE.elect", lambda *_: pytest.fail("an election"))
        with pytest.raises(RrecError, match="no metric of auc can be certified"):
            self.run(evaluate, "eval", tmp_path / "auc", *words, "certify=pore", "metrics=[auc]")
        with pytest.raises(RrecError, match="protocol=full"):
            self.run(
                evaluate, "eval", tmp_path / "sampled", *words, "certify=radius", "protocol=sampled", "n_negatives=9"
            )


def test_a_model_that_says_so_reads_the_events_of_all_users() -> None:
    """Other events of another user change the scores of users whose own events stay, or change nothing."""
    other = DATA.train.users == DATA.n_users - 1
    items = torch.where(other, (DATA.train.items + 1) % DATA.n_items, DATA.train.items)
    changed = replace(DATA, train=replace(DATA.train, items=items))
    for name in models:
        if not buildable(name) or not (model := build(name)).trainable or type(model).fit is not RecModel.fit:
            continue
        again, asked = build(name, changed), question(model, torch.arange(3))
        with torch.no_grad():
            one, two = (Shifted(each.eval())(asked).scores for each in (model, again))
        assert torch.equal(one, two) != model.reads_events, name
