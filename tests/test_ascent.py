"""Gradient ascent: against foolbox, against closed forms, and what `beside` promises."""

from typing import Any

import pytest
import torch
from conftest import DATA, SHIFTING, Toy, batch_of, build, configured, gradients
from torch import Tensor, nn

from robustbench_rec.ascent import Ascent
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks, single
from robustbench_rec.batch import Batch, History, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective, Plain
from robustbench_rec.shifted import Shifted

EPS = 0.3


class Classifier(RecModel):
    """A plain differentiable function of rows x_i, with as many scores as there are classes."""

    def __init__(self, n: int = 12, d: int = 5, classes: int = 4, *, linear: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("feature_x", torch.randn(n, d, generator=generator, dtype=torch.float64))
        self.net = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, classes)).double()
        if linear:
            self.net = nn.Sequential(nn.Linear(d, classes, dtype=torch.float64))
        self.requires_grad_(False)

    @property
    def x(self) -> Tensor:
        return self.get_buffer("feature_x")

    def forward(self, batch: Batch, encoded: None) -> Output:
        return Output(self.net(self.x[batch.users]))


def exact_softmax(output: Output, batch: Batch) -> Tensor:
    """In float64, where the library's own losses are in float32."""
    return output.scores.logsumexp(1) - (output.scores * batch.labels).sum(1)


@pytest.fixture
def classifier() -> Classifier:
    return Classifier()


def labelled(model: Classifier) -> tuple[Batch, Tensor]:
    labels = torch.arange(len(model.x)) % 4
    return Batch(torch.arange(len(model.x)), None, nn.functional.one_hot(labels, 4).double()), labels


def ascended(model: Classifier, **changes: Any) -> Tensor:
    settings: dict[str, Any] = {"surface": "feature", "steps": 1, "ball": ball()}
    batch, _ = labelled(model)
    worse, _ = Ascent(**(settings | changes))(Shifted(model), batch, Plain(exact_softmax))
    return worse.tensors(["feature_x"])["feature_x"]


def ball(norm: str = "l2", eps: float = EPS, per: str = "row", relative: str = "no") -> Ball:
    return Ball(eps=eps, norm=norm, per=per, relative=relative)


