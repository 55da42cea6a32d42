"""KGAT against a dense reference that follows the paper, on graphs that can be drawn by hand."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, interactions, penalty
from torch import Tensor
from torch.nn import functional as F

from robustbench_rec.data import KG, Data
from robustbench_rec.errors import RrecError
from robustbench_rec.models._knowledge import Collaborative
from robustbench_rec.models.kgat import KGAT

AGGREGATORS = ("bi_interaction", "gcn", "graphsage")


def drawn() -> Data:
    """Two users, two items, two further entities; 2 joined to 3 by two relations; entity 3 of the KG is lonely."""
    kg = KG(
        heads=torch.tensor([0, 0, 1, 1]),
        relations=torch.tensor([0, 1, 0, 1]),
        tails=torch.tensor([2, 2, 2, 0]),
        entity_ids=["i0", "i1", "genre", "lonely"],
        relation_ids=["has", "is"],
        linked=torch.ones(2, dtype=torch.bool),
    )
    train = interactions([0, 0, 1], [0, 1, 1])
    return Data("drawn", "", train, interactions([], []), train, ["u0", "u1"], ["i0", "i1"], kg=kg)


def model_of(data: Data = DATA, **changes: Any) -> KGAT:
    small: dict[str, Any] = {"dim": 6, "relation_dim": 5, "layers": [4, 3], "dropout": 0.0, "min_triples": 0}
    model = build("kgat", data, **(small | changes))
    assert isinstance(model, KGAT)
    return model


def triples(data: Data) -> list[tuple[int, int, int]]:
    """(head, relation, tail) of the union graph, both directions: relation 0 interact, then the KG's, then inverses."""
    assert data.kg is not None
    m, n = data.n_users, 1 + data.kg.n_relations
    one = {(u, 0, i + m) for u, i in zip(data.train.users.tolist(), data.train.items.tolist(), strict=True)}
    kg = zip(data.kg.heads.tolist(), data.kg.relations.tolist(), data.kg.tails.tolist(), strict=True)
    several = sorted(one) + [(h + m, r + 1, t + m) for h, r, t in kg]
    return several + [(t, r + n, h) for h, r, t in several]


def dense_attention(model: KGAT, data: Data) -> Tensor:
    """softmax over all (r, t) of a head of (W_r e_t)ᵀ tanh(W_r e_h + e_r), several relations of a pair summed."""
    x, edges = model.node.weight.detach(), triples(data)
    scores = torch.stack(
        [
            (x[t] @ model.projection[r]) @ torch.tanh(x[h] @ model.projection[r] + model.relation.weight[r])
            for h, r, t in edges
        ]
    ).detach()
    dense = torch.zeros(model.n_nodes, model.n_nodes)
    for head in range(model.n_nodes):
        mine = [number for number, (h, _, _) in enumerate(edges) if h == head]
        if mine:
            for number, share in zip(mine, scores[mine].softmax(0), strict=True):
                dense[head, edges[number][2]] += share
    return dense


