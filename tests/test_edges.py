"""The attack on edges: slopes in the values of a graph, what a weight of 0 means, and what is dropped."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import build, configured, judge, make_data
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.graph import Sparse, clicked, product
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models.kgat import KGAT
from robustbench_rec.models.lightgcn import LightGCN
from robustbench_rec.shifted import Shifted

DATA = make_data(n_users=20, n_items=30, train=8)
CHANGES: dict[str, dict[str, Any]] = {"lightgcn": {"dim": 8}, "kgat": {"dim": 8, "layers": [8], "min_triples": 0}}
MODELS = list(CHANGES)


def small(name: str, data: Data = DATA) -> RecModel:
    model = build(name, data, **CHANGES[name]).eval().requires_grad_(False)
    model.refresh()
    return model


def attack(**changes: Any) -> Attack:
    return attacks.build(configured("attack", "edges", **changes))


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
        for key, each in model.weighed(torch.ones(model.n_edges)).items():
            torch.testing.assert_close(each, Shifted(model).tensors([key])[key])

    def test_a_weight_of_0_is_the_graph_without_the_edge(self, name: str) -> None:
        model, (users, items) = small(name), clicked(DATA)
        gone = torch.arange(len(users)) % 3 == 0
        rest = Interactions(users[~gone], items[~gone], torch.ones(int((~gone).sum())))
        other = checkpoint.build(configured("model", name, **CHANGES[name]), replace(DATA, train=rest)).eval()
        other.load_state_dict(model.state_dict())
        other.refresh()
        weights = torch.ones(model.n_edges)
        weights[edges(model, users[gone], items[gone])] = 0
        delta = {key: each - Shifted(model).tensors([key])[key] for key, each in model.weighed(weights).items()}
        for one, two in zip(Shifted(model).shift(delta).encoded, Shifted(other).encoded, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)

    def test_slopes_are_those_of_finite_differences(self, name: str) -> None:
        model = small(name).double()
        batch = next(iter(evaluator(DATA, judge()).batches(model, "test")))

        def value(weights: Tensor) -> Tensor:
            delta = {key: each - Shifted(model).tensors([key])[key] for key, each in model.weighed(weights).items()}
            return -(
                Shifted(model).shift(delta)(batch).scores.log_softmax(1) * batch.labels
            ).sum()  # in double precision

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
    """Numbers of clicks among the edges of a model: those that have two buffer entries at their places."""
    found = []
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        if isinstance(model, LightGCN):
            start, end = model.graph.starts[user], model.graph.starts[user + 1]
            found.append(int(start + (model.graph.columns[start:end] == item + model.user.num_embeddings).nonzero()))
        else:
            assert isinstance(model, KGAT)
            place = (model.heads == user) & (model.tails == item + model.n_users)
            weights = torch.eye(model.n_edges)
            found.append(
                next(
                    each
                    for each in range(model.n_edges)
                    if (model.weighed(1 - weights[each])["attention"][place] == 0).all()
                )
            )
    return torch.tensor(found)


@pytest.mark.parametrize("name", MODELS)
class TestAttack:
    def test_it_beats_random_edges_within_the_same_budget(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        climbed = loss("softmax")

        def value(at: Shifted) -> float:
            return sum(climbed(at(each), each).sum().item() for each in judging.batches(model, "test"))

        moved, budget = judging.attack(Shifted(model), attack(share=0.1, steps=3), "test", climbed)
        count = round(0.1 * model.n_edges)
        assert 0 < budget["max_edges"] <= count
        assert budget["max_share"] == pytest.approx(budget["max_edges"] / model.n_edges)
        reached, clean, blind = value(moved[0][0]), value(Shifted(model)), []
        for seed in range(10):
            weights = torch.ones(model.n_edges)
            weights[torch.randperm(model.n_edges, generator=torch.Generator().manual_seed(seed))[:count]] = 0
            delta = {key: each - Shifted(model).tensors([key])[key] for key, each in model.weighed(weights).items()}
            blind.append(value(Shifted(model).shift(delta)))
        assert reached > max(*blind, clean)

    def test_no_budget_changes_nothing_and_more_of_it_never_helps_the_users(self, name: str) -> None:
        model, judging = small(name), evaluator(DATA, judge())
        clean = judging.evaluate(Shifted(model), "test").metrics
        nothing, budget = judging.attack(Shifted(model), attack(share=0.0), "test", loss("softmax"))
        assert judging.evaluate(nothing, "test").metrics == clean
        assert budget["max_edges"] == 0

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