class TestFoolboxAgrees:
    @pytest.mark.parametrize(("norm", "name"), [("l2", "L2FastGradientAttack"), ("linf", "LinfFastGradientAttack")])
    def test_on_one_step(self, classifier: Classifier, norm: str, name: str) -> None:
        foolbox = pytest.importorskip("foolbox")
        theirs = self.run(foolbox, classifier, getattr(foolbox.attacks, name)(random_start=False))
        torch.testing.assert_close(ascended(classifier, ball=ball(norm)), theirs, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("steps", [5, 20])
    @pytest.mark.parametrize(
        ("norm", "name"),
        [("l2", "L2ProjectedGradientDescentAttack"), ("linf", "LinfProjectedGradientDescentAttack")],
    )
    def test_on_projected_steps(self, classifier: Classifier, norm: str, name: str, steps: int) -> None:
        foolbox = pytest.importorskip("foolbox")
        attack = getattr(foolbox.attacks, name)(abs_stepsize=0.4 * EPS, steps=steps, random_start=False)
        theirs = self.run(foolbox, classifier, attack)
        ours = ascended(classifier, ball=ball(norm), steps=steps, step_size=0.4)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        size = ball(norm).size(ours - classifier.x)
        assert (size > 0.99 * EPS).any()  # the ball was felt

    def run(self, foolbox: Any, model: Classifier, attack: Any) -> Tensor:
        function = foolbox.PyTorchModel(model.net.eval(), bounds=(-100, 100))
        _, labels = labelled(model)
        found: Tensor = attack.run(function, model.x, foolbox.criteria.Misclassification(labels), epsilon=EPS)
        return found


class TestClosedForms:
    def test_one_step_reaches_the_vertex_of_a_linear_function(self) -> None:
        model = Classifier(linear=True)
        direction = torch.randn(4, dtype=torch.float64)

        def linear(output: Output, batch: Batch) -> Tensor:
            return output.scores @ direction

        batch, _ = labelled(model)
        (layer,) = model.net
        g = direction @ layer.weight  # type: ignore[operator]
        for norm, dual in (("l2", g.norm()), ("linf", g.abs().sum())):
            objective = Plain(linear)
            for steps, step_size in ((1, 1.0), (20, 0.125)):
                ascent = Ascent(surface="feature", ball=ball(norm), steps=steps, step_size=step_size)
                worse, _ = ascent(Shifted(model), batch, objective)
                gain = objective(worse, batch) - objective(Shifted(model), batch)
                torch.testing.assert_close(gain, EPS * dual)

    def test_more_steps_are_worse_than_one_and_one_is_worse_than_noise(self, classifier: Classifier) -> None:
        batch, _ = labelled(classifier)
        objective, values = Plain(exact_softmax), {}
        for name in ("pgd", "fgm", "noise"):
            config = configured("attack", name, surface="feature", eps=1.0, relative="no")
            if name == "pgd":
                config["steps"] = 40
            attack = attacks.build(config)
            values[name] = objective(attack(Shifted(classifier), batch, objective)[0], batch).item()
        assert values["pgd"] > values["fgm"] > values["noise"]

    @pytest.mark.parametrize("norm", ["l2", "linf"])
    def test_the_loss_grows_with_the_budget(self, classifier: Classifier, norm: str) -> None:
        batch, _ = labelled(classifier)
        objective = Plain(exact_softmax)
        values = []
        for eps in (0.0, 0.1, 0.2, 0.5, 1.0, 2.0):
            ascent = Ascent(surface="feature", ball=ball(norm, eps), steps=20, step_size=0.125, best=True)
            values.append(objective(ascent(Shifted(classifier), batch, objective)[0], batch).item())
        assert values == sorted(values)
        assert values[0] == objective(Shifted(classifier), batch).item()

    def test_noise_has_exactly_the_norm_of_the_budget(self) -> None:
        model = build("mf")
        for norm, relative in (("l2", "no"), ("linf", "own"), ("l2", "median")):
            config = configured("attack", "noise", norm=norm, relative=relative, eps=0.2)
            attack = attacks.build(config)
            assert isinstance(attack, Ascent)
            worse, _ = attack(Shifted(model), batch_of(), Plain(loss("bpr")))
            for name, each in worse.delta.items():
                torch.testing.assert_close(attack.ball.size(each), attack.ball.radius(model.get_parameter(name)))


class TestSteps:
    def test_the_best_point_seen_is_kept(self) -> None:
        """Steps of a whole radius across a ridge: the last point is not the best."""

        class Ridge(RecModel):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("feature_x", torch.tensor([0.9]))

            def forward(self, batch: Batch, encoded: None) -> Output:
                return Output(-(self.get_buffer("feature_x") - 1).square()[None])

        at, batch = Shifted(Ridge()), Batch.unlabelled(torch.zeros(1, dtype=torch.long))

        def height(at: Shifted, batch: Batch) -> Tensor:
            return at(batch).scores.sum()

        for steps in (1, 2, 3, 4):
            last, _ = Ascent(surface="feature", ball=ball(eps=1.0), steps=steps)(at, batch, height)
            best, _ = Ascent(surface="feature", ball=ball(eps=1.0), steps=steps, best=True)(at, batch, height)
            assert height(best, batch) >= height(at, batch) - 1e-7
            assert height(best, batch) >= height(last, batch)
            _, beside, _ = Ascent(surface="feature", ball=ball(eps=1.0), steps=steps, best=True).beside(
                at, batch, height
            )
            assert height(beside, batch) == height(best, batch)

    def test_as_many_passes_as_announced(self, toy: Toy) -> None:
        for changes in ({}, {"steps": 3}, {"steps": 3, "best": True}, {"steps": 2, "best": True, "restarts": 3}):
            ascent = Ascent(surface="weight", ball=ball(), random_start=True, **({"steps": 1} | changes))  # type: ignore[arg-type]
            count = 0

            def counted(at: Shifted, batch: Batch) -> Tensor:
                nonlocal count
                count += 1
                return Plain(loss("bpr")).forward(at, batch)

            ascent(Shifted(toy), batch_of(), counted)
            assert count == ascent.passes, changes

    def test_a_second_attack_starts_from_the_first_ones_point(self, toy: Toy) -> None:
        """Budgets are relative to the point attacked, deltas add up."""
        batch, objective = batch_of(), Plain(loss("bpr"))
        first, _ = Ascent(surface="embedding", ball=ball(relative="own"), steps=1)(Shifted(toy), batch, objective)
        ascent = Ascent(surface="weight", ball=ball(eps=0.1, relative="own"), steps=2, step_size=0.5)
        second, _ = ascent(first, batch, objective)
        for name, base in first.tensors(ascent.base(first, batch)).items():
            step = second.delta[name] - first.delta.get(name, torch.zeros_like(base))
            assert (step.norm(dim=-1) <= 0.1 * base.norm(dim=-1) * (1 + 1e-9)).all()
        assert set(second.delta) > set(first.delta)

    def test_tensors_that_the_loss_does_not_reach_stay(self, toy: Toy) -> None:
        worse, _ = Ascent(surface="weight", ball=ball(), steps=2)(Shifted(toy), batch_of(), Plain(loss("bpr")))
        assert not worse.delta["aside.weight"].any()
        assert worse.delta["first.weight"].any()

    def test_a_surface_that_does_not_reach_the_scores_is_an_error(self, toy: Toy) -> None:
        ascent = Ascent(surface="weight", ball=ball(), steps=1, modules=("aside",))
        with pytest.raises(RrecError, match=r"weight surface \(aside.weight\) does not reach the scores"):
            ascent(Shifted(toy), batch_of(), Plain(loss("bpr")))

    def test_a_feature_and_an_activation_surface_are_climbed_too(self, toy: Toy) -> None:
        batch, objective = batch_of(), Plain(loss("bpr"))
        for kind in ("feature", "activation"):
            worse, _ = Ascent(surface=kind, ball=ball(eps=0.01), steps=1)(Shifted(toy), batch, objective)
            assert objective(worse, batch) > objective(Shifted(toy), batch), kind

    @pytest.mark.parametrize("changes", [{"steps": -1}, {"steps": 1, "restarts": 0}, {"steps": 1, "step_size": 0.0}])
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match="steps >= 0, restarts >= 1, step_size > 0"):
            Ascent(surface="weight", ball=ball(), **changes)

    def test_fgsm_refuses_another_norm(self) -> None:
        with pytest.raises(RrecError, match="attack=fgm"):
            attacks.build(configured("attack", "fgsm", norm="l2"))


