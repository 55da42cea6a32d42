"""The attack on edges: slopes in the values of a graph, what a weight of 0 means, what is dropped and added."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import (
    against,
    assert_gradients,
    batch_for,
    build,
    buildable,
    configured,
    gradients,
    judge,
    make_data,
    question,
    usual,
)
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.attacks.edges import EdgeAttack, Rewired, _Graph
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.goals import goals
from robustbench_rec.graph import Sparse, clicked, product
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.models.kgcn import KGCN
from robustbench_rec.models.structure_aware_kgat import StructureAwareKGAT
from robustbench_rec.shifted import Shifted

DATA = make_data(n_users=20, n_items=30, train=8)
CHANGES: dict[str, dict[str, Any]] = {
    "lightgcn": {"dim": 8},
    "kgat": {"dim": 8, "layers": [8], "min_triples": 0},
    "kgcn": {"dim": 8},
    "structure_aware_kgat": {"dim": 8, "layers": 2},
}
MODELS = list(CHANGES)
CLICKED = [name for name in MODELS if name != "kgcn"]


def small(name: str, data: Data = DATA, **changes: Any) -> RecModel:
    model = build(name, data, **(CHANGES[name] | changes)).eval().requires_grad_(False)
    model.refresh()
    return model


def name_of(model: RecModel) -> str:
    return type(model).__module__.rpartition(".")[2]


def attack(**changes: Any) -> Attack:
    built = attacks.build(configured("attack", "edges", **changes))
    assert isinstance(built, Attack)
    return built


def scores(at: Shifted, data: Data = DATA) -> Tensor:
    return at(question(at.model, torch.arange(data.n_users), data=data)).scores


def test_the_product_has_a_gradient_in_the_values() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(5, 4, generator=generator).double()
    places = dense.abs() > 0.4
    rows, columns = places.nonzero().unbind(1)
    matrix, back = Sparse(rows, columns, 5, dense[places]), Sparse(columns, rows, 4, dense[places])
    x, outer = torch.randn(4, 3, generator=generator).double(), torch.randn(5, 3, generator=generator).double()
    values = matrix.csr.values.clone().requires_grad_()  # type: ignore[union-attr]
    (product(x, matrix.csr._replace(values=values), back.csr) * outer).sum().backward()
    torch.testing.assert_close(values.grad, (outer @ x.T)[places])


@pytest.mark.parametrize("name", MODELS)
class TestWeights:
    def test_ones_are_the_graph_as_it_is(self, name: str) -> None:
        model = small(name)
        torch.testing.assert_close(scores(Shifted(model).weighed(torch.ones(model.n_edges))), scores(Shifted(model)))

    def test_every_edge_reaches_the_scores(self, name: str) -> None:
        model = small(name)
        weights = torch.full((model.n_edges,), 1.1, requires_grad=True)
        (slope,) = torch.autograd.grad(scores(Shifted(model).weighed(weights)).square().sum(), weights)
        events = model.edges[1] == 0
        assert bool(slope[events].all())
        assert events.all() or float((slope[~events] != 0).float().mean()) > 0.3

    def test_a_weight_of_0_is_the_graph_without_the_edge(self, name: str) -> None:
        if name == "kgcn":
            pytest.skip("what is drawn from a graph without an edge is another sample")
        model, (users, items) = small(name), clicked(DATA)
        gone = torch.arange(len(users)) % 3 == 0
        rest = Interactions(users[~gone], items[~gone], torch.ones(int((~gone).sum())))
        other = checkpoint.build(configured("model", name, **CHANGES[name]), replace(DATA, train=rest)).eval()
        other.load_state_dict(model.state_dict())
        other.refresh()
        weights = torch.ones(model.n_edges)
        weights[edges(model, users[gone], items[gone])] = 0
        for one, two in zip(Shifted(model).weighed(weights).encoded, Shifted(other).encoded, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)

    def test_slopes_are_those_of_finite_differences(self, name: str) -> None:
        model = small(name).double()
        batch = next(iter(evaluator(DATA, judge()).batches(model, "test")))

        def value(weights: Tensor) -> Tensor:
            scored = Shifted(model).weighed(weights)(batch).scores
            return -(scored.log_softmax(1) * batch.labels).sum()  # in double precision

        # away from 1, where a degree of an edge alone has a kink
        weights = torch.full((model.n_edges,), 1.1, dtype=torch.double, requires_grad=True)
        torch.set_default_dtype(torch.double)
        try:
            (slope,) = torch.autograd.grad(value(weights), weights)
            for edge in range(0, model.n_edges, 23):
                step = torch.zeros_like(weights).index_fill(0, torch.tensor([edge]), 1e-3).detach()
                along = (value(weights.detach() + step) - value(weights.detach() - step)) / 2e-3
                assert slope[edge].item() == pytest.approx(along.item(), rel=1e-4, abs=1e-8)
        finally:
            torch.set_default_dtype(torch.float)


def edges(model: RecModel, users: Tensor, items: Tensor) -> Tensor:
    """Numbers of clicks among the edges of a model."""
    had = clicks(model)[0] * DATA.n_items + clicks(model)[1]
    return torch.searchsorted(had, users * DATA.n_items + items)


def clicks(model: RecModel) -> Tensor:
    """Users and items of the clicks in its graph."""
    users, relations, items = model.edges
    return torch.stack([users, items - DATA.n_users])[:, relations == 0]


def triples(model: RecModel) -> set[tuple[int, ...]]:
    """Those in its graph."""
    return {tuple(each) for each in model.edges[:, model.edges[1] > 0].T.tolist()}


@pytest.mark.parametrize("name", MODELS)
class TestAttack:
    def test_it_beats_random_edges_within_the_same_budget(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        climbed = loss("softmax")

        def value(at: Shifted) -> float:
            return sum(climbed(at(each), each).sum().item() for each in judging.batches(model, "test"))

        moved, budget = judging.attack(Shifted(model), attack(share=0.1, steps=3), "test", climbed)
        count = round(0.1 * model.n_edges)
        assert 0 < budget["max_dropped"] <= count
        assert budget["max_share"] <= 0.1 + 1e-6
        assert budget["max_added"] == 0
        assert budget["max_share"] == pytest.approx(budget["max_dropped"] / model.n_edges)
        reached, clean, blind = value(moved[0][0]), value(Shifted(model)), []
        for seed in range(10):
            weights = torch.ones(model.n_edges)
            weights[torch.randperm(model.n_edges, generator=torch.Generator().manual_seed(seed))[:count]] = 0
            blind.append(value(Shifted(model).weighed(weights)))
        assert reached > max(*blind, clean)

    def test_no_budget_changes_nothing_and_more_of_it_never_helps_the_users(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        clean = judging.evaluate(Shifted(model), "test").metrics
        nothing, budget = judging.attack(Shifted(model), attack(share=0.0), "test", loss("softmax"))
        assert judging.evaluate(nothing, "test").metrics == clean
        assert budget["max_dropped"] == 0

    def test_a_share_of_less_than_an_edge_is_worth_a_warning(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        model = small(name)
        share = 0.9 / model.n_edges
        _, budget = evaluator(DATA, judge()).attack(Shifted(model), attack(share=share), "test", loss("softmax"))
        assert budget["max_dropped"] == 0
        assert "is less than one: none is changed" in caplog.text

    def test_the_announced_passes_are_made(self, name: str) -> None:
        passes, built = iter(range(100)), attack(steps=4)
        evaluator(DATA, judge()).attack(Shifted(small(name)), built, "test", loss("softmax"), on_pass=passes.__next__)
        assert next(passes) == built.passes


def test_a_model_without_a_graph_is_refused() -> None:
    with pytest.raises(RrecError, match="model 'mf' has no graph whose edges can be weighed"):
        attack().prepared(build("mf", DATA), DATA)


def test_a_config_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(RrecError, match="attack.share=2"):
        attack(share=2.0)


def test_every_model_with_a_graph_is_here() -> None:
    assert {name for name in models if buildable(name) and build(name, DATA).n_edges} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_edges_are_those_of_the_data_sorted(name: str) -> None:
    model = small(name)
    heads, relations, tails = model.edges
    keys = (heads * 1000 + tails) * 10 + relations
    assert torch.equal(keys, keys.sort().values)
    assert DATA.kg is not None
    known = zip(*(each.tolist() for each in (DATA.kg.heads, DATA.kg.relations, DATA.kg.tails)), strict=True)
    expected = {(h + DATA.n_users, r + 1, t + DATA.n_users) for h, r, t in known}
    if name == "kgcn":
        assert triples(model) <= expected
        assert len(clicks(model)[0]) == 0
    else:
        assert triples(model) == (set() if name == "lightgcn" else expected)
        assert torch.equal(clicks(model), torch.stack(clicked(DATA)))


@pytest.mark.parametrize("name", CLICKED)
class TestMoreEdges:
    def candidates(self, model: RecModel) -> Tensor:
        free = torch.ones(DATA.n_users, DATA.n_items, dtype=torch.bool)
        free[tuple(clicks(model))] = False
        users, items = free.nonzero()[::3].T
        found = torch.stack([users, torch.zeros_like(users), items + DATA.n_users])
        if name_of(model) == "lightgcn":
            return found
        new = {(DATA.n_users + h, 1 + h % 3, DATA.n_users + (7 * h + 3) % 36) for h in range(30)} - triples(model)
        return torch.cat([torch.tensor(sorted(new)).T, found], 1)

    def test_more_edges_of_weight_0_change_nothing(self, name: str) -> None:
        at = Shifted(small(name))
        graph = _Graph.of(at).beside(self.candidates(at.model))
        wide = graph.point(graph.weights)
        assert wide.model.n_edges == at.model.n_edges + graph.extra.shape[1]
        torch.testing.assert_close(scores(wide), scores(at), rtol=0, atol=1e-6)

    def test_more_edges_are_the_graph_with_these_events_and_triples(self, name: str) -> None:
        model = small(name)
        more = self.candidates(model)[:, :60]
        other = model.extended(more)
        users, items = clicks(other)
        assert DATA.kg is not None
        heads, relations, tails = more[:, more[1] > 0]
        kg = replace(
            DATA.kg,
            heads=torch.cat([DATA.kg.heads, heads - DATA.n_users]),
            relations=torch.cat([DATA.kg.relations, relations - 1]),
            tails=torch.cat([DATA.kg.tails, tails - DATA.n_users]),
        )
        assert len(users) > len(DATA.train)
        assert (len(heads) > 0) == (name != "lightgcn")
        data = replace(DATA, train=Interactions(users, items, torch.ones(len(users))), kg=kg)
        expected = checkpoint.build(configured("model", name, **CHANGES[name]), data).eval()
        expected.load_state_dict(model.state_dict())
        expected.refresh()
        torch.testing.assert_close(scores(Shifted(other)), scores(Shifted(expected)), rtol=1e-4, atol=1e-6)
        assert all(one is two for one, two in zip(model.parameters(), other.parameters(), strict=True))
        assert torch.equal(scores(Shifted(model)), scores(Shifted(small(name))))  # which stays what it was

    def test_slopes_of_candidates_are_those_of_small_weights(self, name: str) -> None:
        # φ of the structure-aware model jumps where an edge appears, which is no slope
        model = small(name, **({"structure": False} if name == "structure_aware_kgat" else {}))
        torch.set_default_dtype(torch.double)
        try:
            graph = _Graph.of(Shifted(model.double())).beside(self.candidates(model))
            leaf = graph.weights.clone().requires_grad_()
            (slope,) = torch.autograd.grad(scores(graph.point(leaf)).log_softmax(1).square().sum(), leaf)
            for edge in range(graph.own, len(leaf), 29):
                step = torch.zeros_like(leaf).index_fill(0, torch.tensor([edge]), 1e-5).detach()
                values = [
                    scores(graph.point(each)).log_softmax(1).square().sum() for each in (graph.weights, leaf + step)
                ]
                along = (values[1] - values[0]).item() / 1e-5
                assert slope[edge].item() == pytest.approx(along, rel=1e-2, abs=1e-3)
        finally:
            torch.set_default_dtype(torch.float)

    @pytest.mark.parametrize("guide", ["gradient", "high_degree", "low_degree", "random"])
    @pytest.mark.parametrize("op", ["drop", "add", "rewire"])
    def test_it_stays_within_its_budget(self, name: str, op: str, guide: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        built = attack(op=op, guide=guide, share=0.1, steps=3).prepared(model, DATA)
        passes = iter(range(100))
        moved, budget = judging.attack(Shifted(model), built, "test", loss("softmax"), on_pass=passes.__next__)
        point, count = moved[0][0], round(0.1 * model.n_edges)
        dropped, added = int(budget["max_dropped"]), int(budget["max_added"])
        assert {"drop": (dropped, 0), "add": (0, added), "rewire": (dropped, dropped)}[op] == (dropped, added)
        assert 0 < max(dropped, added) <= count
        assert guide == "gradient" or max(dropped, added) == count
        assert budget["max_share"] == pytest.approx(max(dropped, added) / model.n_edges)
        assert point.model.n_edges == model.n_edges + added
        assert next(passes) == built.passes
        judging.evaluate(moved, "test")

    def test_what_is_added_is_no_event_of_any_part(self, name: str) -> None:
        model = small(name)
        built = attack(op="add", guide="random", share=1.0, pool=3).prepared(model, DATA)
        point, _ = built(Shifted(model), batch_for(model), lambda at, batch: torch.zeros(()))
        users, items = clicks(point.model)
        keys = users * DATA.n_items + items
        assert len(keys.unique()) == len(keys)
        events = [DATA.part(each) for each in ("train", "valid", "test")]
        known = torch.cat([each.users * DATA.n_items + each.items for each in events])
        assert torch.isin(keys, known).sum() == len(DATA.train)
        assert len(keys) > len(DATA.train)
        assert triples(point.model) >= triples(model)
        assert len(point.model.edges.unique(dim=1).T) - len(model.edges.unique(dim=1).T) == point.added

    def test_added_triples_have_ends_that_their_relation_has(self, name: str) -> None:
        model = small(name)
        if name == "lightgcn":
            with pytest.raises(RrecError, match="model 'lightgcn' has no graph whose triples can be weighed"):
                attack(op="add", kind="triples").prepared(model, DATA)
            return
        built = attack(op="add", kind="triples", share=0.5).prepared(model, DATA)
        moved, budget = evaluator(DATA, judge()).attack(Shifted(model), built, "test", loss("softmax"))
        old, new = triples(model), triples(moved[0][0].model)
        assert 0 < len(new - old) == budget["max_added"] <= round(0.5 * len(DATA.kg or ()))
        assert {each[:2] for each in new} == {each[:2] for each in old}
        assert {each[1:] for each in new} == {each[1:] for each in old}
        assert torch.equal(clicks(moved[0][0].model), clicks(model))

    def test_a_seed_says_what_is_drawn(self, name: str) -> None:
        model, judging, found = small(name), evaluator(DATA, judge()), []
        for seed in (0, 0, 1):
            built = attack(op="rewire", share=0.1, steps=2, seed=seed).prepared(model, DATA)
            torch.manual_seed(len(found))
            moved, _ = judging.attack(Shifted(model), built, "test", loss("softmax"))
            found.append(moved[0][0].model.edges)
        assert torch.equal(found[0], found[1])
        assert found[0].shape != found[2].shape or not torch.equal(found[0], found[2])

    def test_promoting_by_added_clicks_raises_the_exposure_of_the_target(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        goal = goals.build(configured("goal", "promote", k=5), DATA)
        built = attack(op="add", kind="clicks", share=0.2, steps=4).prepared(model, DATA)
        moved, _ = judging.attack(Shifted(model), built, "test", judging.climbed(None, goal), mark=goal.mark)
        clean, after = (goal.measure(judging, each, "test", None) for each in (Shifted(model), moved))  # type: ignore[arg-type]
        assert clean is not None
        assert after is not None
        assert after.metrics["t_rank"] < 0.97 * clean.metrics["t_rank"]
        # attention over all neighbours and triples mixes in little of one: untrained, nothing gets into the first 5
        assert name == "structure_aware_kgat" or after.metrics["t_hr@5"] > clean.metrics["t_hr@5"]

    def test_one_kind_of_edges_alone_can_be_dropped(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        events = model.edges[1] == 0
        for kind, there in (("clicks", events), ("triples", ~events)):
            if not there.any():
                continue
            built = attack(guide="random", kind=kind, share=0.5).prepared(model, DATA)
            _, budget = judging.attack(Shifted(model), built, "test", loss("softmax"))
            assert budget["max_dropped"] == round(0.5 * int(there.sum()))
            assert budget["max_share"] == pytest.approx(0.5, abs=0.02)


def test_clicks_added_along_the_slope_do_more_harm_than_random_ones_in_an_undertrained_lightgcn() -> None:
    data = make_data(n_users=40, n_items=60, train=8, test=3)
    judging, climbed, gains = evaluator(data, judge()), loss("softmax"), []
    for seed in range(4):
        model = build("lightgcn", data, seed=seed, dim=8)
        optimizer, objective = torch.optim.Adam(model.parameters(), lr=0.01), usual(model)
        for step in range(30):
            optimizer.zero_grad()
            objective(Shifted(model), batch_for(model, data, size=64, seed=step)).backward()
            optimizer.step()
        at, values = Shifted(model.eval().requires_grad_(False)), {}
        for guide in ("gradient", "random"):
            built = attack(op="add", guide=guide, share=0.1, seed=seed).prepared(model, data)
            moved, _ = judging.attack(at, built, "test", climbed)
            values[guide] = sum(climbed(moved[0][0](each), each).mean() for each in judging.batches(model, "test"))
        values["clean"] = sum(climbed(at(each), each).mean() for each in judging.batches(model, "test"))
        gains.append([float(values[each] - values["clean"]) for each in ("gradient", "random")])
    guided, blind = torch.tensor(gains).mean(0).tolist()
    assert guided > 0.005
    assert guided > 5 * abs(blind)


class TestDegrees:
    def dropped(self, guide: str) -> tuple[Tensor, Tensor]:
        """Products of degrees of the edges that stay and of those that go."""
        model = small("lightgcn")
        built = attack(guide=guide, share=0.2)
        worse, _ = built(Shifted(model), batch_for(model), lambda at, batch: torch.zeros(()))
        ends = model.edges[[0, 2]]
        product = torch.bincount(ends.flatten())[ends].prod(0)
        gone = worse.tensors(["graph.values"])["graph.values"][: model.n_edges] == 0
        assert int(gone.sum()) == round(0.2 * model.n_edges)
        return product[~gone], product[gone]

    def test_edges_between_high_degrees_go_first(self) -> None:
        stay, gone = self.dropped("high_degree")
        assert stay.max() <= gone.min()

    def test_edges_between_low_degrees_go_first(self) -> None:
        stay, gone = self.dropped("low_degree")
        assert stay.min() >= gone.max()

    def test_among_candidates_those_between_high_degrees_come_first(self) -> None:
        model, products = small("lightgcn"), {}
        degrees = torch.bincount(model.edges[[0, 2]].flatten(), minlength=DATA.n_users + DATA.n_items)
        for guide in ("high_degree", "random", "low_degree"):
            built = attack(op="add", guide=guide, share=0.1).prepared(model, DATA)
            worse, _ = built(Shifted(model), batch_for(model), lambda at, batch: torch.zeros(()))
            new = (worse.model.edges.T[:, None] != model.edges.T).any(2).all(1)
            products[guide] = degrees[worse.model.edges[[0, 2]][:, new]].prod(0).float().mean()
        assert products["high_degree"] > 1.2 * products["random"] > 1.4 * products["low_degree"]


class TestDrawnNeighbors:
    def test_an_edge_is_what_either_end_has_drawn(self) -> None:
        model = small("structure_aware_kgat", neighbors=3)
        full = small("structure_aware_kgat")
        assert model.n_edges < full.n_edges
        assert triples(model) <= triples(full)

    def test_without_it_the_others_that_were_drawn_are_left(self) -> None:
        model = small("structure_aware_kgat", neighbors=3, layers=1)
        assert isinstance(model, StructureAwareKGAT)
        weights = (torch.arange(model.n_edges) % 4 > 0).float()
        point = Shifted(model).weighed(weights)
        gone = (point.tensors(["weights"])["weights"] == 0) & (model.heads >= model.n_users)
        gone &= model.tails >= model.n_users
        assert gone.any()
        triples = weights.masked_fill(model.edges[1] == 0, 1.0)
        found, expected = scores(Shifted(model).weighed(triples)), deepcopy(model)
        for name, each in model.without(gone[model._triples]).items():
            setattr(expected, name, each)
        torch.testing.assert_close(found, scores(Shifted(expected)))

    def test_what_need_not_be_drawn_is_not_added(self) -> None:
        with pytest.raises(RrecError, match="model.neighbors=3: an added edge need not be drawn"):
            attack(op="add").prepared(small("structure_aware_kgat", neighbors=3), DATA)

    def test_a_triple_of_kgcn_is_gone_from_both_ends(self) -> None:
        model = small("kgcn")
        assert isinstance(model, KGCN)
        edge = 5
        found = model.weighed(torch.ones(model.n_edges).index_fill(0, torch.tensor([edge]), 0.0))["weights"]
        one, two = (model.edges[[0, 2], edge] - DATA.n_users).tolist()
        for row, column in (found == 0).nonzero().tolist():
            assert {row, int(model.tails[row, column])} == {one, two}
        assert (found == 0).any()
        expected = deepcopy(model)
        graph = model.relational(0)
        ends = torch.stack([graph.heads, graph.tails]).sort(0).values
        relation = int(model.edges[1, edge]) - 1
        gone = (ends == torch.tensor([min(one, two), max(one, two)])[:, None]).all(0) & (graph.relations == relation)
        for name, each in model.without(gone).items():
            setattr(expected, name, each)
        torch.testing.assert_close(expected.weights, found)


def test_edges_are_not_added_to_neighbors_that_were_drawn() -> None:
    with pytest.raises(RrecError, match="model 'kgcn' has no graph to which edges can be added"):
        attack(op="add").prepared(small("kgcn"), DATA)


@pytest.mark.parametrize("name", CLICKED)
class TestTraining:
    @pytest.mark.parametrize("op", ["drop", "add", "rewire"])
    @pytest.mark.parametrize("guide", ["gradient", "random"])
    def test_half_of_it_is_on_another_graph_anew_for_every_batch(self, name: str, op: str, guide: str) -> None:
        changes: dict[str, Any] = {"op": op, "guide": guide, "share": 0.2, "steps": 2}
        model = small(name).requires_grad_(True)
        batch = batch_for(model, DATA)
        objective, same = (against("edges", model, DATA, **changes) for _ in range(2))
        worse, _ = same.attack(Shifted(model), batch, usual(model))
        assert isinstance(worse, Rewired)
        assert (worse.dropped > 0, worse.added > 0) == (op != "add", op != "drop")
        reference = (usual(model)(Shifted(model), batch) + usual(model)(worse, batch)) / 2
        assert_gradients(
            gradients(model, objective(Shifted(model), batch)), gradients(model, reference), atol=1e-7, rtol=1e-5
        )
        other, _ = same.attack(Shifted(model), batch, usual(model))
        assert torch.equal(scores(worse), scores(other)) == ((op, guide) == ("drop", "gradient"))

    def test_it_knows_the_training_events_alone(self, name: str) -> None:
        model = small(name)
        inner = against("edges", model, DATA, op="add").attack
        assert isinstance(inner, EdgeAttack)
        assert inner.events is not None
        assert torch.equal(inner.events[[0, 2]], torch.stack([DATA.train.users, DATA.train.items + DATA.n_users]))


def test_edges_that_a_model_cannot_have_are_refused_before_the_training() -> None:
    with pytest.raises(RrecError, match="model 'kgcn' has no graph to which edges can be added"):
        against("edges", small("kgcn"), DATA, op="add")


def test_who_looks_at_no_gradient_knows_nothing() -> None:
    assert attack().declared.knowledge == "white-box"
    assert attack(op="rewire", guide="random").declared.knowledge == "none"
    assert attack(op="rewire", kind="clicks", share=0.1).declared.budget == "rewire 0.1 of the clicks"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"op": "flip"}, "op of attack 'edges'"),
        ({"guide": "loss"}, "guide of attack 'edges'"),
        ({"kind": "users"}, "kind of edges"),
        ({"pool": 0}, "attack.pool=0"),
    ],
)
def test_choices_that_there_are_not_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RrecError, match=told):
        attack(**changes)
