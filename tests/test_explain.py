"""rrec explain: what is left out really is left out, paths are in the graph, and faithfulness is what it says."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, build, configured, make_data
from torch import Tensor

from robustbench_rec import checkpoint, launch
from robustbench_rec.attack import Attack
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch, History
from robustbench_rec.clean import cleaned
from robustbench_rec.cleans import cleans
from robustbench_rec.data import KG, Data
from robustbench_rec.errors import RrecError
from robustbench_rec.explanation import Paths, Units, faithfulness, units
from robustbench_rec.graph import clicked
from robustbench_rec.model import RecModel
from robustbench_rec.recommendation import Recommender
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.explain import _attacked, _materialised

USER, ITEM = 3, 6
KGS: dict[str, dict[str, Any]] = {
    "kgat": {"dim": 8, "layers": [8, 8], "min_triples": 0},
    "kgcn": {"dim": 8, "layers": 2, "neighbors": 4},
    "structure_aware_kgat": {"dim": 8, "layers": 2},
}


def small(name: str, data: Data = DATA, **changes: Any) -> RecModel:
    model = build(name, data, **{**KGS.get(name, {}), **changes}).eval().requires_grad_(False)
    model.refresh()
    return model


def asked(model: RecModel, data: Data = DATA, **options: Any) -> Recommender:
    return Recommender(Shifted(model), data, **options)


def of(name: str, *, by: str | None = None, item: int = ITEM, hops: int = 2, **changes: Any) -> Units:
    return units(asked(small(name, **changes)), USER, item, by, hops=hops)


def rebuilt(model: RecModel, name: str, data: Data) -> RecModel:
    """The same parameters on other data."""
    found = small(name, data)
    found.load_state_dict(model.state_dict())
    found.refresh()
    return found


EVENTS = ["sasrec", "gru4rec", "stosa", "itemknn", "ease", "deepcf_mlp", "lightgcn", "kgat", "mf", "neumf"]


@pytest.mark.parametrize("name", EVENTS)
def test_with_all_events_the_score_is_the_models_own(name: str) -> None:
    found = of(name, by="events")
    own = found.asked.at(found.asked.question(found.users)).scores
    kept = torch.ones(1, len(found), dtype=torch.bool)
    if found.note is None:
        torch.testing.assert_close(found.scores(kept), own, rtol=1e-4, atol=1e-5)
    else:
        assert "learnt again" in found.note


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "stosa", "multi_intent_gaussian", "comirec"])
def test_removal_of_an_event_is_the_score_of_the_shorter_history(name: str) -> None:
    found = of(name)
    whole = found.asked.question(found.users).history
    assert whole is not None
    items = whole.items[0].tolist()
    assert len(found) == len(items)

    def score(history: list[int]) -> float:
        read = History(torch.tensor([history]), torch.tensor([len(history)]))
        return float(found.asked.at(Batch.unlabelled(found.users, history=read)).scores[0, ITEM])

    expected = [score(items) - score(items[:place] + items[place + 1 :]) for place in range(len(items))]
    torch.testing.assert_close(found.removal(), torch.tensor(expected), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(found.removal(torch.tensor([2, 0])), found.removal()[[2, 0]], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["itemknn", "ease", "deepcf_mlp", "lightgcn", "kgat", "structure_aware_kgat"])
def test_removal_of_a_training_event_is_the_score_without_it(name: str) -> None:
    found, model = of(name, by="events"), small(name)
    users, items = clicked(DATA)
    own = (users == USER).nonzero().squeeze(1)
    assert found.said == [found.names.item(each) for each in items[own].tolist()]
    full = Shifted(model)(Batch.unlabelled(found.users)).scores[0, ITEM]
    for place in range(len(own)):
        gone = (DATA.train.users == USER) & (DATA.train.items == items[own[place]])
        without = rebuilt(model, name, replace(DATA, train=DATA.train.where(~gone)))
        if name == "kgat":  # the attention of what is left is that of the whole graph, normalised again
            without.refresh()
        score = Shifted(without)(Batch.unlabelled(found.users)).scores[0, ITEM]
        torch.testing.assert_close(found.removal()[place], full - score, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "multi_intent_gaussian", "lightgcn", "kgat"])
def test_gradient_times_input_is_the_slope_of_the_score(name: str) -> None:
    found = of(name, by="events", **({"score": "probit"} if name == "multi_intent_gaussian" else {}))
    if found.asked.model.window:
        found.asked.model.double()
    slopes = found.slopes()
    assert slopes is not None
    step = 1e-3 if name in ("lightgcn", "kgat") else 1e-4
    if not found.asked.model.window:
        edges = found.edges  # type: ignore[attr-defined]
        for place, edge in enumerate(edges.tolist()):
            scores = []
            for sign in (1, -1):
                weights = torch.ones(found.asked.model.n_edges)
                weights[edge] += sign * step
                at = Shifted(found.asked.model).weighed(weights)
                scores.append(at(found.asked.question(found.users)).scores[0, ITEM])
            assert slopes[place].item() == pytest.approx(
                float((scores[0] - scores[1]) / (2 * step)), rel=0.02, abs=1e-3
            )
    else:
        from robustbench_rec.edits import lookups

        for place in range(len(found)):
            scores = []
            for sign in (1, -1):

                def scaled(_: Any, args: Any, out: Tensor, at: int = place, by: float = 1 + sign * step) -> Tensor:
                    moved = out.clone()
                    moved[:, at] *= by
                    return moved

                hooks = [each.register_forward_hook(scaled) for each in lookups(found.asked.model)]
                scores.append(Shifted(found.asked.model)(found.asked.question(found.users)).scores[0, ITEM])
                for hook in hooks:
                    hook.remove()
            assert slopes[place].item() == pytest.approx(
                float((scores[0] - scores[1]) / (2 * step)), rel=1e-3, abs=1e-8
            )


@pytest.mark.parametrize("name", ["itemknn", "ease"])
def test_in_a_linear_model_gradient_and_removal_agree(name: str) -> None:
    found = of(name)
    torch.testing.assert_close(found.slopes(), found.removal(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", KGS)
class TestPaths:
    def paths(self, name: str) -> list[Paths]:
        recommender = asked(small(name))
        found = [units(recommender, user, item, None, hops=2) for user in (1, USER) for item in range(0, 20, 3)]
        assert any(len(each) for each in found)
        return [each for each in found if isinstance(each, Paths)]

    def test_paths_exist_in_the_graph_and_join_the_history_to_the_item(self, name: str) -> None:
        assert DATA.kg is not None
        kg = DATA.kg
        triples = set(zip(kg.heads.tolist(), kg.relations.tolist(), kg.tails.tolist(), strict=True))
        triples |= {(tail, relation, head) for head, relation, tail in triples}
        pairs = set(zip(*(each.tolist() for each in clicked(DATA)), strict=True))
        for each in self.paths(name):
            for path in each.best(50):
                assert path.nodes[-1] == each.item
                assert (each.user, path.nodes[0]) in pairs
                assert len(set(path.nodes)) == len(path.nodes) <= 3
                for head, relation, tail in zip(path.nodes[:-1], path.relations, path.nodes[1:], strict=True):
                    assert (head, kg.relation_ids.index(relation), tail) in triples
                    assert relation in path.said
                assert path.said.startswith(f"you had {each.names.item(path.nodes[0])} ")
                assert path.said.endswith(each.names.item(each.item))

    def test_no_path_is_missed_and_its_score_is_the_product_of_the_attention(self, name: str) -> None:
        for each in self.paths(name):
            graph, ends = each.graph, set(clicked(DATA)[1][clicked(DATA)[0] == each.user].tolist()) - {each.item}
            edges = list(zip(graph.heads.tolist(), graph.tails.tolist(), range(len(graph.heads)), strict=True))
            near: dict[int, list[tuple[int, int]]] = {}
            for head, tail, edge in edges:
                near.setdefault(head, []).append((tail, edge))
            expected = []
            for first, edge in near.get(each.item, []):
                if first in ends:
                    expected.append(graph.layers[0][edge].item() * self.own(each, first))
                for second, other in near.get(first, []):
                    if second in ends and first != each.item and second != first:
                        product = graph.layers[1][edge] * graph.layers[0][other]
                        expected.append(product.item() * self.own(each, second))
            expected = sorted(value for value in expected if value > 0)
            assert each.values.sort().values.tolist() == pytest.approx(expected, rel=1e-4)

    def test_of_paths_through_the_same_entities_the_best_is_told(self, name: str) -> None:
        found, parallel = self.paths(name), 0
        for each in found:
            best = each.best(1000)
            assert len({path.nodes for path in best}) == len(best)
            assert sum(1 + path.parallel for path in best) == len(each.values)
            assert [path.score for path in best] == sorted((path.score for path in best), reverse=True)
            parallel += sum(path.parallel for path in best)
            told = set(each.explained(each.importance("removal").argsort(), 1000).tolist())
            assert told == set(range(len(each)))
        assert parallel  # the graph joins 0 and 1 twice

    def own(self, each: Paths, item: int) -> float:
        return 1.0 if each.graph.owned is None else each.graph.owned[item].item()

    def test_the_attention_of_a_node_sums_to_at_most_one(self, name: str) -> None:
        graph = small(name).relational(USER)
        for layer in graph.layers:
            total = torch.zeros(len(graph.names)).index_add(0, graph.heads, layer)
            assert total.max() <= 1 + 1e-5
            assert layer.min() >= 0

    def test_nothing_left_out_is_the_models_own_score_and_something_changes_it(self, name: str) -> None:
        each = next(each for each in self.paths(name) if len(each) > 1)
        own = each.asked.at(each.asked.question(each.users)).scores
        scores = each.scores(torch.tensor([[True] * len(each), [False] * len(each)]))
        torch.testing.assert_close(scores[:1], own, rtol=1e-4, atol=1e-5)
        assert (scores[1] - scores[0]).abs().max() > 1e-6
        torch.testing.assert_close(each.asked.at(each.asked.question(each.users)).scores, own)  # the model stays


@pytest.mark.parametrize(
    ("name", "changes"),
    [("structure_aware_kgat", {"structure": True}), ("structure_aware_kgat", {"structure": False}), ("kgat", {})],
    ids=str,
)
def test_a_triple_that_is_left_out_is_the_graph_without_it(name: str, changes: dict[str, Any]) -> None:
    model = small(name, **changes)
    found = Paths(asked(model), USER, next(iter(_with_paths(model))), hops=2)
    kg, n = DATA.kg, len(found)
    assert kg is not None
    for unit in range(min(n, 3)):
        edge = int(found.used[found.unit == unit][0])
        graph = found.graph
        head, relation, tail = (int(each[edge]) for each in (graph.heads, graph.relations, graph.tails))
        there = (kg.heads == head) & (kg.tails == tail) | (kg.heads == tail) & (kg.tails == head)
        gone = there & (kg.relations == relation)
        assert bool(gone.any())
        left = KG(kg.heads[~gone], kg.relations[~gone], kg.tails[~gone], kg.entity_ids, kg.relation_ids, kg.linked)
        other = small(name, replace(DATA, kg=left), **changes)
        other.load_state_dict(model.state_dict())
        other.refresh()
        kept = torch.ones(1, n, dtype=torch.bool).index_fill(1, torch.tensor([unit]), False)
        expected = Shifted(other)(Batch.unlabelled(found.users)).scores
        torch.testing.assert_close(found.scores(kept), expected, rtol=1e-3, atol=1e-5)


def _with_paths(model: RecModel) -> list[int]:
    return [each for each in range(20) if len(units(asked(model), USER, each, "paths", hops=2)) > 1]


@pytest.mark.parametrize(
    ("name", "attack"), [("sasrec", "history"), ("mf", "rank_autoattack"), ("lstm_text", "hotflip")]
)
def test_an_attack_that_makes_no_one_model_for_all_is_refused(name: str, attack: str) -> None:
    changes = {"min_count": 1} if name == "lstm_text" else {}
    recommender, cfg = (
        asked(small(name, **changes)),
        SimpleNamespace(attack=configured("attack", attack), part=None, k=5),
    )
    with pytest.raises(RrecError, match=f"attack={attack}: explanations are compared with those of one attacked model"):
        _attacked(cfg, recommender, units(recommender, USER, ITEM, None, hops=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lightgcn", *KGS])
@pytest.mark.parametrize("op", ["drop", "rewire"])
def test_a_model_with_other_edges_is_explained_as_it_was_attacked(name: str, op: str) -> None:
    if (name, op) == ("kgcn", "rewire"):
        pytest.skip("nothing can be added to drawn neighbours")
    model, batch = small(name), Batch.unlabelled(torch.arange(DATA.n_users))
    built = attacks.build(configured("attack", "edges", op=op, guide="random", share=0.3)).prepared(model, DATA)
    assert isinstance(built, Attack)
    point, _ = built(Shifted(model), batch, lambda at, batch: torch.zeros(()))
    scores = Shifted(_materialised(point))(batch).scores
    torch.testing.assert_close(scores, point(batch).scores)
    assert not torch.allclose(scores, Shifted(model)(batch).scores)


def test_a_slot_of_kgcn_that_is_left_out_takes_no_weight() -> None:
    model = small("kgcn")
    graph = model.relational(USER)
    gone = torch.zeros(len(graph.heads), dtype=torch.bool)
    gone[::3] = True
    for key, each in model.without(gone).items():
        setattr(model, key, each)
    after = model.relational(USER).layers[0]
    assert bool((after[gone] == 0).all())
    total = torch.zeros(len(graph.names)).index_add(0, graph.heads, after)
    assert bool((((total - 1).abs() < 1e-5) | (total == 0)).all())


@pytest.mark.parametrize("name", ["lstm_text"])
def test_words_are_left_out_of_the_text_that_is_read(name: str) -> None:
    changes = {"min_count": 1}
    model = small(name, **changes)
    found = units(asked(model), USER, ITEM, "words", hops=2)
    table = DATA.item_table
    assert table is not None
    words = table["title"].iloc[ITEM].split()
    assert [each.removesuffix(" (title)") for each in found.said if "genres" not in each] == words
    full = Shifted(model)(Batch.unlabelled(found.users)).scores[0, ITEM]
    for place, word in enumerate(words):
        left = " ".join(each for number, each in enumerate(words) if number != place)
        edited = table.assign(title=[left if row == ITEM else text for row, text in enumerate(table["title"])])
        codes = model.text_reader(DATA).read(edited.iloc[[ITEM]])
        buffers = {key: getattr(model, key).clone() for key in codes}
        for key, each in codes.items():
            getattr(model, key)[ITEM] = each[0]
        score = Shifted(model)(Batch.unlabelled(found.users)).scores[0, ITEM]
        for key, each in buffers.items():
            setattr(model, key, each)
        torch.testing.assert_close(found.removal()[place], full - score, rtol=1e-4, atol=1e-6)
        assert word in found.said[place]


@pytest.mark.parametrize("name", ["lstm_text"])
def test_words_that_a_sanitiser_takes_out_are_left_out_too(name: str) -> None:
    table = DATA.item_table
    assert table is not None
    twice = replace(DATA, item_table=table.assign(title="sea song sea", genres=""))
    data, _ = cleaned(twice, [cleans.build(configured("clean", "sanitise"))])
    model = small(name, data, min_count=1, text_columns=["title"])
    kept = torch.tensor([[True, False, True], [True, False, False]])
    found, plain = (units(asked(model, each), USER, ITEM, "words", hops=2) for each in (data, twice))
    one, other = found.scores(kept)[:, ITEM].tolist()
    assert one == other
    one, other = plain.scores(kept)[:, ITEM].tolist()
    assert one != other


class Additive(Units):
    """Each unit adds what it is worth to the item's score; the others have 0.5 times their index."""

    kind = "events"

    def __init__(self, worth: Tensor) -> None:
        super().__init__(asked(small("mf"), part="valid"), USER, ITEM)
        self.worth, self.said = worth, [str(each) for each in range(len(worth))]

    def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
        others = 0.5 * torch.arange(DATA.n_items).repeat(len(kept), 1)
        others[:, ITEM] = (kept * self.worth).sum(1)
        return others