class TestRandomStart:
    def test_the_seed_decides(self, toy: Toy) -> None:
        def run(seed: int) -> Tensor:
            ascent = Ascent(surface="embedding", ball=ball(), steps=0, random_start=True, seed=seed)
            worse, _ = ascent(Shifted(toy), batch_of(), Plain(loss("bpr")))
            return worse.delta["user.weight"]

        assert torch.equal(run(1), run(1))
        assert not torch.equal(run(1), run(2))
        assert run(1).norm(dim=1).max() <= EPS * (1 + 1e-9)


class TestRestarts:
    def test_another_run_starts_elsewhere_and_finds_what_the_first_does_not(self) -> None:
        """A ridge at each side of 0, the higher one on the side that the gradient at 0 leads away from."""

        class Ridges(RecModel):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("feature_x", torch.tensor([[0.0]]))

            def forward(self, batch: Batch, encoded: None) -> Output:
                x = self.get_buffer("feature_x")
                return Output(torch.where(x > -0.2, x, -2 - 10 * x))

        def height(at: Shifted, batch: Batch) -> Tensor:
            return at(batch).scores.sum()

        at, batch = Shifted(Ridges()), Batch.unlabelled(torch.zeros(1, dtype=torch.long))
        pgd = configured("attack", "pgd", surface="feature", relative="no", eps=1.0, steps=4)
        found = []
        for restarts in (1, 9):
            attack = single({**pgd, "restarts": restarts})
            found.append(height(attack(at, batch, height)[0], batch).item())
        assert found == pytest.approx([1.0, 8.0])