def dense_encode(model: KGAT, data: Data, attention: Tensor) -> Tensor:
    """Every layer for every node, differentiable."""
    x = model.node.weight
    kept = [x]
    for index, layer in enumerate(model.sum):
        around = attention @ x
        if model.config.aggregator == "bi_interaction":
            x = F.leaky_relu(layer(x + around)) + F.leaky_relu(model.product[index](x * around))
        elif model.config.aggregator == "gcn":
            x = F.leaky_relu(layer(x + around))
        else:
            x = F.leaky_relu(layer(torch.cat([x, around], 1)))
        kept.append(x / x.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return torch.cat(kept, 1)


CASES = [drawn(), DATA]


@pytest.mark.parametrize("data", CASES, ids=lambda each: each.name)
class TestGraph:
    def test_it_holds_every_interaction_and_triple_in_both_directions(self, data: Data) -> None:
        model = model_of(data)
        found = zip(model.heads.tolist(), model.relations.tolist(), model.tails.tolist(), strict=True)
        assert sorted(found) == sorted(triples(data))

    def test_an_inverse_has_a_relation_of_its_own(self, data: Data) -> None:
        model = model_of(data)
        assert data.kg is not None
        assert model.n_relations == 2 * (1 + data.kg.n_relations)
        assert model.relation.weight.shape[0] == len(model.projection) == model.n_relations
        half = model.n_relations // 2
        edges = set(zip(model.heads.tolist(), model.relations.tolist(), model.tails.tolist(), strict=True))
        assert all((t, r + half if r < half else r - half, h) in edges for h, r, t in edges)

    def test_an_event_seen_twice_is_one_edge(self, data: Data) -> None:
        twice = replace(data, train=interactions(data.train.users.repeat(2), data.train.items.repeat(2)))
        assert len(model_of(twice).heads) == len(model_of(data).heads)

    def test_test_events_are_no_edges(self, data: Data) -> None:
        other = replace(data, test=interactions([0], [0]), valid=interactions([1], [0]))
        assert torch.equal(model_of(other).tails, model_of(data).tails)


@pytest.mark.parametrize("data", CASES, ids=lambda each: each.name)
class TestAttention:
    def test_it_sums_to_one_over_the_edges_of_every_head(self, data: Data) -> None:
        model = model_of(data)
        total = torch.zeros(model.n_nodes).index_add(0, model.heads, model.attention)
        degree = torch.bincount(model.heads, minlength=model.n_nodes)
        torch.testing.assert_close(total, (degree > 0).float())
        assert (degree == 0).any()  # the lonely entity is among the cases

    def test_it_is_the_formula_of_the_paper(self, data: Data) -> None:
        model = model_of(data)
        found = torch.zeros(model.n_nodes, model.n_nodes).index_put(
            (model.heads, model.tails), model.attention, accumulate=True
        )
        torch.testing.assert_close(found, dense_attention(model, data))

    def test_refresh_follows_the_parameters_and_nothing_else(self, data: Data) -> None:
        model = model_of(data)
        before = model.attention.clone()
        with torch.no_grad():
            model.relation.weight.add_(1)
        assert torch.equal(model.attention, before)
        model.refresh()
        changed = model.attention.clone()
        assert not torch.equal(changed, before)
        model.refresh()
        assert torch.equal(model.attention, changed)
        assert not model.attention.requires_grad

    def test_huge_scores_do_not_overflow(self, data: Data) -> None:
        model = model_of(data)
        with torch.no_grad():
            model.node.weight.mul_(1e4)
        model.refresh()
        assert model.attention.isfinite().all()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("data", CASES, ids=lambda each: each.name)
class TestPropagation:
    def test_it_is_the_dense_reference_in_value_and_gradient(self, data: Data, aggregator: str) -> None:
        model = model_of(data, aggregator=aggregator)
        expected = dense_encode(model, data, dense_attention(model, data))[: data.n_users + data.n_items]
        found = torch.cat(model.encode())
        torch.testing.assert_close(found, expected)
        outer = torch.randn_like(expected)
        weights = [each for name, each in model.named_parameters() if not name.startswith(("relation", "projection"))]
        for one, two in zip(
            torch.autograd.grad(found, weights, outer),
            torch.autograd.grad(expected, weights, outer),
            strict=True,
        ):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)

    def test_the_last_layer_read_only_where_needed_equals_the_full_one(self, data: Data, aggregator: str) -> None:
        model = model_of(data, aggregator=aggregator)
        full = deepcopy(model)
        gather = full._gather
        full._gather = lambda x, size: gather(x, "all")  # type: ignore[method-assign]
        read = data.n_users + data.n_items
        aggregate = full._aggregate
        full._aggregate = lambda index, x, around: aggregate(  # type: ignore[method-assign]
            index, x if len(x) == len(around) else full.node.weight, around
        )
        assert torch.equal(torch.cat(model.encode()), torch.cat(full.encode())[:read])

    def test_relation_parameters_do_not_reach_the_scores(self, data: Data, aggregator: str) -> None:
        model = model_of(data, aggregator=aggregator)
        value = torch.cat(model.encode()).sum()
        found = torch.autograd.grad(value, [model.relation.weight, model.projection], allow_unused=True)
        assert [*found] == [None, None]


class TestPrecision:
    def test_bf16_goes_through_in_single_precision(self) -> None:
        model = model_of()
        with torch.autocast("cpu", torch.bfloat16):
            users, items = model.encode()
            (users.sum() + items.sum()).backward()
        assert model.node.weight.grad is not None
        assert model.node.weight.grad.dtype == torch.float32


