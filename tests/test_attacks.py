"""Attacks beyond plain ascent: against their published code, against exact radii, and for every goal."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, Toy, build, configured, judge, question
from test_ascent import Classifier, exact_softmax, labelled
from torch import Tensor

from robustbench_rec.ascent import Perturbation
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks, single
from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, evaluator
from robustbench_rec.evaluation.masking import masking
from robustbench_rec.evaluation.worst import attacked, judged, leading, members, winners, worst
from robustbench_rec.goals import goals
from robustbench_rec.losses import loss
from robustbench_rec.minimal import Minimal
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted

GROUPED = replace(DATA, user_table=pd.DataFrame({"group": ["a", "b", "b"] * 4}))
Rows = Callable[[Shifted, Batch], Tensor]


def on_features(name: str, **changes: Any) -> Perturbation:
    built = single(configured("attack", name, surface="feature", relative="no", **changes))
    assert isinstance(built, Perturbation)
    return built


def rowwise(loss: Callable[[Output, Batch], Tensor]) -> Rows:
    return lambda at, batch: loss(at(batch), batch)


def misclassified(output: Output, batch: Batch) -> Tensor:
    """The hinge of Carlini & Wagner: 0 once another class is ahead."""
    own = (output.scores * batch.labels).sum(1)
    return -(own - output.scores.masked_fill(batch.labels > 0, float("-inf")).amax(1)).clamp_min(0)


class Images(torch.nn.Module):
    """The classifier as others' code wants it: images in, logits out."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def centred() -> Classifier:
    """Its inputs are far from the edges of the box [0, 1] that others' code clips to."""
    model = Classifier()
    model.feature_x = 0.5 + 0.05 * model.x
    return model