@pytest.mark.parametrize("name", ["kgat", "structure_aware_kgat", "kgcn"])
def test_paths_alone_leave_no_other_triple(name: str) -> None:
    found = of(name, hops=2)
    assert isinstance(found, Paths)
    every = torch.ones(1, len(found), dtype=torch.bool)
    gone = torch.ones(len(found.graph.heads), dtype=torch.bool)
    gone[found.used] = False
    assert bool(gone.any())
    model = deepcopy(found.asked.model)
    for key, buffer in model.without(gone).items():
        setattr(model, key, buffer)
    expected = Shifted(model)(found.asked.question(found.users)).scores
    torch.testing.assert_close(found.scores(every, alone=True), expected)
    assert not torch.equal(found.scores(every), expected)


def test_what_is_found_again_does_not_depend_on_what_stands_beside_it() -> None:
    data = make_data(n_users=12, n_items=40, train=12)
    found = units(asked(small("neumf", data), data), 3, 6, "events", hops=2)
    assert len(found) == 12
    together = found.removal()
    each = torch.stack([found.removal(torch.tensor([place]))[0] for place in range(len(found))])
    assert torch.equal(together, each)


def test_faithfulness_of_an_additive_score_is_known() -> None:
    worth = torch.tensor([5.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    found = Additive(worth)
    assert found.removal().tolist() == worth.tolist()
    order = worth.argsort(descending=True, stable=True)
    measured = faithfulness(found, order, order[:2], k=3, draws=200, seed=0)
    assert (measured.score, measured.units, measured.sparsity) == (10.0, 10, 0.8)
    assert measured.comprehensiveness == 9
    assert measured.sufficiency == 1
    assert measured.ejected == 1  # 10 is above all of 0 … 9.5, 1 is not
    assert measured.rank == 1
    assert measured.deletion == pytest.approx((10 + 5 + 5 + 1 + 1) / 20)  # trapezoids
    assert measured.insertion == pytest.approx(10 - measured.deletion)
    assert measured.deletion_random == pytest.approx(5, abs=0.3)
    assert measured.insertion_random == pytest.approx(5, abs=0.3)


def test_a_random_order_is_none_of_the_explanation() -> None:
    found = Additive(torch.tensor([5.0, 4.0, 1.0, 0.5, 0.25]))
    measured = faithfulness(found, torch.arange(5), torch.arange(2), k=3, draws=1, seed=4)
    drawn = torch.randperm(5, generator=torch.Generator().manual_seed(4))
    again = faithfulness(found, drawn, torch.arange(2), k=3, draws=1, seed=0)
    assert drawn.tolist() != list(range(5))
    assert (measured.deletion_random, measured.insertion_random) == (again.deletion, again.insertion)
    assert measured.deletion_random != measured.deletion


def test_the_rank_is_among_what_the_user_has_not_had_and_loses_ties() -> None:
    had = set(DATA.train.items[DATA.train.users == USER].tolist())
    for score in (2.0, 5.0, 7.25):
        found = Additive(torch.tensor([score]))
        expected = 1 + sum(0.5 * item >= score for item in set(range(DATA.n_items)) - had - {ITEM})
        assert faithfulness(found, torch.arange(1), torch.arange(1), k=3, draws=1, seed=0).rank == expected
    assert had & set(range(4, DATA.n_items))


def test_evidence_alone_is_without_what_is_no_evidence() -> None:
    class Based(Additive):
        def scores(self, kept: Tensor, *, alone: bool = False) -> Tensor:
            return super().scores(kept) + (0.0 if alone else 7.0)

    found = Based(torch.tensor([3.0, 1.0]))
    measured = faithfulness(found, torch.arange(2), torch.arange(1), k=3, draws=1, seed=0)
    assert (measured.score, measured.comprehensiveness, measured.sufficiency) == (11, 3, 8)
    assert (measured.deletion, measured.insertion) == ((11 + 2 * 8 + 7) / 4, (0 + 2 * 3 + 4) / 4)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 23])