def direct(attack: Attack, at: Shifted, batch: Batch, objective: Objective) -> tuple[Tensor, Shifted]:
    """What `beside` computes, without sharing anything."""
    return objective(at, batch), attack(at, batch, objective)[0]


class TestBeside:
    @pytest.mark.parametrize("name", ["toy", "mf", "kgat"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"surface": "embedding", "steps": 1},
            {"surface": "weight", "steps": 1},
            {"surface": "weight", "steps": 3, "step_size": 0.8},
            {"surface": "weight", "steps": 3, "step_size": 0.8, "best": True},
            {"surface": "weight", "steps": 1, "best": True},
            {"surface": "weight", "steps": 2, "random_start": True},
            {"surface": "embedding", "steps": 0},
            {"surface": "weight", "steps": 1, "names": ()},
            {"surface": "activation", "steps": 2, "step_size": 0.6},
        ],
        ids=str,
    )
    def test_it_gives_the_same_gradient_as_two_separate_terms(self, name: str, settings: dict[str, Any]) -> None:
        model = Toy() if name == "toy" else build(name).eval()
        if name == "mf" and settings["surface"] == "activation":
            settings = settings | {"surface": "embedding"}
        attack, batch, objective = (
            Ascent(ball=ball(eps=0.2, relative="own"), **settings),
            batch_of(),
            Plain(loss("bpr")),
        )
        clean, worse = direct(attack, Shifted(model), batch, objective)
        expected = gradients(model, 0.3 * clean + 0.7 * objective(worse, batch))
        value, beside, same = attack.beside(Shifted(model), batch, objective)
        found = gradients(model, 0.3 * value + 0.7 * objective(beside, same))
        torch.testing.assert_close(value, clean)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("attack", SHIFTING)
    def test_every_attack_offers_it(self, attack: str) -> None:
        model, batch, objective = build("mf"), batch_of(), Plain(loss("bpr"))
        built = attacks.build(configured("attack", attack))
        clean, worse = direct(built, Shifted(model), batch, objective)
        value, beside, _ = built.beside(Shifted(model), batch, objective)
        torch.testing.assert_close(value, clean)
        for key in worse.delta:
            torch.testing.assert_close(beside.delta[key], worse.delta[key])

    def test_the_clean_term_still_answers_to_an_outer_shift(self, toy: Toy) -> None:
        """Nested defences: the outer ascent needs the gradient of the inner clean term in the outer δ."""
        batch, objective = batch_of(), Plain(loss("bpr"))
        inner = Ascent(surface="embedding", ball=ball(eps=0.2, relative="own"), steps=1)
        found = []
        for own in (True, False):
            delta = {
                name: torch.zeros_like(toy.get_parameter(name)).requires_grad_()
                for name in ("first.weight", "user.weight")
            }
            at = Shifted(toy).shift(delta)
            value = inner.beside(at, batch, objective)[0] if own else objective(at, batch)
            found.append(torch.autograd.grad(value, [*delta.values()]))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two)

    def test_the_catalogue_of_users_outside_the_batch_is_untouched(self) -> None:
        model, batch = build("mf"), batch_of(size=3)
        worse, _ = Ascent(surface="embedding", ball=ball(), steps=1)(Shifted(model), batch, Plain(loss("bpr")))
        touched = torch.zeros(DATA.n_users, dtype=torch.bool)
        touched[batch.users] = True
        size = worse.delta["user.weight"].norm(dim=1)
        assert not size[~touched].any()
        torch.testing.assert_close(size[touched], torch.full_like(size[touched], EPS))