def published_apgd(loss: Callable[[Tensor], Tensor], x: Tensor, eps: float, steps: int) -> tuple[Tensor, int]:
    """Algorithm 1 of Croce & Hein (ICML 2020) for one input in the l2 ball, no box; the best loss, how often it halved.

    Checkpoints as in the released code: in whole steps, and a checkpoint halves at exactly 3 in 4 steps too.
    """

    def climbed(point: Tensor) -> tuple[Tensor, Tensor]:
        point = point.detach().requires_grad_()
        value = loss(point)
        return value.detach(), torch.autograd.grad(value, point)[0]

    def inside(point: Tensor) -> Tensor:
        return x + (point - x) * min(1.0, eps / max(float((point - x).norm()), 1e-300))

    gaps, checkpoints = max(int(0.22 * steps), 1), []
    while sum(checkpoints[-1:]) + gaps <= steps:
        checkpoints.append(sum(checkpoints[-1:]) + gaps)
        gaps = max(gaps - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    (value, gradient), before, here, size = climbed(x), x, x, 2 * eps
    best, best_value, best_gradient, halvings = x, value, gradient, 0
    values, halved_last, best_at_last, last = [value], True, value, 0
    for step in range(1, steps + 1):
        stepped = inside(here + size * gradient / gradient.norm())
        share = 0.75 if step > 1 else 1.0
        before, here = here, inside(here + share * (stepped - here) + (1 - share) * (here - before))
        value, gradient = climbed(here)
        values.append(value)
        if value > best_value:
            best, best_value, best_gradient = here, value, gradient
        if step in checkpoints:
            rises = sum(bool(after > earlier) for earlier, after in pairwise(values[last:]))
            halved_last = rises <= 0.75 * (step - last) or (not halved_last and bool(best_at_last >= best_value))
            if halved_last:
                size, here, gradient, halvings = size / 2, best, best_gradient, halvings + 1
            best_at_last, last = best_value, step
    return best_value, halvings


class TestAPGD:
    @pytest.mark.parametrize("steps", [1, 7, 40, 100])
    def test_it_takes_the_steps_of_the_published_algorithm(self, classifier: Classifier, steps: int) -> None:
        batch, _ = labelled(classifier)
        worse, _ = on_features("apgd", eps=0.9, steps=steps)(Shifted(classifier), batch, rowwise(exact_softmax))
        found = exact_softmax(worse(batch), batch)
        runs = [
            published_apgd(
                lambda x, own=own: (z := classifier.net(x)).logsumexp(0) - (z * own).sum(), row.clone(), 0.9, steps
            )
            for row, own in zip(classifier.x, batch.labels, strict=True)
        ]
        torch.testing.assert_close(found, torch.stack([value for value, _ in runs]), rtol=1e-9, atol=1e-9)
        assert steps < 40 or len({halvings for _, halvings in runs}) > 1  # rows halve when they have to

    @pytest.mark.parametrize("steps", [1, 7, 40, 100])
    def test_it_takes_the_steps_of_the_published_code(
        self, centred: Classifier, steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torchattacks = pytest.importorskip("torchattacks")
        batch, labels = labelled(centred)
        theirs = torchattacks.APGD(Images(centred).float().eval(), norm="L2", eps=0.2, steps=steps)
        monkeypatch.setattr(torch, "randn", torch.zeros)  # a start at the input itself
        x = centred.x.float()[:, None, None]
        _, _, best, _ = theirs.attack_single_run(x, labels)
        centred.double()
        worse, _ = on_features("apgd", eps=0.2, steps=steps)(Shifted(centred), batch, rowwise(exact_softmax))
        found = exact_softmax(worse(batch), batch)
        torch.testing.assert_close(found.float(), best, rtol=2e-4, atol=1e-5)

    def test_a_quadratic_is_climbed_to_the_edge_of_the_ball(self) -> None:
        """J(x) = -‖x - c‖²: the best point of a ball around 0 is c, or the edge in its direction."""

        class Quadratic(RecModel):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("feature_x", torch.zeros(2, 3, dtype=torch.float64))

            def forward(self, batch: Batch, encoded: None) -> Output:
                centre = torch.tensor([[0.2, -0.1, 0.1], [3.0, 0.0, -4.0]], dtype=torch.float64)
                return Output(-(self.get_buffer("feature_x") - centre).square().sum(1, keepdim=True))

        batch = Batch(torch.arange(2), None, torch.zeros(2, 1))
        worse, _ = on_features("apgd", eps=1.0, steps=100)(
            Shifted(Quadratic()), batch, lambda at, batch: at(batch).scores[:, 0]
        )
        expected = torch.tensor([[0.2, -0.1, 0.1], [0.6, 0.0, -0.8]], dtype=torch.float64)
        torch.testing.assert_close(worse.delta["feature_x"], expected, rtol=0, atol=2e-3)

    def test_every_row_keeps_its_own_best(self, classifier: Classifier) -> None:
        batch, _ = labelled(classifier)
        together, _ = on_features("apgd", eps=0.3, steps=20)(Shifted(classifier), batch, rowwise(exact_softmax))
        values = exact_softmax(together(batch), batch)
        for row in range(3):
            one = deepcopy(classifier)
            one.feature_x = classifier.x[[row]]
            own = Batch(torch.zeros(1, dtype=torch.long), None, batch.labels[[row]])
            alone, _ = on_features("apgd", eps=0.3, steps=20)(Shifted(one), own, rowwise(exact_softmax))
            torch.testing.assert_close(exact_softmax(alone(own), own), values[[row]])


@pytest.fixture
def classifier() -> Classifier:
    return Classifier()


class TestMinimal:
    def test_cw_finds_norms_no_larger_than_those_of_foolbox(self, centred: Classifier) -> None:
        foolbox = pytest.importorskip("foolbox")
        batch, _ = labelled(centred)
        net = Images(centred).float().eval()
        theirs = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=300, initial_const=1e-2)
        x = centred.x.float()[:, None, None]
        wanted = net(x).argmax(1)  # attacked from what is predicted, so that all start unbroken
        function = foolbox.PyTorchModel(net, bounds=(0, 1))
        _, clipped, success = theirs(function, x, foolbox.criteria.Misclassification(wanted), epsilons=None)
        assert success.all()
        reference = (clipped - x).flatten(1).norm(dim=1)
        centred.double()
        predicted = Batch(batch.users, None, torch.nn.functional.one_hot(wanted, 4).double())
        built = on_features("cw", eps=None, searches=9, steps=300)
        worse, _ = built(Shifted(centred), predicted, rowwise(misclassified))
        norms = worse.delta["feature_x"].norm(dim=1).float()
        assert (misclassified(worse(predicted), predicted) == 0).all()
        assert (norms / reference).median() <= 1.02
        assert (norms <= 1.15 * reference).all()

    @pytest.mark.parametrize(("name", "close"), [("cw", 0.05), ("fab", 1e-3)])
    def test_a_linear_boundary_is_met_at_its_distance(self, name: str, close: float) -> None:
        """The hinge looks at the class that is next, which now and then is not the nearest one."""
        model = Classifier(linear=True)
        layer = model.net[0]
        logits = layer(model.x)
        labels = logits.argmax(1)
        batch = Batch(torch.arange(len(model.x)), None, torch.nn.functional.one_hot(labels, 4).double())
        gaps = logits.gather(1, labels[:, None]) - logits  # [n, 4]
        slopes = (layer.weight[labels][:, None] - layer.weight).norm(dim=2)
        exact = torch.where(gaps > 0, gaps / slopes, float("inf")).amin(1)
        worse, _ = on_features(name, eps=None)(Shifted(model), batch, rowwise(misclassified))
        norms = worse.delta["feature_x"].norm(dim=1)
        assert (norms >= exact * (1 - 1e-6)).all()
        assert (norms <= exact * (1 + close)).float().mean() > 0.8

    def test_a_failure_is_told_as_infinite(self, classifier: Classifier) -> None:
        batch, _ = labelled(classifier)
        built = on_features("fab", eps=1e-6)
        assert isinstance(built, Minimal)
        worse, _ = built(Shifted(classifier), batch, rowwise(misclassified))
        spent = built.spent(Shifted(classifier), worse, batch, batch, rowwise(misclassified))
        assert spent["norm"].isinf().all()
        told = built.summary(spent)
        assert told["success"] == 0
        assert told["median_norm"] == float("inf")


class Pair(RecModel):
    """Dot products with user and item vectors; δ on the vector of one item, or on that of each user."""

    def __init__(self, users: Tensor, items: Tensor, target: int) -> None:
        super().__init__()
        self.register_buffer("feature_item", items[[target]])
        self.register_buffer("rest", items)
        self.register_buffer("users", users)
        self.target = target

    def forward(self, batch: Batch, encoded: None) -> Output:
        items = self.get_buffer("rest").clone()
        items[self.target] = self.get_buffer("feature_item")[0]
        return Output(self.get_buffer("users")[batch.users] @ items.T)


class TestRadiiOfMatrixFactorisation:
    K = 3

    @pytest.mark.parametrize("name", ["cw", "fab"])
    def test_of_an_item_vector_into_the_list_of_one_user(self, name: str) -> None:
        """(z_(K) - s_t) / ‖p_u‖, along p_u: exact."""
        generator, goal = torch.Generator().manual_seed(0), promoting(self.K)
        users, items = torch.randn(6, 5, generator=generator).double(), torch.randn(30, 5, generator=generator).double()
        for user in range(6):
            target = int((users[user] @ items.T).argmin())
            model, batch = Pair(users, items, target), aimed_at(user, target)
            scores = (users[user] @ items.T).sort(descending=True).values
            exact = (scores[self.K - 1] - users[user] @ items[target]) / users[user].norm()
            worse, _ = on_features(name, eps=None)(Shifted(model), batch, rowwise(goal))
            found = worse.delta["feature_item"][0]
            assert exact * (1 - 1e-5) <= found.norm() <= exact * 1.05
            assert torch.cosine_similarity(found, users[user], dim=0) > 0.95

    @pytest.mark.parametrize("name", ["apgd", "cw", "fab", "pgd", "square"])
    def test_nothing_beats_the_certified_bound_of_a_user_vector(self, name: str) -> None:
        """d_(K), the K-th largest distance to a competitor: at most K - 1 of them may stay ahead."""
        model, goal, target = build("mf", dim=6), promoting(self.K), 4
        users, items = model.get_parameter("user.weight").detach(), model.get_parameter("item.weight").detach()
        scores = users @ items.T
        gaps = (scores - scores[:, [target]]).clamp_min(0) / (items - items[target]).norm(dim=1).clamp_min(1e-12)
        gaps[:, target] = 0
        bound = gaps.sort(1, descending=True).values[:, self.K - 1]
        everyone = torch.arange(DATA.n_users)
        batch = aimed_at(everyone, target)
        for share in (0.5, 0.98):
            changes: dict[str, Any] = {"surface": "activation", "relative": "no", "per": "row"}
            built = single(configured("attack", name, **changes, eps=float((bound[bound > 0]).min()) * share))
            worse, _ = built(Shifted(model.eval()), batch, rowwise(goal))
            rank = (worse(batch).scores > worse(batch).scores[:, [target]]).sum(1)
            assert (rank[bound > 0] >= self.K).all()

    @pytest.mark.parametrize("name", ["cw", "fab"])
    def test_a_user_vector_is_nearly_as_near_as_it_can_be(self, name: str) -> None:
        """With K = 1 the boundary is a polytope around the list; the distance to it comes from quadratic programmes."""
        scipy = pytest.importorskip("scipy.optimize")
        model, target, goal = build("mf", dim=6), 4, promoting(1)
        users, items = model.get_parameter("user.weight").detach(), model.get_parameter("item.weight").detach()
        batch = aimed_at(torch.arange(DATA.n_users), target)
        built = single(configured("attack", name, surface="activation", eps=None))
        worse, _ = built(Shifted(model.eval()), batch, rowwise(goal))
        reached = goal(worse(batch), batch) == 0
        assert reached.float().mean() > 0.9
        norms = next(iter(worse.delta.values())).norm(dim=1).masked_fill(~reached, float("inf"))
        margins = (items[target] - items).double()  # [n_items, D]: target ahead of k where the product is positive
        ratios = []
        for user, found in zip(users.double().numpy(), norms.tolist(), strict=True):
            wanted = {"type": "ineq", "fun": lambda p: margins.numpy() @ p, "jac": lambda p: margins.numpy()}
            best = scipy.minimize(
                lambda p, user=user: ((p - user) ** 2).sum(), user, jac=lambda p, user=user: 2 * (p - user),
                constraints=[wanted], method="SLSQP", options={"maxiter": 500, "ftol": 1e-14},
            )  # fmt: skip
            if best.fun > 1e-9:  # else the target is first already
                ratios.append(found / best.fun**0.5)
        assert len(ratios) > 6
        assert min(ratios) > 0.999
        assert torch.tensor(ratios).median() < 1.05


def promoting(k: int) -> Callable[[Output, Batch], Tensor]:
    from robustbench_rec.aims import aimed

    return aimed("promote_margin", k=k)


def aimed_at(users: int | Tensor, target: int) -> Batch:
    index = torch.as_tensor(users).reshape(-1)
    return Batch(index, None, torch.zeros(len(index), 0), aims=torch.full((len(index), 1), target))


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "simba"])
def test_a_point_without_a_value_ends_no_search(name: str, classifier: Classifier) -> None:
    """What was found before it is kept; a search that needs no gradient goes on."""
    batch, _ = labelled(classifier)
    blind = name in ("square", "simba")
    few = {"queries": 40} if blind else {"steps": 12}
    start = exact_softmax(Shifted(classifier)(batch), batch)
    rise = {}
    for lost in (0, 3, *([1] if blind else [])):
        asked: list[Tensor] = []

        def objective(at: Shifted, batch: Batch, lost: int = lost, asked: list[Tensor] = asked) -> Tensor:
            asked.append(exact_softmax(at(batch), batch))
            return asked[-1] * (float("nan") if len(asked) == lost else 1.0)

        worse, _ = on_features(name, eps=0.3, **few)(Shifted(classifier), batch, objective)
        rise[lost] = (exact_softmax(worse(batch), batch) - start).mean().item()
    assert rise[3] > 0
    if blind:
        assert min(rise[1], rise[3]) > 0.6 * rise[0]


