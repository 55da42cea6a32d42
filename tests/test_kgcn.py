"""KGCN against the formulas written out node by node."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, build, interactions, penalty, question
from torch import Tensor

from robustbench_rec.data import KG, Data
from robustbench_rec.errors import RrecError
from robustbench_rec.models import kgcn
from robustbench_rec.models.kgcn import AGGREGATORS, KGCN
from robustbench_rec.shifted import Shifted

USERS = torch.arange(DATA.n_users)


def model_of(data: Data = DATA, **changes: Any) -> KGCN:
    model = build("kgcn", data, **({"dim": 6, "neighbors": 3} | changes))
    assert isinstance(model, KGCN)
    return model.eval()


def three() -> Data:
    """An item, joined to one entity by relation 0, and that to another by relation 1; a second item without triples."""
    kg = KG(
        heads=torch.tensor([0, 3]),
        relations=torch.tensor([0, 1]),
        tails=torch.tensor([2, 2]),
        entity_ids=["i0", "i1", "band", "town"],
        relation_ids=["member", "lives"],
        linked=torch.tensor([True, False]),
    )
    train = interactions([0, 1], [0, 1])
    return Data("three", "", train, interactions([], []), train, ["u0", "u1"], ["i0", "i1"], kg=kg)


def vector(model: KGCN, user: int, entity: int, depth: int) -> Tensor:
    """Of an entity as a user sees it after `depth` layers, by recursion."""
    if depth == 0:
        return model.entity.weight[entity]
    u, layer = model.user.weight[user], model.layers[depth - 1]
    own = vector(model, user, entity, depth - 1)
    pi = torch.stack([(u * model.relation.weight[r]).mean() for r in model.relations[entity].tolist()]).softmax(0)
    around = [vector(model, user, each, depth - 1) for each in model.tails[entity].tolist()]
    mixed = torch.stack([p * v for p, v in zip(pi, around, strict=True)]).mean(0) * model.known[entity]
    joined = {"sum": own + mixed, "neighbor": mixed, "concat": torch.cat([own, mixed])}[model.config.aggregator]
    return (torch.tanh if depth == len(model.layers) else F.relu)(F.linear(joined, layer.weight, layer.bias))


def naive(model: KGCN, users: Tensor, items: Tensor) -> Tensor:
    depth = len(model.layers)
    return torch.stack(
        [
            torch.stack([model.user.weight[u] @ vector(model, u, i, depth) for i in row])
            for u, row in zip(users.tolist(), items.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("aggregator", AGGREGATORS)
class TestFormulas:
    def test_three_nodes_by_hand(self, aggregator: str) -> None:
        model = model_of(three(), aggregator=aggregator, dim=2, neighbors=2)
        width = 4 if aggregator == "concat" else 2
        with torch.no_grad():
            model.user.weight.copy_(torch.tensor([[1.0, 3.0], [0.0, 1.0]]))
            model.entity.weight.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4], [1.0, -1.0], [2.0, 0.0]]))
            model.layers[0].weight.copy_(torch.eye(2).repeat(1, width // 2))
        # both drawn neighbours of item 0 are the band: shares ½ + ½, and their mean halves it; item 1 has none
        around = torch.tensor([[0.5, -0.5], [0.0, 0.0]])
        own = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
        inside = around if aggregator == "neighbor" else own + around
        expected = model.user.weight @ torch.tanh(inside).T
        torch.testing.assert_close(Shifted(model)(question(model, torch.arange(2), data=three())).scores, expected)

    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("whole", [True, False])
    def test_values_and_gradients_are_those_of_the_recursion(self, aggregator: str, layers: int, whole: bool) -> None:
        model = model_of(aggregator=aggregator, layers=layers, neighbors=2)
        items = torch.arange(DATA.n_items).expand(4, -1) if whole else torch.randint(DATA.n_items, (4, 3))
        found = Shifted(model)(question(model, USERS[:4], None if whole else items)).scores
        expected = naive(model, USERS[:4], items)
        torch.testing.assert_close(found, expected)
        weights, outer = list(model.parameters()), torch.randn_like(expected)
        ours, theirs = (torch.autograd.grad(each, weights, outer, allow_unused=True) for each in (found, expected))
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two, rtol=1e-4, atol=1e-6)


class TestNeighbors:
    def test_they_are_drawn_from_the_edges_in_both_directions(self) -> None:
        assert DATA.kg is not None
        model = model_of(neighbors=4)
        triples = list(zip(DATA.kg.heads.tolist(), DATA.kg.relations.tolist(), DATA.kg.tails.tolist(), strict=True))
        edges = {*triples, *((t, r, h) for h, r, t in triples)}
        for entity in range(DATA.kg.n_entities):
            drawn = list(zip(model.relations[entity].tolist(), model.tails[entity].tolist(), strict=True))
            assert bool(model.known[entity]) == any(entity == head for head, _, _ in edges)
            if model.known[entity]:
                assert all((entity, relation, tail) in edges for relation, tail in drawn)

    def test_without_a_triple_nobody_has_any(self) -> None:
        data = three()
        assert data.kg is not None
        empty = replace(
            data, kg=replace(data.kg, **dict.fromkeys(("heads", "relations", "tails"), interactions([], []).users))
        )
        model = model_of(empty)
        assert not model.known.any()
        assert not model.n_edges
        found = Shifted(model)(question(model, torch.arange(2), None, empty)).scores
        torch.testing.assert_close(found, naive(model, torch.arange(2), torch.arange(2).expand(2, 2)))

    def test_none_comes_twice_where_there_are_enough_and_all_come_sometimes(self) -> None:
        kg = KG(
            heads=torch.zeros(9, dtype=torch.long),
            relations=torch.zeros(9, dtype=torch.long),
            tails=torch.arange(2, 11),
            entity_ids=[str(each) for each in range(11)],
            relation_ids=["r"],
            linked=torch.ones(2, dtype=torch.bool),
        )
        seen = set()
        for seed in range(30):
            drawn = kgcn._neighbors(kg, 5, seed)["tails"][0].tolist()
            assert len(set(drawn)) == 5
            seen |= set(drawn)
        assert seen == set(range(2, 11))

    def test_the_seed_of_the_config_alone_decides(self) -> None:
        one, two = build("kgcn", neighbors=2, seed=1), build("kgcn", neighbors=2, seed=2)
        other = build("kgcn", neighbors=2, seed=1, neighbor_seed=1)
        assert isinstance(one, KGCN)
        assert torch.equal(one.tails, two.tails)
        assert not torch.equal(one.tails, other.tails)


class TestAttention:
    def test_it_sums_to_one_where_there_are_neighbours_and_to_zero_elsewhere(self) -> None:
        model = model_of()
        weights = model._weights(torch.randn(5, 3), torch.arange(len(model.tails))[None])
        torch.testing.assert_close(weights.sum(-1), model.known.float().expand(5, -1))

    def test_it_is_the_users_own(self) -> None:
        model = model_of(layers=2)
        with torch.no_grad():
            model.relation.weight.mul_(20)
        items = model._items(model.user.weight @ model.relation.weight.T / 6, torch.tensor([[0]] * 12), model.encode())
        assert items.flatten(1).std(0).min() > 0

    def test_huge_interests_do_not_overflow(self) -> None:
        model = model_of()
        with torch.no_grad():
            model.relation.weight.mul_(1e6)
        assert Shifted(model)(question(model, USERS)).scores.isfinite().all()


@pytest.mark.parametrize("layers", [1, 2])
class TestCatalogue:
    def test_it_is_scored_in_portions_of_users(self, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_of(layers=layers)
        whole = Shifted(model)(question(model, USERS)).scores
        monkeypatch.setattr(kgcn, "CELLS", 1)
        torch.testing.assert_close(Shifted(model)(question(model, USERS)).scores, whole)

    def test_activations_of_portions_are_shifted_as_those_of_one(
        self, layers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, batch = model_of(layers=layers), question(model_of(), USERS)
        names = [f"sites.{each}.shift" for each in range(layers)]
        whole = Shifted(model).activations(names, batch)
        delta = {name: 0.1 * torch.randn_like(each) for name, each in whole.items()}
        expected = Shifted(model, delta)(batch).scores
        monkeypatch.setattr(kgcn, "CELLS", 1)
        parts = Shifted(model).activations(names, batch)
        for name in names:
            torch.testing.assert_close(parts[name], whole[name])
        torch.testing.assert_close(Shifted(model, delta)(batch).scores, expected)
        assert not torch.allclose(expected, Shifted(model)(batch).scores)


def test_the_penalty_is_half_the_square_of_all_tables_and_matrices() -> None:
    model = model_of(l2=0.3)
    weights = [model.user.weight, model.entity.weight, model.relation.weight, model.layers[0].weight]
    expected = 0.15 * sum(each.square().sum() for each in weights)
    torch.testing.assert_close(penalty(model, question(model, USERS)), expected)
    assert penalty(model_of(l2=0.0), question(model, USERS)) == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregator": "mean"}, "unknown aggregator of kgcn 'mean'"),
        ({"dim": 0}, "dim"),
        ({"layers": 0}, "layers"),
        ({"neighbors": 0}, "neighbors"),
        ({"neighbor_seed": -1}, "seed"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RrecError, match=message):
        model_of(**changes)


def test_a_dataset_without_a_kg_is_refused() -> None:
    with pytest.raises(RrecError, match="model 'kgcn' needs kg"):
        build("kgcn", replace(DATA, kg=None))