def test_areas_do_not_depend_on_how_many_equal_units_there_are(count: int) -> None:
    found = Additive(torch.full((count,), 1 / count))
    measured = faithfulness(found, torch.arange(count), torch.arange(1), k=3, draws=1, seed=0)
    assert (measured.deletion, measured.insertion) == (pytest.approx(0.5), pytest.approx(0.5))


def test_an_explanation_beats_random_orders_on_a_linear_model() -> None:
    found = of("ease", item=2)
    order = found.removal().argsort(descending=True)
    measured = faithfulness(found, order, order[:2], k=5, draws=20, seed=0)
    assert (
        measured.deletion <= measured.deletion_random <= measured.insertion_random + 1e-6 <= measured.insertion + 2e-6
    )


@pytest.mark.parametrize(
    ("name", "by", "told"),
    [
        ("pop", None, "model 'pop' cannot be explained: no event, path or word"),
        ("deepfm", "events", "model 'deepfm' cannot be explained by events"),
        ("mf", "paths", "model 'mf' cannot be explained by paths: it has events"),
        ("mf", "colour", "unknown kind of explanation 'colour'"),
    ],
)
def test_what_cannot_be_explained_says_so_in_a_line(name: str, by: str | None, told: str) -> None:
    with pytest.raises(RrecError, match=told):
        of(name, by=by)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    base = ["dataset=synthetic", "dataset.n_users=60", "dataset.n_items=50", "epochs=1", f"data_dir={folder}/cache"]
    for name, more in (("ease", []), ("structure_aware_kgat", ["model.dim=8"])):
        assert launch.launch("train", [*base, f"model={name}", *more, f"hydra.run.dir={folder}/{name}"]) == 0
    return folder