class TestSquare:
    def test_it_uses_no_gradient_and_every_query_counts(self, classifier: Classifier) -> None:
        batch, _ = labelled(classifier)
        seen = []

        def objective(at: Shifted, batch: Batch) -> Tensor:
            assert not torch.is_grad_enabled()
            seen.append(exact_softmax(at(batch), batch))
            return seen[-1]

        built = on_features("square", eps=0.3, queries=40)
        worse, _ = built(Shifted(classifier), batch, objective)
        assert len(seen) == built.passes == 42
        best = torch.stack(seen).amax(0)
        torch.testing.assert_close(exact_softmax(worse(batch), batch), best)

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_it_is_between_noise_and_gradients(self, classifier: Classifier, norm: str) -> None:
        batch, _ = labelled(classifier)

        def raised(name: str, **changes: Any) -> float:
            built = on_features(name, eps=0.3, norm=norm, **changes)
            worse, _ = built(Shifted(classifier), batch, rowwise(exact_softmax))
            return exact_softmax(worse(batch), batch).mean().item()

        assert raised("noise") < raised("square", queries=200) <= raised("apgd") + 1e-6

    @pytest.mark.parametrize("seed", range(4))
    def test_the_norm_goes_where_it_counts(self, seed: int) -> None:
        """Evenly over all coordinates it would reach 0.57 of the best."""
        assert on_a_slope("square", norm="l2", per="row", queries=1000, seed=seed) > 0.7