class TestPadding:
    """Places of a history that hold nothing."""

    LENGTHS = torch.tensor([6, 2, 1, 0])

    def batch(self) -> Batch:
        items = torch.arange(24).view(4, 6) % DATA.n_items
        items = items.masked_fill(torch.arange(6) >= self.LENGTHS[:, None], DATA.n_items)
        labels = nn.functional.one_hot(torch.tensor([3, 7, 1, 2]), DATA.n_items).float()
        return Batch(torch.arange(4), None, labels, history=History(items, self.LENGTHS))

    @pytest.mark.parametrize("name", ["gru4rec", "sasrec", "comirec", "stosa", "multi_intent_gaussian"])
    @pytest.mark.parametrize("attack", ["noise", "pgd", "apgd", "square", "simba", "fab", "cw"])
    @pytest.mark.parametrize("per", ["row", "example"])
    def test_it_is_neither_moved_nor_counted(self, name: str, attack: str, per: str) -> None:
        model = build(name, dropout=0.0).requires_grad_(False).eval()
        budget = {"surface": "activation", "per": per, "relative": "median", "eps": 0.5}
        few = {"apgd": {"steps": 12}, "square": {"queries": 60}, "simba": {"queries": 60}, "cw": {"steps": 20}}.get(
            attack, {}
        )
        built = single(configured("attack", attack, **budget, **few))
        at, batch = Shifted(model), self.batch()

        def objective(at: Shifted, batch: Batch) -> Tensor:
            return loss("softmax")(at(batch), batch) - 10 * (attack in ("fab", "cw"))  # for these a goal: 0 is reached

        worse, _ = built(at, batch, objective)
        spent = built.spent(at, worse, batch, batch, objective)
        real = torch.arange(6) < self.LENGTHS[:, None]
        moved = {each: delta for each, delta in worse.delta.items() if delta.ndim == 3 and delta.shape[1] == 6}
        assert moved
        for delta in moved.values():
            assert not delta[~real].any()
            assert delta[real].any()
        if attack in ("fab", "cw"):
            return  # whose budget is told of those alone who were not where they should be
        if per == "row":
            assert len(spent["norm"]) < sum(delta[..., 0].numel() for delta in worse.delta.values())
        assert (spent["norm"] > 0).float().mean() > 0.3

    def test_square_spends_the_whole_ball_on_real_places(self) -> None:
        model = build("sasrec", dropout=0.0).requires_grad_(False).eval()
        budget = {"surface": "activation", "per": "example", "relative": "no", "eps": 1.0, "queries": 40}
        attack = single(configured("attack", "square", modules=["embedded"], **budget))
        worse, _ = attack(Shifted(model), self.batch(), lambda at, batch: loss("softmax")(at(batch), batch))
        sizes = worse.delta["embedded.shift"].flatten(1).norm(dim=1)[self.LENGTHS > 0]
        torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=1e-4, atol=1e-5)

    def test_the_median_is_that_of_the_events(self) -> None:
        model = build("gru4rec", dropout=0.0).requires_grad_(False).eval()
        settings = {"modules": ("embedded",), "steps": 1, "ball": ball(eps=0.5, relative="median")}
        attack, batch = Ascent(surface="activation", **settings), self.batch()  # type: ignore[arg-type]
        worse, _ = attack(Shifted(model), batch, lambda at, batch: loss("softmax")(at(batch), batch))
        assert batch.history is not None
        events = model.get_parameter("item.weight")[batch.history.items[batch.history.real]]
        sizes = worse.delta["embedded.shift"].norm(dim=2)[batch.history.real]
        torch.testing.assert_close(sizes, (0.5 * events.norm(dim=1).median()).expand_as(sizes))

    def test_layers_of_activations_are_examples(self) -> None:
        with pytest.raises(RrecError, match="per=layer: activations have a row for each user; take per=example"):
            single(configured("attack", "pgd", surface="activation", per="layer"))