class TestTransR:
    def naive(self, model: KGAT, edges: Tensor, negatives: Tensor) -> Tensor:
        x, values, squared = model.node.weight, [], torch.tensor(0.0)
        for edge, other in zip(edges.tolist(), negatives.tolist(), strict=True):
            h, r, t = int(model.heads[edge]), int(model.relations[edge]), int(model.tails[edge])
            w, e_r = model.projection[r], model.relation.weight[r]
            head, tail, false = x[h] @ w, x[t] @ w, x[other] @ w
            g_true, g_false = (head + e_r - tail).square().sum(), (head + e_r - false).square().sum()
            values.append(-F.logsigmoid(g_false - g_true))
            squared = squared + sum(each.square().sum() for each in (x[h], x[t], x[other], e_r))
        return torch.stack(values).mean() + 0.5 * model.config.kg_l2 * squared / len(edges)

    def test_the_loss_is_the_naive_loop_with_its_gradient(self) -> None:
        model = model_of(kg_l2=0.1)
        with torch.no_grad():
            model.node.weight.mul_(3)
        draw = torch.Generator().manual_seed(0)
        edges = torch.randperm(len(model.heads), generator=draw)[:50]
        edges = edges[torch.argsort(model.relations[edges], stable=True)]  # the order that the loss works in
        negatives = torch.randint(model.n_nodes, (50,), generator=draw)
        weights = [model.node.weight, model.relation.weight, model.projection]

        def value_and_gradient(value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            return value.detach(), torch.autograd.grad(value, weights)

        (one, ours), (two, theirs) = (
            value_and_gradient(each) for each in (model._transr(edges, negatives), self.naive(model, edges, negatives))
        )
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    def test_a_pass_visits_every_edge_once_with_tails_from_all_nodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, seen, tails = model_of(kg_batch_size=17), [], []

        def record(edges: Tensor, negatives: Tensor) -> Tensor:
            seen.extend(edges.tolist())
            tails.extend(negatives.tolist())
            return torch.zeros(())

        monkeypatch.setattr(model, "_transr", record)
        for number in range(20):
            seen.clear()
            steps = list(model.auxiliary(torch.Generator().manual_seed(number)))
            assert len(steps) == math.ceil(len(model.heads) / 17)
            assert sorted(seen) == list(range(len(model.heads)))
        assert set(tails) == set(range(model.n_nodes))

    def test_it_trains_the_relations_that_ranking_does_not(self) -> None:
        model = model_of()
        for value in model.auxiliary(torch.Generator().manual_seed(0)):
            value.backward()
        for each in (model.node.weight, model.relation.weight, model.projection):
            assert each.grad is not None
            assert each.grad.any()


class TestModel:
    def test_scores_are_dot_products_of_concatenated_layers(self) -> None:
        model = model_of(layers=[4, 3])
        users, items = model.encode()
        assert users.shape == (DATA.n_users, 6 + 4 + 3)
        assert items.shape == (DATA.n_items, 6 + 4 + 3)
        norms = torch.cat([users, items])[:, 6:].split([4, 3], 1)
        for each in norms:
            torch.testing.assert_close(each.norm(dim=1), torch.ones(len(each)))

    @pytest.mark.parametrize("name", ["kgat", "structure_aware_kgat"])
    def test_the_penalty_is_on_the_vectors_of_the_users_and_the_items_of_a_batch(self, name: str) -> None:
        model = build(name, l2=0.3)
        assert isinstance(model, Collaborative)
        batch = batch_for(model)
        assert batch.items is not None
        users, items = model.node.weight[batch.users], model.node.weight[DATA.n_users + batch.items]
        expected = 0.3 * 0.5 * (users.square().sum() + items.square().sum()) / len(batch)
        torch.testing.assert_close(penalty(model, batch), expected)
        assert penalty(build(name, l2=0.0), batch) == 0

    def test_message_dropout_is_on_in_training_only(self) -> None:
        model = model_of(dropout=0.5)
        assert not torch.equal(model.train().encode()[0], model.encode()[0])
        assert torch.equal(model.eval().encode()[0], model.encode()[0])

    def test_only_parameters_are_stored(self) -> None:
        model = model_of()
        assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}

    def test_a_dataset_without_a_kg_is_refused(self) -> None:
        with pytest.raises(RrecError, match="model 'kgat' needs kg, which dataset 'tiny' does not have"):
            build("kgat", replace(DATA, kg=None))

    @pytest.mark.parametrize("least", [0, 1, 2, 4, 100])
    def test_rare_entities_are_left_out_and_items_keep_their_places(self, least: int) -> None:
        assert DATA.kg is not None
        degree = torch.bincount(torch.cat([DATA.kg.heads, DATA.kg.tails]), minlength=DATA.kg.n_entities)
        kept = [e for e in range(DATA.kg.n_entities) if e < DATA.n_items or degree[e] >= least]
        model = model_of(min_triples=least)
        assert model.n_nodes == DATA.n_users + len(kept)
        place = {entity: number + DATA.n_users for number, entity in enumerate(kept)}
        expected = sorted(
            (place[h - DATA.n_users], r, place[t - DATA.n_users])
            for h, r, t in triples(DATA)
            if min(h, t) >= DATA.n_users and {h - DATA.n_users, t - DATA.n_users} <= set(kept)
        )
        found = zip(model.heads.tolist(), model.relations.tolist(), model.tails.tolist(), strict=True)
        assert sorted(edge for edge in found if min(edge[0], edge[2]) >= DATA.n_users) == expected
        assert model.node.weight.shape[0] == model.n_nodes

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"aggregator": "mean"}, "unknown aggregator of kgat 'mean'"),
            ({"dropout": 1.5}, "dropout"),
            ({"dim": 0}, "dim"),
            ({"layers": [8, 0]}, "layers"),
            ({"kg_batch_size": 0}, "kg_batch_size"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            model_of(**changes)