def on_a_slope(name: str, **changes: Any) -> float:
    """What an attack reaches of the best on a linear function of which one coordinate of 32 weighs as much as 30."""
    slope = torch.randn(32, generator=torch.Generator().manual_seed(0))
    slope[5] = 10.0

    class Slope(RecModel):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("feature_x", torch.zeros(1, 32))

        def forward(self, batch: Batch, encoded: None) -> Output:
            return Output((self.get_buffer("feature_x") @ slope)[:, None])

    batch = Batch(torch.zeros(1, dtype=torch.long), None, torch.zeros(1, 1))
    worse, _ = on_features(name, eps=1.0, **changes)(Shifted(Slope()), batch, lambda at, each: at(each).scores[:, 0])
    best = slope.norm() if changes["norm"] == "l2" else slope.abs().sum()
    return (worse(batch).scores.item() / best).item()


class TestSimBA:
    def test_elements_take_turns(self) -> None:
        assert on_a_slope("simba", norm="linf", per="element", queries=500, step=1.0) > 0.95

    QUERIES, STEP = 12, 0.05

    def moved(self, classifier: Classifier, objective: Rows) -> Tensor:
        """How far up each row went, in steps."""
        batch, _ = labelled(classifier)
        seen = 0

        def counted(at: Shifted, batch: Batch) -> Tensor:
            nonlocal seen
            seen += 1
            return objective(at, batch)

        built = on_features("simba", eps=1.0, per="row", queries=self.QUERIES, step=self.STEP)
        worse, _ = built(Shifted(classifier), batch, counted)
        assert seen == built.passes == 1 + self.QUERIES
        return worse.delta["feature_x"].sum(1) / self.STEP

    def test_a_step_up_that_helped_is_followed_by_another_coordinate(self, classifier: Classifier) -> None:
        def total(at: Shifted, batch: Batch) -> Tensor:
            return at.tensors(["feature_x"])["feature_x"].sum()

        steps = self.moved(classifier, total)
        torch.testing.assert_close(steps, torch.full_like(steps, self.QUERIES))

    def test_each_row_draws_when_its_own_step_helped(self, classifier: Classifier) -> None:
        """Rows that want down lose every other query to a step up."""
        signs = torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)

        def rows(at: Shifted, batch: Batch) -> Tensor:
            return signs * at.tensors(["feature_x"])["feature_x"].sum(1)

        steps = self.moved(classifier, rows)
        torch.testing.assert_close(steps, torch.where(signs > 0, self.QUERIES, -self.QUERIES / 2).double())