def explain(runs: Path, name: str, *words: str) -> int:
    return launch.launch("explain", [f"ckpt={runs / name}", f"data_dir={runs}/cache", *words])


def test_json_has_the_numbers_of_the_model(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert explain(runs, "ease", "user=u1", "item=i7", "format=json", "top=2") == 0
    told = json.loads(capfd.readouterr().out)
    loaded = checkpoint.load(str(runs / "ease"), data_dir=f"{runs}/cache", device=torch.device("cpu"))
    user, item = loaded.data.user_ids.index("u1"), loaded.data.item_ids.index("i7")
    score = Shifted(loaded.model)(Batch.unlabelled(torch.tensor([user]))).scores[0, item].item()
    assert told["faithfulness"]["score"] == pytest.approx(score, abs=1e-6)
    assert (told["kind"], told["item"], len(told["units"])) == ("events", "i7", 2)
    assert told["faithfulness"]["comprehensiveness"] == pytest.approx(
        sum(e["removal"] for e in told["units"]), abs=1e-5
    )


def test_a_sample_is_measured_and_its_stability_under_an_attack(runs: Path, tmp_path: Path) -> None:
    words = ["sample=12", "top=1", "attack=pgd", "eps=0.5", "draws=2", f"hydra.run.dir={tmp_path}/run"]
    assert explain(runs, "structure_aware_kgat", *words) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    frame = pd.read_csv(tmp_path / "run" / "explanations.csv")
    assert len(frame) == 12
    assert 0 <= metrics["explain/coverage"] <= 1
    assert metrics["explain/coverage"] == pytest.approx((frame["paths"] > 0).mean())
    known = frame["jaccard"].dropna()
    assert metrics["explain/jaccard"] == pytest.approx(known.mean())
    assert len(known)
    assert bool(known.between(0, 1).all())


def test_explanations_that_tell_everything_say_nothing_of_stability(runs: Path, tmp_path: Path) -> None:
    for number, more in enumerate([[], ["by=events"]]):
        words = ["sample=12", "attack=pgd", "eps=0.5", "draws=0", *more]
        for top in (1, 10_000):
            out = tmp_path / f"{number}-{top}"
            assert explain(runs, "structure_aware_kgat", *words, f"top={top}", f"hydra.run.dir={out}") == 0
            known = pd.read_csv(out / "explanations.csv")["jaccard"].notna()
            assert bool(known.any()) == (top == 1)


def test_measures_can_be_swept(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"ckpt={runs}/ease", f"data_dir={runs}/cache", "sample=3", "draws=1", "k=5,10", "hydra.sweep.dir=s"]
    assert launch.launch("explain", words, multirun=True) == 0
    assert len((tmp_path / "s" / "sweep.csv").read_text().splitlines()) == 3
    assert launch.show_sweep("s") == 0


def test_paths_are_compared_with_those_of_another_graph(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["sample=6", "attack=edges", "attack.op=rewire", "attack.share=0.3", "draws=1"]
    assert explain(runs, "structure_aware_kgat", *words, f"hydra.run.dir={tmp_path}/run") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["explain/jaccard"] < 1
    assert explain(runs, "structure_aware_kgat", *words, "by=events", f"hydra.run.dir={tmp_path}/events") != 0
    assert "attack=edges changes the edges that by=events weighs" in capfd.readouterr().err


def test_no_perturbation_leaves_the_explanations_as_they_are(runs: Path, tmp_path: Path) -> None:
    words = ["sample=12", "top=1", "attack=pgd", "eps=0", "draws=1", f"hydra.run.dir={tmp_path}/run"]
    assert explain(runs, "structure_aware_kgat", *words) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["explain/jaccard"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "explain needs user=<id>"),
        (["user=u1", "method=magic"], "unknown method 'magic'"),
        (["user=u1", "top=0"], "the others are at least 1"),
        (["user=[u1,u2]"], "one user and one item at a time"),
        (["user=u1", "attack=pgd"], "add sample="),
    ],
)
def test_a_mistake_is_one_line(runs: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    capfd.readouterr()
    assert explain(runs, "ease", *words) == 1
    out, err = capfd.readouterr()
    assert told in err
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sample=100000"], "sample=100000: dataset 'synthetic' has "),
        (["sample=3", "attack=pgd", "eps=-1"], "eps=-1"),
    ],
)
def test_a_run_that_is_refused_leaves_nothing(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert explain(runs, "ease", *words, f"hydra.run.dir={tmp_path}/run") == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_user_without_events_has_nothing_to_tell() -> None:
    data = make_data()
    nobody = replace(data, train=data.train.where(data.train.users != USER))
    found = units(asked(small("ease", nobody), nobody), USER, ITEM, None, hops=2)
    assert len(found) == 0
    measured = faithfulness(
        found, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), k=3, draws=1, seed=0
    )
    assert measured.units == 0
    assert measured.comprehensiveness == 0
