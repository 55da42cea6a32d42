"""Structure-aware attention against dense algebra, other people's graph code and its own limits."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from conftest import DATA, build, interactions, make_data, moved, question
from torch import Tensor

from robustbench_rec.data import KG, Data
from robustbench_rec.errors import RrecError
from robustbench_rec.models import _structure
from robustbench_rec.models._structure import STRUCTURE
from robustbench_rec.models.structure_aware_kgat import StructureAwareKGAT, _Attend
from robustbench_rec.shifted import Shifted

USERS = torch.arange(DATA.n_users)
NO_KG = replace(
    DATA,
    kg=KG(
        *torch.empty(3, 0, dtype=torch.long),
        entity_ids=[f"i{each}" for each in range(DATA.n_items)],
        relation_ids=[],
        linked=torch.zeros(DATA.n_items, dtype=torch.bool),
    ),
)


def model_of(data: Data = DATA, **changes: Any) -> StructureAwareKGAT:
    model = build("structure_aware_kgat", data, **({"dim": 6, "dropout": 0.0, "layers": 2} | changes))
    assert isinstance(model, StructureAwareKGAT)
    return model


def scores(model: StructureAwareKGAT) -> Tensor:
    return Shifted(model.eval())(question(model, USERS)).scores


def dense(model: StructureAwareKGAT, data: Data) -> Tensor:
    """Final vectors of all nodes by loops over edges, written down from the docstring."""
    x = model.node.weight
    kept = [x]
    for attention, hop in zip(model.attentions, model.updates, strict=True):
        logits = []
        for edge, (h, r, t) in enumerate(zip(*(each.tolist() for each in model.directed), strict=True)):
            joined = torch.cat([attention.project(x[h]), attention.project(x[t]), model.relation.weight[r]])
            logit = F.leaky_relu(attention.score(joined))
            if attention.structure is not None:
                logit = logit + attention.structure(model.feature_structure[edge])
            logits.append(logit)
        around = torch.zeros_like(x)
        for head in model.heads.unique().tolist():
            mine = (model.heads == head).nonzero().squeeze(1)
            shares = torch.cat(logits)[mine].softmax(0)
            around = around.index_put((torch.tensor([head]),), hop.value(shares @ x[model.tails[mine]])[None])
        x = hop.norm(F.leaky_relu(hop.sum(x + around)) + F.leaky_relu(hop.product(x * around)))
        kept.append(x / x.norm(dim=1, keepdim=True))
    if model.mixture is None:
        return torch.cat(kept, 1)
    return sum(share * each for share, each in zip(model.mixture.softmax(0), kept, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("layers", "structure", "readout"), [(1, True, "concat"), (2, True, "weighted"), (2, False, "concat")]
)
def test_values_and_gradients_are_those_of_the_formulas(layers: int, structure: bool, readout: str) -> None:
    model = model_of(layers=layers, structure=structure, readout=readout)
    if model.mixture is not None:
        torch.nn.init.normal_(model.mixture)
    expected = dense(model, DATA)[: DATA.n_users + DATA.n_items]
    found = torch.cat(model.encode())
    torch.testing.assert_close(found, expected)
    weights, outer = list(model.parameters()), torch.randn_like(expected)
    for one, two in zip(*(torch.autograd.grad(each, weights, outer) for each in (found, expected)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_without_a_knowledge_graph_it_is_attention_over_the_users_items_and_the_items_users() -> None:
    model = model_of(NO_KG, layers=1, structure=False)
    clicks = torch.zeros(DATA.n_users, DATA.n_items, dtype=torch.bool)
    clicks[DATA.train.users, DATA.train.items] = True
    x, attention, hop = model.node.weight, model.attentions[0], model.updates[0]
    users, items = x[: DATA.n_users], x[DATA.n_users :]
    expected = []
    for relation, ends, others, mask in ((0, users, items, clicks), (1, items, users, clicks.T)):
        v = attention.score.weight[0].split(6)
        logits = (ends @ attention.project.weight.T @ v[0])[:, None] + others @ attention.project.weight.T @ v[1]
        logits = F.leaky_relu(logits + model.relation.weight[relation] @ v[2]).masked_fill(~mask, -torch.inf)
        around = logits.softmax(1).nan_to_num() @ others @ hop.value.weight.T
        out = hop.norm(F.leaky_relu(hop.sum(ends + around)) + F.leaky_relu(hop.product(ends * around)))
        expected.append(torch.cat([ends, F.normalize(out, dim=1)], 1))
    torch.testing.assert_close(torch.cat(model.encode()), torch.cat(expected))
    assert set(model.relations.tolist()) == {0, 1}


@pytest.mark.parametrize("neighbors", [None, 2])
@pytest.mark.parametrize("layer", [0, 1])
def test_attention_sums_to_one_over_the_edges_of_every_head(layer: int, neighbors: int | None) -> None:
    model = model_of(neighbors=neighbors)
    found = model.shares()[layer]
    assert found.shape == model.directed[0].shape
    assert not found.requires_grad
    total = torch.zeros(model.n_nodes).index_add(0, model.heads, found)
    degree = torch.bincount(model.heads, minlength=model.n_nodes)
    torch.testing.assert_close(total, (degree > 0).float())
    assert (degree == 0).any()  # a lonely entity is among the nodes


def test_huge_logits_do_not_overflow() -> None:
    model = model_of()
    with torch.no_grad():
        model.relation.weight.mul_(1e6)
    assert scores(model).isfinite().all()


def test_the_names_of_entities_do_not_matter() -> None:
    assert DATA.kg is not None
    model, n = model_of(), DATA.n_items
    others = n + torch.randperm(DATA.kg.n_entities - n)  # items stay the first entities
    place = torch.cat([torch.arange(n), others])
    order = torch.randperm(len(DATA.kg))
    heads, relations, tails = (each[order] for each in (place[DATA.kg.heads], DATA.kg.relations, place[DATA.kg.tails]))
    again = model_of(replace(DATA, kg=replace(DATA.kg, heads=heads, relations=relations, tails=tails)))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        again.node.weight[DATA.n_users + place] = model.node.weight[DATA.n_users :]
    torch.testing.assert_close(scores(again), scores(model))


def test_without_structure_it_is_the_model_whose_structural_weights_are_zero() -> None:
    plain, aware = model_of(structure=False), model_of(structure=True)
    aware.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(scores(aware), scores(plain))
    with torch.no_grad():
        for each in aware.attentions:
            each.structure.weight.zero_()
    torch.testing.assert_close(scores(aware), scores(plain))
    assert not any("structure" in name for name, _ in (*plain.named_parameters(), *plain.named_buffers()))


def test_messages_are_dropped_before_the_norm() -> None:
    hop, x = model_of(dim=32, dropout=0.4).updates[0].train(), torch.randn(50, 32)
    found = hop(x, x)
    assert not torch.equal(hop(x, x), found)
    torch.testing.assert_close(found.mean(1), torch.zeros(50), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(50), rtol=1e-3, atol=0)


def test_gradients_flow_through_the_attention() -> None:
    model = model_of(layers=1)
    found = torch.autograd.grad(scores(model).square().sum(), [model.relation.weight, *model.attentions.parameters()])
    assert all(bool(each.any()) for each in found)


class TestAttend:
    @pytest.mark.parametrize("scale", [1.0, 30.0])
    def test_its_gradient_is_that_of_finite_differences(self, scale: float) -> None:
        torch.manual_seed(0)
        heads, tails = torch.tensor([0, 0, 0, 2, 2, 3]), torch.tensor([1, 1, 3, 0, 4, 2])  # (0, 1) twice, row 1 empty
        starts, order = torch.tensor([0, 3, 3, 5, 6]), tails.argsort(stable=True)
        ends = F.pad(torch.bincount(tails, minlength=5).cumsum(0), (1, 0))
        logits = (scale * torch.randn(6, dtype=torch.float64)).requires_grad_()
        x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        graph = (heads, tails, starts, order, ends)
        assert torch.autograd.gradcheck(lambda a, b: _Attend.apply(a, b, graph), (logits, x))  # type: ignore[no-untyped-call]

    def test_reduced_precision_goes_through_in_single(self) -> None:
        model = model_of()
        with torch.autocast("cpu", torch.bfloat16):
            users, items = model.encode()
            (users.sum() + items.sum()).backward()
        torch.testing.assert_close(torch.cat([users, items]).float(), torch.cat(model.encode()), rtol=0.1, atol=0.1)
        assert model.node.weight.grad is not None
        assert model.node.weight.grad.dtype == torch.float32


class TestStructure:
    def graph(self, data: Data = DATA) -> tuple[StructureAwareKGAT, Any]:
        model = model_of(data)
        heads, _, tails = (each.numpy() for each in model.directed)
        matrix = scipy.sparse.csr_matrix((np.ones(len(heads)), (heads, tails)), shape=(model.n_nodes, model.n_nodes))
        matrix.data[:] = 1  # several relations of a pair are one edge
        return model, matrix

    @pytest.mark.parametrize("expanded", [1, 50, 2**22])
    def test_overlaps_are_those_of_the_squared_adjacency_matrix(
        self, expanded: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, matrix = self.graph()
        monkeypatch.setattr(_structure, "EXPANDED", expanded)
        heads, _, tails = model.directed
        jaccard, adamic_adar = _structure._overlap(
            heads, tails, model.n_nodes, torch.ones_like(heads, dtype=torch.bool)
        )
        heads, tails = np.array(heads.tolist()), np.array(tails.tolist())
        degree = np.asarray(matrix.sum(1)).ravel()
        common = np.asarray((matrix @ matrix)[heads, tails]).ravel()
        weights = scipy.sparse.diags([1 / math.log(max(each, 2)) for each in degree])
        np.testing.assert_allclose(jaccard, common / (degree[heads] + degree[tails] - common), rtol=1e-5)
        np.testing.assert_allclose(
            adamic_adar, np.asarray((matrix @ weights @ matrix)[heads, tails]).ravel(), rtol=1e-5
        )
        assert jaccard.max() > 0

    def test_features_are_standardised_over_the_edges(self) -> None:
        phi = model_of().feature_structure
        torch.testing.assert_close(phi.mean(0), torch.zeros(len(STRUCTURE)), atol=1e-5, rtol=0)
        torch.testing.assert_close(phi.std(0, correction=0), torch.ones(len(STRUCTURE)))

    def test_degrees_and_frequencies_are_logarithms_of_counts(self) -> None:
        model, _ = self.graph()
        degree = torch.bincount(model.heads, minlength=model.n_nodes)[model.tails].float().log()
        frequency = torch.bincount(model.relations)[model.relations].float().log()
        for column, counted in zip(model.feature_structure[:, :2].T, (degree, frequency), strict=True):
            torch.testing.assert_close(column, (counted - counted.mean()) / counted.std(correction=0))

    def test_what_is_equal_everywhere_is_zero(self) -> None:
        phi = model_of(NO_KG).feature_structure  # users and items alone make no triangle
        assert not phi[:, STRUCTURE.index("jaccard")].any()
        assert not phi[:, STRUCTURE.index("adamic_adar")].any()
        assert phi[:, STRUCTURE.index("degree")].any()


class TestGraph:
    def test_test_events_are_no_edges(self) -> None:
        other = replace(DATA, test=interactions([0], [0]), valid=interactions([1], [0]))
        assert torch.equal(model_of(other).tails, model_of(DATA).tails)

    def test_every_edge_has_its_inverse(self) -> None:
        model = model_of()
        half = model.n_relations // 2
        edges = list(zip(*(each.tolist() for each in model.directed), strict=True))
        assert all((t, r + half if r < half else r - half, h) in edges for h, r, t in edges)
        assert DATA.kg is not None
        assert len(edges) == 2 * (len(DATA.train) + len(DATA.kg))

    @pytest.mark.parametrize("count", [1, 3])
    def test_a_sample_keeps_so_many_edges_of_a_node_and_all_of_those_that_have_fewer(self, count: int) -> None:
        full, some = model_of(neighbors=None), model_of(neighbors=count)
        degree, kept = (torch.bincount(each.heads, minlength=each.n_nodes) for each in (full, some))
        assert torch.equal(kept, degree.clamp_max(count))
        before, after = (
            set(
                zip(
                    *(each.tolist() for each in model.directed),
                    map(tuple, model.feature_structure.tolist()),
                    strict=True,
                )
            )
            for model in (full, some)
        )
        assert after < before  # with the features that they had

    def test_the_sample_is_that_of_its_seed(self) -> None:
        one, two, other = (model_of(neighbors=2, neighbor_seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one.tails, two.tails)
        assert not torch.equal(one.tails, other.tails)


def test_a_shifted_structure_reaches_the_scores() -> None:
    model = model_of(layers=1)
    delta = {"feature_structure": torch.randn_like(model.feature_structure)}
    found = Shifted(model.eval(), delta)(question(model, USERS)).scores
    torch.testing.assert_close(found, scores(moved(model, delta)))  # type: ignore[arg-type]
    assert not torch.allclose(found, scores(model))


def test_a_larger_graph_is_propagated_like_a_small_one() -> None:
    data = make_data(n_users=40, n_items=60, train=12, seed=3)
    model = model_of(data)
    torch.testing.assert_close(torch.cat(model.encode()), dense(model, data)[: 40 + 60], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readout": "last"}, "unknown readout of structure_aware_kgat 'last'"),
        ({"dropout": 1.0}, "dropout"),
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