class TestGoals:
    @pytest.mark.parametrize("kind", ["embedding", "weight"])
    def test_targets_rise_or_fall_as_far_as_the_budget_allows(self, kind: str) -> None:
        model = build("mf").requires_grad_(False).eval()
        judging = evaluator(DATA, judge())
        for verb, unlimited in (("promote", 1.0), ("demote", 0.0)):
            goal = goals.build(configured("goal", verb, k=5, stratum="random", count=2), DATA)
            before = judged(judging, Shifted(model), "test", goal).metrics["t_hr@5"]
            found = []
            for eps in (0.1, 0.5, 30.0):
                attack = single(configured("attack", "pgd", surface=kind, eps=eps, steps=30))
                [member] = members(judging, attack, goal)
                moved, _ = attacked(judging, Shifted(model), member, "test", goal, None)
                found.append(judged(judging, moved, "test", goal).metrics["t_hr@5"])
            assert sorted([before, *found], reverse=verb == "demote") == [before, *found]
            assert found[-1] == pytest.approx(unlimited, abs=0.05)

    def test_a_list_can_be_given_to_everybody(self) -> None:
        model, judging = build("mf").requires_grad_(False).eval(), evaluator(DATA, judge())
        ids = [DATA.item_ids[each] for each in (3, 11)]
        goal = goals.build({"name": "steer", "items": ids}, DATA)
        [member] = members(judging, single(configured("attack", "pgd", eps=30.0, steps=30)), goal)
        moved, _ = attacked(judging, Shifted(model), member, "test", goal, None)
        assert judged(judging, moved, "test", goal).metrics["t_hr@2"] > 0.9

    def test_a_gap_between_groups_widens(self) -> None:
        model, judging = build("mf").requires_grad_(False).eval(), evaluator(GROUPED, judge())
        goal = goals.build(configured("goal", "fairness", k=5, attribute="group"), GROUPED)
        before = judged(judging, Shifted(model), "test", goal).metrics["gap_ndcg@5"]
        [member] = members(judging, single(configured("attack", "pgd", eps=0.5)), goal)
        moved, _ = attacked(judging, Shifted(model), member, "test", goal, None)
        assert judged(judging, moved, "test", goal).metrics["gap_ndcg@5"] > before + 0.1

    def test_a_gap_is_between_those_who_are_judged_and_known(self) -> None:
        """Of 12 users 3 have no group, 4 lose and 5 are spared; in the part there are 1, 1 and 3 of them."""
        groups = [None] * 3 + ["a"] * 4 + ["b"] * 5
        events = DATA.test
        kept = torch.isin(events.users, torch.tensor([2, 6, 9, 10, 11]))
        data = replace(DATA, user_table=pd.DataFrame({"group": groups}), test=events.where(kept))
        goal = goals.build({"name": "fairness", "k": 5, "attribute": "group", "value": "a"}, data)
        assert goal.words == "fairness gap at the cost of group a, 3 users of whom it is not known left out"
        judging, model = evaluator(data, judge()), build("mf").eval()
        losses = torch.tensor([7.0, 2.0, 1.0, 1.0, 4.0])
        climbed = goal.weigh(lambda output, batch: losses, torch.tensor([2, 6, 9, 10, 11]))
        [batch] = judging.batches(model, "test")
        assert climbed(Output(losses), batch).mean().item() == pytest.approx(2.0 - (1.0 + 1.0 + 4.0) / 3, abs=1e-6)
        found = judged(judging, Shifted(model), "test", goal)
        quality = found.per_user["ndcg@5"].tolist()
        assert found.metrics["gap_ndcg@5"] == pytest.approx(sum(quality[2:]) / 3 - quality[1])
        with pytest.raises(RrecError, match="one of the two groups has nobody who is judged"):
            goal.weigh(loss("softmax"), torch.tensor([2, 9]))

    def test_a_user_with_several_lists_counts_once_in_a_gap(self) -> None:
        goal = goals.build({"name": "fairness", "k": 5, "attribute": "group", "value": "a"}, GROUPED)
        users = torch.tensor([0, 0, 0, 3, 1, 2])  # 0 and 3 lose
        losses = torch.tensor([1.0, 2.0, 3.0, 8.0, 1.0, 5.0])
        climbed = goal.weigh(lambda output, batch: losses, users)
        assert climbed(Output(losses), Batch.unlabelled(users)).mean().item() == pytest.approx(
            (2 + 8) / 2 - (1 + 5) / 2
        )

    def test_a_gap_needs_lists(self) -> None:
        data = replace(GROUPED, test=replace(GROUPED.test, values=(GROUPED.test.items % 2).float()))
        goal = goals.build(configured("goal", "fairness", k=5, attribute="group"), data)
        with pytest.raises(RrecError, match="compares lists of users, which protocol=full and sampled have"):
            judged(evaluator(data, judge(protocol="clicks", metrics=None)), Shifted(build("mf").eval()), "test", goal)

    @pytest.mark.parametrize(
        ("goal", "told"),
        [
            ({"name": "promote", "k": 5, "items": ["nothing"], "stratum": "", "count": 1, "seed": 0}, "has no item"),
            (
                {"name": "promote", "k": 5, "items": None, "stratum": "some", "count": 1, "seed": 0},
                "popular, random, unpopular",
            ),
            ({"name": "demote", "k": 5, "items": None, "stratum": "popular", "count": 99, "seed": 0}, "between 1 and"),
            ({"name": "steer", "items": ["item0", "item0"]}, "twice|no item"),
            ({"name": "fairness", "k": 5, "attribute": "shoe", "value": None}, "activity"),
        ],
    )
    def test_a_goal_that_makes_no_sense_is_refused(self, goal: dict[str, Any], told: str) -> None:
        with pytest.raises(RrecError, match=told):
            goals.build(goal, DATA)

    @pytest.mark.parametrize("goal", ["untargeted", "promote", "fairness"])
    def test_a_list_that_holds_everything_has_no_cut_to_cross(self, goal: str) -> None:
        changes = {"promote": {"stratum": "random", "count": 1}, "fairness": {"attribute": "group"}}.get(goal, {})
        built = goals.build(configured("goal", goal, k=GROUPED.n_items, **changes), GROUPED)
        with pytest.raises(RrecError, match=f"goal.k={GROUPED.n_items}: between 1 and {GROUPED.n_items - 1}"):
            evaluator(GROUPED, judge()).climbed(None, built)
        assert evaluator(GROUPED, judge()).climbed("promote_softmax" if goal == "promote" else "softmax", built)

    def test_targets_need_the_whole_catalogue(self) -> None:
        judging = evaluator(DATA, judge(protocol="sampled"))
        goal = goals.build(configured("goal", "promote", stratum="random", count=1), DATA)
        with pytest.raises(RrecError, match="protocol=full"):
            judged(judging, Shifted(build("mf").eval()), "test", goal)


class TestExposure:
    def test_it_counts_places_among_candidates_of_those_without_the_target(self) -> None:
        model, judging = build("mf").eval(), evaluator(DATA, judge(top_k=[3]))
        target = torch.tensor([7])
        found = judging.exposure(Shifted(model), "test", target)  # type: ignore[attr-defined]
        scores = model(question(model, torch.arange(DATA.n_users)), model.encode()).scores.detach()
        hits, ranks = [], []
        owned = {(u, i) for part in ("train", "valid", "test") for u, i in zip(*_pairs(part), strict=True)}
        tested = set(zip(*_pairs("test"), strict=True))
        for user in sorted(set(DATA.test.users.tolist())):
            if (user, 7) in owned:
                continue
            better = [i for i in range(DATA.n_items) if scores[user, i] > scores[user, 7]]
            rank = 1 + sum((user, i) not in owned or (user, i) in tested for i in better)
            ranks.append(rank)
            hits.append(rank <= 3)
        assert found.metrics["t_hr@3"] == pytest.approx(sum(hits) / len(hits))
        assert found.metrics["t_rank"] == pytest.approx(sum(ranks) / len(ranks))


def _pairs(part: str) -> tuple[list[int], list[int]]:
    events = DATA.part(part)
    return events.users.tolist(), events.items.tolist()


