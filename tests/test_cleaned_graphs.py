"""Cleaning of the edges that a model propagates along."""

from dataclasses import replace

import pytest
import torch
from conftest import Fixed, build, buildable, question
from fakes import GENUINE, find, step

from robustbench_rec.clean import cleaned
from robustbench_rec.cleans.graphda import GraphDA, rebuilt
from robustbench_rec.cleans.rgcf import structural
from robustbench_rec.data import Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import clicked, edges_of, normalised
from robustbench_rec.models import models
from robustbench_rec.shifted import Shifted


class TestGraph:
    def test_rgcf_drops_the_least_alike_and_a_user_keeps_an_edge(self) -> None:
        users, _items = clicked(GENUINE)
        found = find("rgcf", GENUINE, share=0.3)
        assert found.edges.shape[1] == len(users) - round(0.3 * len(users))
        assert not found.removed.any()
        extreme = find("rgcf", GENUINE, share=0.99)
        assert torch.unique(extreme.edges[0]).tolist() == list(range(60))

    def test_its_likeness_is_the_cosine_of_audiences(self) -> None:
        users, items = clicked(GENUINE)
        matrix = torch.zeros(60, 50, dtype=torch.double).index_put_((users, items), torch.ones(1, dtype=torch.double))
        share = matrix / matrix.sum(0).clamp_min(1).sqrt()
        expected = []
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            audience = matrix[:, item].clone()
            own = (share[:, matrix[user] > 0]).sum(1) - share[:, item]
            audience[user] = 0
            expected.append(torch.nn.functional.cosine_similarity(audience, own, dim=0))
        torch.testing.assert_close(structural(users, items, 60, 50), torch.stack(expected))

    def test_the_portions_of_its_likeness_fit_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = structural(*clicked(GENUINE), 60, 50)
        monkeypatch.setattr("robustbench_rec.cleans.rgcf.CELLS", 7 * 60)
        torch.testing.assert_close(structural(*clicked(GENUINE), 60, 50), whole)

    def test_it_finds_edges_across_communities(self) -> None:
        draw = torch.Generator().manual_seed(0)
        together = (torch.arange(60)[:, None] < 30) == (torch.arange(40) < 20)
        inside = (torch.rand(60, 40, generator=draw) < 0.5) & together
        across = (torch.rand(60, 40, generator=draw) < 0.03) & ~together
        users, items = (inside | across).nonzero().unbind(1)
        train = Interactions(users, items, torch.ones(len(users)))
        data = replace(GENUINE, train=train, item_ids=GENUINE.item_ids[:40], item_table=None)
        wrong = across[users, items]
        found = find("rgcf", data, share=float(wrong.float().mean()))
        left = torch.isin(users * 40 + items, found.edges[0] * 40 + found.edges[1])
        assert (~left & wrong).sum() > 0.9 * wrong.sum()

    def test_where_users_stand_does_not_say_which_of_many_alike_go(self) -> None:
        """Every user has an item of its own, whose edge is like nothing: all these are level."""
        users = torch.arange(60).repeat_interleave(2)
        items = torch.stack([torch.arange(60) + 5, torch.arange(60) % 5], 1).flatten()
        train = Interactions(users, items, torch.ones(120))
        data = replace(GENUINE, train=train, item_ids=[f"i{each}" for each in range(65)], item_table=None)
        edges = find("rgcf", data, share=0.25).edges
        lost = 2 - torch.bincount(edges[0], minlength=60)
        assert lost.sum() == 30
        assert 5 < lost[:30].sum() < 25

    def test_models_on_a_graph_have_the_edges_and_learn_from_all_events(self) -> None:
        data, _ = cleaned(GENUINE, [step("rgcf", share=0.3)])
        assert data.edges is not None
        assert len(data.train) == len(GENUINE.train)
        for name in ("lightgcn", "kgat", "structure_aware_kgat"):
            assert build(name, data).n_edges == build(name, GENUINE).n_edges - 216
        one, two = (build("structure_aware_kgat", each).eval() for each in (data, GENUINE))
        asked = question(one, torch.arange(60), None, GENUINE)
        assert not torch.equal(Shifted(one)(asked).scores, Shifted(two)(asked).scores)
        assert len(edges_of(data)[0]) == len(edges_of(GENUINE)[0]) - 216
        dense = normalised(data).csr.dense(110)
        torch.testing.assert_close(dense, dense.T)

    @pytest.mark.parametrize("name", [each for each in models if buildable(each)])
    def test_models_say_whether_they_read_the_graph(self, name: str) -> None:
        data, _ = cleaned(GENUINE, [step("rgcf", share=0.3)])
        one, two = (dict(build(name, each).named_buffers()) for each in (data, GENUINE))
        alike = one.keys() == two.keys() and all(torch.equal(each, two[key]) for key, each in one.items())
        assert alike != models[name].reads_graph

    def test_a_step_after_it_is_refused(self) -> None:
        with pytest.raises(RrecError, match="clean=rules follows a step that changes the graph"):
            cleaned(GENUINE, [step("rgcf"), step("rules")])


@pytest.mark.parametrize("cells", [1, 2**25])
@pytest.mark.parametrize("threshold", [None, 2.0])
def test_graphda_takes_the_best_of_every_row_and_column(
    cells: int, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(GENUINE.n_users, GENUINE.n_items, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("robustbench_rec.cleans.graphda.CELLS", cells)
    config = GraphDA.Config(ckpt=None, items=3, users=4, threshold=threshold)
    wanted = set()
    for user, row in enumerate(scores.tolist()):
        wanted |= {(user, item) for item in sorted(range(len(row)), key=lambda item: -row[item])[:3]}
    for item, column in enumerate(scores.T.tolist()):
        wanted |= {(user, item) for user in sorted(range(len(column)), key=lambda user: -column[user])[:4]}
    wanted = {(user, item) for user, item in wanted if threshold is None or scores[user, item] > threshold}
    found = rebuilt(Shifted(Fixed(scores)), GENUINE, config)
    assert [tuple(each) for each in found.T.tolist()] == sorted(wanted)