class TestRankAutoAttack:
    @pytest.mark.parametrize(("goal", "told"), [("untargeted", "ndcg@5"), ("promote", "t_hr@5"), ("fairness", "gap_")])
    def test_members_are_compared_by_what_the_attack_is_for(self, goal: str, told: str) -> None:
        changes = {"promote": {"stratum": "random", "count": 1}, "fairness": {"attribute": "group"}}.get(goal, {})
        wanted = goals.build(configured("goal", goal, k=5, **changes), GROUPED)
        judging = evaluator(GROUPED, judge(metrics=["gini", "coverage", "ndcg"], top_k=[5]))
        found = judged(judging, Shifted(build("mf").eval()), "test", wanted)
        assert leading(found, wanted).startswith(told)
        name = leading(found, wanted)
        one, other = (replace(found, metrics={**found.metrics, name: value, "gini@5": value}) for value in (0.1, 0.9))
        kept = 0.1 if goal == "untargeted" else 0.9
        assert worst([one, other], wanted, judging.smaller).metrics["gini@5"] == kept

    @pytest.mark.parametrize("goal", ["untargeted", "promote", "demote", "fairness"])
    @pytest.mark.parametrize("kind", ["embedding", "activation"])
    def test_nobody_is_better_off_than_under_any_member(self, goal: str, kind: str) -> None:
        model, judging = build("mf").requires_grad_(False).eval(), evaluator(GROUPED, judge(metrics=["ndcg", "hr"]))
        aimed: dict[str, Any] = {"stratum": "random", "count": 2}
        changes = {"untargeted": {}, "fairness": {"attribute": "group"}}.get(goal, aimed)
        wanted = goals.build(configured("goal", goal, k=5, **changes), GROUPED)
        at, results = Shifted(model), []
        chosen = members(judging, suite(kind), wanted)
        for member in chosen:
            moved, _ = attacked(judging, at, member, "test", wanted, None)
            results.append(judged(judging, moved, "test", wanted))
        combined, clean = worst(results, wanted, judging.smaller), judged(judging, at, "test", wanted)
        for name, values in combined.per_user.items():
            sign = wanted.serves(name, smaller=False)
            for each in results:
                assert ((sign * values >= sign * each.per_user[name]) | values.isnan()).all()
            if name not in combined.pairs:
                assert combined.metrics[name] == pytest.approx(values.nanmean().item())
        for name, each in combined.pairs.items():
            assert combined.metrics[name] == pytest.approx(each.nanmean(0).nanmean().item())
            torch.testing.assert_close(each.nanmean(1), combined.per_user[name], equal_nan=True)
        assert set(clean.pairs) == {name for name in clean.metrics if name.startswith("t_")}
        for result in (clean, *results):
            alone = worst([result], wanted, judging.smaller)
            assert alone.metrics == pytest.approx(result.metrics, nan_ok=True)
        primary = "t_hr@5" if goal in ("promote", "demote") else "gap_ndcg@5" if goal == "fairness" else "ndcg@5"
        assert wanted.serves(primary, smaller=False) * (combined.metrics[primary] - clean.metrics[primary]) >= 0
        won = winners(clean, results, wanted, "ndcg@5", judging.smaller)
        assert set(won.tolist()) <= {-1, *range(len(chosen))}

    @pytest.mark.parametrize("place", [1, 3])
    def test_a_rival_stands_that_many_places_below_the_clean_list(
        self, place: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = build("mf").requires_grad_(False).eval()
        judging, goal = evaluator(DATA, judge()), goals.build(configured("goal", "untargeted", k=5), DATA)
        rival = next(each for each in members(judging, suite("embedding"), goal) if each.rival == 1)
        marks = []
        monkeypatch.setattr(judging, "attack", lambda *args, mark, **rest: marks.append(mark))
        attacked(judging, Shifted(model), replace(rival, rival=place), "test", goal, None)
        relevant = 0
        for batch in judging.batches(model, "test"):
            scores, aims = model(batch, model.encode()).scores, marks[0](batch).aims
            assert batch.mask is not None
            assert aims is not None
            for row, aim in enumerate(aims[:, 0].tolist()):
                order = sorted(batch.mask[row].nonzero()[:, 0].tolist(), key=lambda item: -scores[row, item].item())
                relevant += sum(batch.labels[row, item].item() for item in order[:5])
                below = [item for item in order[5:] if not batch.labels[row, item]]
                assert aim == below[place - 1]
        assert relevant  # a list with relevant items begins no lower than one without

    def test_the_members_are_those_of_its_page(self) -> None:
        goal = goals.build(configured("goal", "untargeted", k=5), DATA)
        told = [(each.name, each.loss, each.rival) for each in members(evaluator(DATA, judge()), suite("weight"), goal)]
        assert told == [
            *((f"apgd_{each}", each, None) for each in ("softmax", "dlr", "margin")),
            *((f"apgd_rival_{each}", "promote", each) for each in (1, 2)),
            ("fab", "margin", None),
            ("square", "margin", None),
        ]

    def test_a_rival_is_lifted_into_the_list_of_the_goal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """−log(1 + exp(z − s)), z the k-th best of the other candidates and s the rival."""
        model = build("mf").requires_grad_(False).eval()
        judging, goal = evaluator(DATA, judge()), goals.build(configured("goal", "untargeted", k=4), DATA)
        rival = next(each for each in members(judging, suite("embedding"), goal) if each.rival == 1)
        seen: list[Any] = []
        monkeypatch.setattr(judging, "attack", lambda *args, mark, **rest: seen.append((args[3], mark)))
        attacked(judging, Shifted(model), rival, "test", goal, None)
        [(climbed, mark)] = seen
        for batch in map(mark, judging.batches(model, "test")):
            output = Output(3 * torch.randn(len(batch), DATA.n_items, generator=torch.Generator().manual_seed(0)))
            for row, found in enumerate(climbed(output, batch)):
                aim = int(batch.aims[row, 0])
                there = [item for item in batch.mask[row].nonzero()[:, 0].tolist() if item != aim]
                z = output.scores[row, there].sort(descending=True).values[3]
                torch.testing.assert_close(found, -(1 + (z - output.scores[row, aim]).exp()).log())

    def test_a_rival_of_an_attacker_without_labels_is_what_the_model_does_not_take_for_relevant(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = build("mf").requires_grad_(False).eval()
        judging, goal = evaluator(DATA, judge()), goals.build(configured("goal", "untargeted", k=2), DATA)
        rival = next(each for each in members(judging, suite("embedding"), goal) if each.rival == 2)
        marks: list[Any] = []
        monkeypatch.setattr(judging, "attack", lambda *args, mark, **rest: marks.append(mark))
        attacked(judging, Shifted(model), rival, "test", goal, None, own_labels=True)
        for batch in judging.batches(model, "test"):
            scores = model(batch, model.encode()).scores
            for row, aim in enumerate(marks[0](batch).aims[:, 0].tolist()):
                there = sorted(batch.mask[row].nonzero()[:, 0].tolist(), key=lambda item: -scores[row, item].item())
                assert aim == [item for item in there[2:] if scores[row, item] <= 0][1]

    def test_a_healthy_model_raises_no_flag_and_a_masked_one_does(self) -> None:
        class Masked(RecModel):
            """Scores in steps so small that they have no gradient."""

            def __init__(self, inner: RecModel) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, batch: Batch, encoded: None) -> Output:
                scores = self.inner(batch, None).scores
                return Output((scores * 1e4).round() / 1e4)

        flags = {}
        for name, model in (("mf", build("mf")), ("kgat", build("kgat")), ("masked", Masked(build("mf")))):
            model = model.requires_grad_(False).eval()
            judging, goal = (
                evaluator(DATA, judge(metrics=["ndcg"])),
                goals.build(configured("goal", "untargeted"), DATA),
            )
            chosen = [
                each for each in members(judging, suite("embedding"), goal) if each.name in ("apgd_softmax", "square")
            ]
            at, results = Shifted(model), []
            if name != "masked":
                for member in chosen:
                    moved, _ = attacked(judging, at, member, "test", goal, None)
                    results.append(judged(judging, moved, "test", goal))
            else:
                results = [judged(judging, at, "test", goal)] * 2
            flags[name] = masking(judging, at, chosen, results, judged(judging, at, "test", goal), "test", goal)
        assert flags["mf"]["zero_gradients"] == flags["mf"]["random"] == flags["mf"]["saturated"] == 0
        assert flags["kgat"]["zero_gradients"] == 0  # scores do not depend on the relations at all
        assert flags["masked"]["zero_gradients"] == 1

    def test_saturation_is_that_of_the_labels_that_the_attacker_has(self) -> None:
        class Sure(RecModel):
            """Certain of the first item, which is relevant to almost nobody."""

            def __init__(self, inner: RecModel) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, batch: Batch, encoded: None) -> Output:
                scores = self.inner(batch, None).scores
                first = torch.arange(scores.shape[1]) == 0
                return Output(scores * 1e-6 + torch.where(first, 50.0, -50.0))

        at = Shifted(Sure(build("mf")).requires_grad_(False).eval())
        judging = evaluator(DATA, judge(metrics=["ndcg"], seen=True))
        goal = goals.build(configured("goal", "untargeted"), DATA)
        chosen = [each for each in members(judging, suite("embedding"), goal) if each.name == "apgd_softmax"]
        clean = judged(judging, at, "test", goal)
        true, own = (
            masking(judging, at, chosen, [clean], clean, "test", goal, own_labels=each)["saturated"]
            for each in (False, True)
        )
        assert true < 0.2
        assert own == 1


def suite(kind: str) -> Any:
    return attacks.build(configured("attack", "rank_autoattack", surface=kind, eps=0.3, steps=5, queries=5, rivals=2))


def test_an_ensemble_is_not_trained_against() -> None:
    with pytest.raises(RrecError, match="ensemble"):
        single(configured("attack", "rank_autoattack"))


@pytest.mark.parametrize("name", ["cw", "fab", "rank_autoattack"])
def test_a_loss_that_an_attack_would_not_climb_is_refused(name: str) -> None:
    judging, goal = evaluator(DATA, judge()), goals.build(configured("goal", "untargeted"), DATA)
    built = attacks.build(configured("attack", name))
    with pytest.raises(RrecError, match="loss=bce: this attack climbs .*margin.*; leave loss out"):
        members(judging, built, goal, "bce")
    assert members(judging, built, goal)
    assert members(judging, single(configured("attack", "pgd")), goal, "bce")


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("pgd", {}), ("pgd", {"momentum": 1.0}), ("apgd", {}), ("cw", {}), ("fab", {}), ("rank_autoattack", {})],
)
def test_modules_off_the_path_to_the_scores_are_told(name: str, changes: dict[str, Any], trained: bool) -> None:
    """Whether or not the parameters have gradients."""
    model = Toy(dtype=torch.float32).requires_grad_(trained).eval()
    judging, goal = evaluator(DATA, judge()), goals.build(configured("goal", "untargeted"), DATA)
    built = attacks.build(configured("attack", name, surface="weight", modules=["aside"], **changes))
    first, *_ = members(judging, built, goal)
    with pytest.raises(RrecError, match=r"weight surface \(aside.weight\) does not reach the scores"):
        attacked(judging, Shifted(model), first, "test", goal, None)


def test_every_attack_declares_what_it_may_do() -> None:
    from robustbench_rec.threat import KNOWLEDGE

    for name in attacks:
        built = attacks.build(configured("attack", name))
        assert built.threat.knowledge in KNOWLEDGE, name
        assert all(built.declared.words().values()), name
        assert isinstance(built, Attack) == (name != "rank_autoattack")


@pytest.mark.parametrize("name", ["pgd", "bim"])
def test_an_attack_that_moves_nothing_is_refused(name: str) -> None:
    with pytest.raises(RrecError, match="steps=0 moves nothing"):
        single(configured("attack", name, steps=0))


class TestEachUserByItself:
    """The form in which the RAWP line measures weights: nothing adds up across users."""

    def test_it_is_the_attack_on_a_part_with_one_event(self) -> None:
        model = build("mf").requires_grad_(False).eval()
        judging = evaluator(DATA, judge(metrics=["ndcg"]), alone=True)
        attack = single(configured("attack", "fgm", surface="weight", scope="user", eps=0.3))
        moved, spent = judging.attack(Shifted(model), attack, "test", loss("bce"))
        assert len(moved) == len(judging.portions("test")) == len(set(DATA.test.users.tolist()))
        for portion, found in zip(judging.portions("test"), moved, strict=True):
            assert isinstance(found, Tensor)
            alone = replace(DATA, test=_only(DATA.test, portion.users))
            shared = single(configured("attack", "fgm", surface="weight", eps=0.3))
            [(point, batch)] = evaluator(alone, judge()).attack(Shifted(model), shared, "test", loss("bce"))[0]  # type: ignore[misc]
            torch.testing.assert_close(point(batch).scores, found)
        assert spent["max_relative"] == pytest.approx(0.3, rel=1e-4)

    def test_nothing_is_computed_for_items_that_are_no_candidates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, seen = build("deepcf_mlp").requires_grad_(False).eval(), []
        monkeypatch.setattr(model, "encode", lambda: pytest.fail("all users and items are encoded"))
        model.item_site.register_forward_hook(lambda _, __, found: seen.append(len(found)))
        judging = evaluator(DATA, judge(protocol="sampled", n_negatives=4, metrics=["ndcg"]), alone=True)
        judging.attack(
            Shifted(model),
            single(configured("attack", "fgm", surface="weight", scope="user", eps=0.1)),
            "test",
            loss("bce"),
        )
        assert set(seen) == {5}

    def test_no_user_is_better_off_than_with_one_perturbation_for_all(self) -> None:
        model = build("mf").requires_grad_(False).eval()
        climbed = {}
        for alone in (False, True):
            judging = evaluator(DATA, judge(metrics=["ndcg"]), alone=alone)
            attack = single(configured("attack", "pgd", surface="weight", scope="user" if alone else "all", eps=0.2))
            moved, _ = judging.attack(Shifted(model), attack, "test", loss("softmax"))
            with judging.judged(moved, "test") as scores:
                values = [
                    loss("softmax")(Output(found), batch)
                    for found, batch in zip(scores, judging.batches(model, "test"), strict=True)
                ]
            climbed[alone] = torch.cat(values)
        assert (climbed[True] >= climbed[False] - 1e-4).all()

    def test_what_the_model_decides_is_a_weaker_guide_than_the_labels(self) -> None:
        model = build("mf").requires_grad_(False).eval()
        judging, goal = evaluator(DATA, judge(metrics=["ndcg"])), goals.build(configured("goal", "untargeted"), DATA)
        [member] = members(judging, single(configured("attack", "fgm", surface="weight", eps=0.3)), goal)
        left = {}
        for own in (False, True):
            moved, _ = attacked(judging, Shifted(model), member, "test", goal, "bce", own_labels=own)
            left[own] = judging.evaluate(moved, "test").metrics["ndcg@5"]
        assert left[False] < left[True]

    @pytest.mark.parametrize("climbed", ["margin", "softmax", "topk"])
    def test_what_is_no_candidate_is_nothing_that_the_model_decides_for(self, climbed: str) -> None:
        """A user's seen items have the largest scores, and no attack can bring them into a list."""
        model = build("mf").requires_grad_(False).eval()
        judging, goal = evaluator(DATA, judge(metrics=["ndcg"])), goals.build(configured("goal", "untargeted"), DATA)
        [member] = members(judging, single(configured("attack", "pgd", eps=0.3)), goal)
        _, spent = attacked(judging, Shifted(model), member, "test", goal, climbed, own_labels=True)
        assert spent["max_norm"] > 0

    def test_an_attacker_without_the_labels_finds_the_same_whatever_they_are(self) -> None:
        class Blind(Full):
            def label(self, portion: Any, batch: Batch) -> Batch:
                told = super().label(portion, batch)
                return replace(told, labels=torch.zeros_like(told.labels))

        model, found = build("mf").requires_grad_(False).eval(), []
        goal = goals.build(configured("goal", "untargeted", k=5), DATA)
        for protocol in (Full, Blind):
            judging = protocol(DATA, judge(metrics=["ndcg"]))
            deltas = {}
            for member in members(judging, suite("embedding"), goal):
                [(point, _)], _ = attacked(judging, Shifted(model), member, "test", goal, None, own_labels=True)  # type: ignore[misc]
                deltas[member.name] = torch.cat([each.flatten() for each in point.delta.values()])
            found.append(deltas)
        assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def _only(events: Any, users: Tensor) -> Any:
    there = torch.isin(events.users, users)
    return type(events)(**{name: each[there] for name, each in vars(events).items() if each is not None})
