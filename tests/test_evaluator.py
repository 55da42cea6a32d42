"""Who is ranked against what, how ties fall, and that portions do not matter."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, SHIFTING, Fixed, Toy, build, configured, interactions, judge, make_data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Result, evaluator, ranking, worth
from robustbench_rec.evaluation import base as module
from robustbench_rec.losses import loss
from robustbench_rec.shifted import Shifted

N_USERS, N_ITEMS = DATA.n_users, DATA.n_items


def hand_made(
    n_users: int, n_items: int, train: list[Any], valid: list[Any], test: list[Any], name: str = "mine"
) -> Data:
    def part(pairs: list[Any]) -> Any:
        users, items = zip(*pairs, strict=True) if pairs else ((), ())
        return interactions(torch.tensor(users, dtype=torch.long), torch.tensor(items, dtype=torch.long))

    return Data(
        name,
        "",
        part(train),
        part(valid),
        part(test),
        [f"u{each}" for each in range(n_users)],
        [f"i{each}" for each in range(n_items)],
    )


def evaluated(scores: Tensor, data: Data = DATA, part: str = "test", **changes: Any) -> Result:
    return evaluator(data, judge(**changes)).evaluate(Shifted(Fixed(scores)), part)


def owned(data: Data, user: int, *parts: str) -> set[int]:
    return {
        item
        for part in parts
        for u, item in zip(data.part(part).users.tolist(), data.part(part).items.tolist(), strict=True)
        if u == user
    }


def naive(scores: Tensor, data: Data, part: str, k: int) -> dict[str, list[float]]:
    """Pessimistic ranks by the plain definition, one user at a time."""
    found: dict[str, list[float]] = {name: [] for name in ("ndcg", "recall", "precision", "hr", "mrr", "map", "auc")}
    for user in range(data.n_users):
        wanted = owned(data, user, part)
        if not wanted:
            continue
        seen = owned(data, user, "train") if part == "valid" else owned(data, user, "train", "valid")
        candidates = [i for i in range(data.n_items) if i in wanted or i not in seen]
        order = sorted(candidates, key=lambda i: (-scores[user, i].item(), i in wanted))
        hits = [rank for rank, item in enumerate(order[:k], 1) if item in wanted]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
        found["ndcg"].append(sum(1 / math.log2(rank + 1) for rank in hits) / ideal)
        found["recall"].append(len(hits) / len(wanted))
        found["precision"].append(len(hits) / k)
        found["hr"].append(float(bool(hits)))
        found["mrr"].append(1 / hits[0] if hits else 0.0)
        found["map"].append(sum((n + 1) / rank for n, rank in enumerate(hits)) / min(k, len(wanted)))
        labels = [item in wanted for item in candidates]
        if all(labels):
            found["auc"].append(float("nan"))
        else:
            found["auc"].append(roc_auc_score(labels, scores[user, candidates].numpy()))
    return found


class TestFullRanking:
    @pytest.mark.parametrize("part", ["valid", "test"])
    @given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 1000]), k=st.integers(1, 12))
    def test_it_is_the_naive_loop_with_and_without_ties(self, part: str, seed: int, levels: int, k: int) -> None:
        scores = torch.randint(levels, (N_USERS, N_ITEMS), generator=torch.Generator().manual_seed(seed)).float()
        result = evaluated(scores, part=part, top_k=[k])
        for name, values in naive(scores, DATA, part, k).items():
            key = name if name == "auc" else f"{name}@{k}"
            assert result.per_user[key].tolist() == pytest.approx(values, rel=1e-5), key
            assert result.metrics[key] == pytest.approx(sum(values) / len(values), rel=1e-5)

    @pytest.mark.parametrize("seen", [False, True])
    def test_exposure_is_the_mean_over_targets_of_the_users_who_do_not_have_them(self, seen: bool) -> None:
        targets, scores = [3, 7, 11], torch.rand(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(3))
        shares, gains, places, told = [], [], [], []
        for target in targets:
            hits, values = [], []
            for user in range(N_USERS):
                had, wanted = owned(DATA, user, "train", "valid"), owned(DATA, user, "test")
                if wanted and target not in had | wanted:
                    others = [i for i in range(N_ITEMS) if i != target and (seen or i not in had)]
                    place = 1 + sum(bool(scores[user, i] >= scores[user, target]) for i in others)
                    hits.append(place)
                    values.append(scores[user, target].item())
            shares.append(sum(each <= 5 for each in hits) / len(hits))
            gains.append(sum(1 / math.log2(each + 1) for each in hits if each <= 5) / len(hits))
            places.append(sum(hits) / len(hits))
            told.append(sum(values) / len(values))
        judging = evaluator(DATA, judge(seen=seen))
        found = judging.exposure(Shifted(Fixed(scores)), "test", torch.tensor(targets), top_k=[5])  # type: ignore[attr-defined]
        expected = {"t_hr@5": shares, "t_ndcg@5": gains, "t_rank": places, "t_score": told}
        assert found.metrics == pytest.approx({name: sum(each) / len(each) for name, each in expected.items()})

    def test_a_target_that_the_part_has_without_a_like_is_not_new_to_its_user(self) -> None:
        data = hand_made(2, 6, [(0, 5), (1, 5)], [], [(0, 0), (1, 0), (0, 3)])
        data = replace(data, test=replace(data.test, values=torch.tensor([1.0, 1.0, 0.0])))
        judging = evaluator(data, judge())
        found = judging.exposure(Shifted(Fixed(torch.rand(2, 6))), "test", torch.tensor([3]), top_k=[5])  # type: ignore[attr-defined]
        assert found.per_user["t_rank"].isnan().tolist() == [True, False]

    def test_training_items_are_masked_for_valid_and_those_of_valid_too_for_test(self) -> None:
        data = hand_made(2, 5, [(0, 0), (1, 0)], [(0, 1), (1, 0)], [(0, 2)])  # user 1 comes back
        scores = torch.tensor([[9.0, 8, 7, 6, 5], [9.0, 8, 7, 6, 5]])
        kept = {"metrics": ["mrr"], "top_k": [5], "data": data}
        assert evaluated(scores, part="test", **kept).metrics["mrr@5"] == 1.0  # type: ignore[arg-type]
        assert evaluated(scores, part="valid", **kept).per_user["mrr@5"].tolist() == [1.0]  # type: ignore[arg-type]

    def test_a_relevant_item_loses_every_tie(self) -> None:
        result = evaluated(torch.zeros(N_USERS, N_ITEMS), top_k=[5])
        assert result.metrics["hr@5"] == 0
        assert result.metrics["auc"] == pytest.approx(0.5)

    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_a_tie_across_the_end_of_the_list_is_lost_too(self, k: int) -> None:
        """Three equals around rank k, the relevant one among them."""
        data = hand_made(2, 6, [(0, 5), (1, 5)], [], [(0, 0), (1, 0)])
        scores = torch.tensor([[3.0, 9, 3, 3, 1, 0]]).repeat(2, 1)
        assert evaluated(scores, data, metrics=["hr"], top_k=[k]).metrics[f"hr@{k}"] == float(k >= 4)

    def test_an_item_bought_again_is_judged_where_items_may_come_back(self) -> None:
        data = hand_made(2, 4, [(0, 0), (0, 1), (1, 1)], [(0, 0)], [(0, 0), (1, 0)])
        scores = torch.tensor([[9.0, 8, 1, 0], [0.0, 1, 2, 3]])
        result = evaluated(scores, data, metrics=["mrr"], top_k=[4], seen=True)
        assert result.per_user["mrr@4"].tolist() == pytest.approx([1.0, 1 / 4])

    @pytest.mark.parametrize(("protocol", "n"), [("full", None), ("sampled", 3)])
    def test_an_item_bought_again_does_not_give_itself_away_among_new_ones(self, protocol: str, n: int | None) -> None:
        data = hand_made(2, 9, [(0, 0), (0, 1), (1, 1)], [(0, 0)], [(0, 0), (0, 2), (1, 0)])
        result = evaluated(torch.zeros(2, 9), data, metrics=["hr"], top_k=[3], protocol=protocol, n_negatives=n)
        portions = evaluator(data, judge(protocol=protocol, n_negatives=n, top_k=[3])).portions("test")
        assert result.users.tolist() == [0, 1]
        assert [len(each.relevant[0]) for each in portions] == [2]  # type: ignore[attr-defined]
        again = hand_made(1, 9, [(0, 0)], [], [(0, 0)])
        with pytest.raises(RrecError, match="seen=false leaves none"):
            evaluated(torch.zeros(1, 9), again, metrics=["hr"], top_k=[3], protocol=protocol, n_negatives=n)

    def test_sampled_candidates_may_be_known_where_items_come_back(self) -> None:
        data = hand_made(1, 6, [(0, item) for item in range(5)], [], [(0, 0)])
        kept = evaluator(data, judge(protocol="sampled", n_negatives=5, seen=True, top_k=[3])).portions("test")
        assert kept[0].items is not None
        assert sorted(kept[0].items[0].tolist()) == list(range(6))

    def test_only_users_with_events_in_the_part_count_in_the_order_of_their_indices(self) -> None:
        data = hand_made(4, 5, [(u, 4) for u in range(4)], [], [(3, 0), (1, 0)])
        result = evaluated(torch.rand(4, 5), data, top_k=[2])
        assert result.users.tolist() == [1, 3]
        assert all(len(each) == 2 for each in result.per_user.values())

    def test_the_same_event_twice_counts_once(self) -> None:
        data = hand_made(2, 5, [(0, 4), (1, 4)], [], [(0, 0), (0, 0), (1, 0)])
        result = evaluated(torch.tensor([[5.0, 4, 3, 2, 1]] * 2), data, top_k=[2])
        assert result.metrics["recall@2"] == 1.0
        assert result.metrics["precision@2"] == 0.5

    def test_coverage_is_the_share_of_the_catalogue_that_is_shown_to_anyone(self) -> None:
        data = hand_made(3, 10, [(u, 9) for u in range(3)], [], [(u, 0) for u in range(3)])
        scores = torch.zeros(3, 10)
        scores[0, [1, 2]], scores[1, [2, 3]], scores[2, [1, 3]], scores[:, 9] = 1.0, 1.0, 1.0, 2.0
        assert evaluated(scores, data, metrics=["coverage"], top_k=[2]).metrics == {"coverage@2": pytest.approx(0.3)}

    def test_items_that_are_no_candidates_are_never_covered(self) -> None:
        """A list longer than a user's candidates has empty places at its end."""
        data = hand_made(2, 6, [(u, i) for u in range(2) for i in (2, 3, 4, 5)], [], [(0, 0), (1, 0)])
        result = evaluated(torch.rand(2, 6), data, metrics=["coverage"], top_k=[5])
        assert result.metrics["coverage@5"] == pytest.approx(2 / 6)

    def test_a_user_whose_candidates_are_all_relevant_does_not_spoil_the_auc(self) -> None:
        data = hand_made(2, 4, [(0, 2), (0, 3), (1, 3)], [], [(0, 0), (0, 1), (1, 0)])
        value = evaluated(torch.tensor([[4.0, 3, 2, 1]] * 2), data, metrics=["auc"], top_k=[1]).metrics["auc"]
        assert value == pytest.approx(1.0)

    def test_several_k_are_judged_at_once(self) -> None:
        scores = torch.rand(N_USERS, N_ITEMS, generator=torch.Generator().manual_seed(1))
        result = evaluated(scores, top_k=[1, 3, 7])
        for k in (1, 3, 7):
            assert result.metrics[f"ndcg@{k}"] == evaluated(scores, top_k=[k]).metrics[f"ndcg@{k}"]
        assert list(result.metrics)[:2] == ["ndcg@1", "recall@1"]

    def test_asked_for_one_metric_it_gives_that_one(self) -> None:
        scores = torch.rand(N_USERS, N_ITEMS)
        whole = evaluated(scores)
        for name in evaluator(DATA, judge()).names():
            only = evaluator(DATA, judge()).evaluate(Shifted(Fixed(scores)), "test", metrics=[name])
            assert only.metrics == {name: whole.metrics[name]}

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_scores_that_are_not_finite_are_refused(self, bad: float) -> None:
        scores = torch.rand(N_USERS, N_ITEMS)
        item = next(iter(owned(DATA, 3, "test")))
        scores[3, item] = bad
        with pytest.raises(RrecError, match="NaN or infinite"):
            evaluated(scores)

    def test_a_bad_score_of_a_masked_item_harms_nobody(self) -> None:
        scores = torch.rand(N_USERS, N_ITEMS)
        clean = evaluated(scores)
        scores[3, next(iter(owned(DATA, 3, "train")))] = float("nan")
        assert evaluated(scores).metrics == clean.metrics

    def test_what_a_user_had_before_is_a_candidate_where_it_may_come_back(self) -> None:
        scores = torch.zeros(N_USERS, N_ITEMS)
        scores[DATA.train.users, DATA.train.items] = 1.0
        scores[DATA.test.users, DATA.test.items] = 0.5
        found = {
            seen: evaluated(scores, seen=seen, top_k=[5], metrics=["hr"]).metrics["hr@5"] for seen in (False, True)
        }
        assert found == {False: 1.0, True: 0.0}


def test_a_sweeper_maximises_a_quality_where_there_is_one() -> None:
    found = {"valid/arp@5": 3.0, "valid/pru": 0.1, "valid/ndcg@5": 0.2, "test/ndcg@5": 0.3}
    assert worth(judge(metrics=["arp", "pru", "ndcg"]), None, found) == 0.2
    assert worth(judge(metrics=["arp", "pru", "ndcg"]), "ndcg@5", found) == 0.2
    assert worth(judge(), None, {"test/ndcg@5": 0.3}) is None


class TestPortions:
    def test_many_users_of_a_small_catalogue_are_not_asked_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "USERS", 4)
        assert {len(each.users) for each in evaluator(DATA, judge()).portions("test")[:-1]} == {4}

    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    @pytest.mark.parametrize("cells", [1, N_ITEMS * 5, N_ITEMS * N_USERS])
    def test_they_do_not_change_results(self, protocol: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = torch.randint(6, (N_USERS, N_ITEMS)).float()
        expected = evaluated(scores, protocol=protocol)
        monkeypatch.setattr(module, "CELLS", cells)
        found = evaluated(scores, protocol=protocol)
        assert found.metrics == pytest.approx(expected.metrics)
        assert torch.equal(found.users, expected.users)
        for name in expected.per_user:
            torch.testing.assert_close(found.per_user[name], expected.per_user[name])

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    @pytest.mark.parametrize("attack", SHIFTING)
    def test_they_do_not_change_an_attack(self, name: str, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, found = build(name).requires_grad_(False), []
        for cells in (module.CELLS, N_ITEMS * 5):
            monkeypatch.setattr(module, "CELLS", cells)
            built = attacks.build(configured("attack", attack))
            found.append(evaluator(DATA, judge()).attack(Shifted(model), built, "test", loss("softmax")))
        (one, spent), (two, again) = found
        assert spent == pytest.approx(again, rel=1e-4, nan_ok=True)
        (first, _), (second, _) = one[0], two[-1]
        if attack == "apgd":  # halves its step on comparisons, which rounding may decide
            values = [
                torch.cat([loss("softmax")(at(each), each) for each in evaluator(DATA, judge()).batches(model, "test")])
                for at in (first, second)
            ]
            assert values[0].mean().item() == pytest.approx(values[1].mean().item(), rel=1e-2)
            return
        for key in first.delta:
            torch.testing.assert_close(first.delta[key], second.delta[key], rtol=1e-3, atol=1e-5)


class TestSampled:
    def test_places_of_several_relevant_items_are_compared_in_full_rankings_alone(self) -> None:
        with pytest.raises(RrecError, match="metric pru compares the relevant items of a list; protocol=sampled"):
            evaluator(DATA, judge(protocol="sampled", n_negatives=5, metrics=["ndcg", "pru"]))

    def candidates(
        self, seed: int = 0, part: str = "test", n: int = 6, data: Data = DATA
    ) -> list[tuple[int, list[int]]]:
        built = evaluator(data, judge(protocol="sampled", n_negatives=n), seed=seed)
        return [
            (user, row)
            for chunk in built.portions(part)
            for user, row in zip(chunk.users.tolist(), chunk.items.tolist(), strict=True)  # type: ignore[union-attr]
        ]

    def test_every_event_is_ranked_against_items_that_the_user_has_nowhere(self) -> None:
        found = self.candidates()
        assert [(user, row[0]) for user, row in found] == list(
            zip(DATA.test.users.tolist(), DATA.test.items.tolist(), strict=True)
        )
        for user, (_, *negatives) in found:
            assert len(set(negatives)) == 6
            assert not set(negatives) & owned(DATA, user, "train", "valid", "test")

    def test_the_draw_is_fixed_by_the_seed(self) -> None:
        assert self.candidates(1) == self.candidates(1)
        assert self.candidates(1) != self.candidates(2)

    def test_negatives_are_drawn_evenly(self) -> None:
        drawn = [item for seed in range(200) for user, (_, *row) in self.candidates(seed) for item in row if user == 0]
        free = set(range(N_ITEMS)) - owned(DATA, 0, "train", "valid", "test")
        counts = torch.bincount(torch.tensor(drawn), minlength=N_ITEMS)[sorted(free)].double()
        assert (counts / counts.mean() - 1).abs().max() < 0.3

    def test_a_user_is_the_mean_over_the_users_events(self) -> None:
        data = hand_made(2, 8, [(0, 7), (1, 7)], [], [(0, 0), (0, 1), (1, 0)])
        scores = torch.tensor([[9.0, 0, 1, 2, 3, 4, 5, 6]] * 2)
        result = evaluated(scores, data, protocol="sampled", n_negatives=3, metrics=["hr"], top_k=[1])
        assert result.per_user["hr@1"].tolist() == [0.5, 1.0]
        assert result.metrics["hr@1"] == 0.75

    def test_ties_are_lost_here_too(self) -> None:
        result = evaluated(torch.zeros(N_USERS, N_ITEMS), protocol="sampled", metrics=["hr", "mrr"], top_k=[5])
        assert result.metrics["hr@5"] == 0

    def test_coverage_names_items_and_not_places(self) -> None:
        scores = torch.arange(N_ITEMS).float().repeat(N_USERS, 1)
        found = evaluated(scores, protocol="sampled", metrics=["coverage"], top_k=[1]).metrics["coverage@1"]
        best = {max(row) for _, row in self.candidates(n=5)}
        assert found == pytest.approx(len(best) / N_ITEMS)

    def test_too_few_items_to_draw_from_names_the_user(self) -> None:
        data = make_data(n_items=12)
        with pytest.raises(RrecError, match=r"n_negatives=5: user 'u0' has only 4 items"):
            evaluated(torch.rand(N_USERS, 12), data, protocol="sampled", n_negatives=5)
        assert evaluated(torch.rand(N_USERS, 12), data, protocol="sampled", n_negatives=4, top_k=[5]).metrics


class TestAttacked:
    def test_the_attack_sees_exactly_the_candidates_that_are_ranked(self) -> None:
        for protocol in ("full", "sampled"):
            built = evaluator(DATA, judge(protocol=protocol))
            chunks, batches = built.portions("test"), list(built.batches(build("mf"), "test"))
            for chunk, batch in zip(chunks, batches, strict=True):
                assert torch.equal(chunk.users, batch.users)
                for row, user in enumerate(batch.users.tolist()):
                    assert batch.mask is not None
                    items = torch.arange(N_ITEMS) if batch.items is None else batch.items[row]
                    wanted, seen = owned(DATA, user, "test"), owned(DATA, user, "train", "valid")
                    positive = set(items[batch.labels[row] > 0].tolist())
                    allowed = set(items[batch.mask[row]].tolist())
                    if protocol == "full":
                        assert positive == wanted
                        assert allowed == set(range(N_ITEMS)) - seen
                    else:
                        assert positive == {int(items[0])}
                        assert allowed == set(items.tolist())

    def test_evaluation_mode_is_used_and_the_models_own_given_back(self) -> None:
        model = build("kgat", dropout=0.9).train()
        built = evaluator(DATA, judge())
        one, two = (built.evaluate(Shifted(model), "test").metrics for _ in range(2))
        assert one == two
        attack = attacks.build(configured("attack", "fgm"))
        first, second = (built.attack(Shifted(model), attack, "test", loss("softmax"))[0] for _ in range(2))
        (here, _), (there, _) = first[0], second[0]
        assert all(torch.equal(here.delta[key], there.delta[key]) for key in here.delta)
        assert model.training

    def test_the_announced_passes_are_made(self) -> None:
        model = build("mf").requires_grad_(False)
        for name in SHIFTING:
            attack, passes = attacks.build(configured("attack", name)), iter(range(1000))
            evaluator(DATA, judge()).attack(Shifted(model), attack, "test", loss("margin"), on_pass=passes.__next__)
            made = next(passes)
            assert made == attack.passes or (name == "cw" and 100 < made < attack.passes), name  # cw may stop early

    @pytest.mark.parametrize("name", ["mf", "kgat"])
    @pytest.mark.parametrize("kind", ["embedding", "weight"])
    def test_stronger_attacks_raise_the_loss_more(self, name: str, kind: str) -> None:
        model, built = build(name).requires_grad_(False), evaluator(DATA, judge())

        def value(at: Shifted) -> float:
            batches = list(built.batches(model, "test"))
            total = sum(loss("softmax")(at(each), each).sum().item() for each in batches)
            return total / sum(map(len, batches))

        start = value(Shifted(model.eval()))
        for eps in (0.05, 0.3):
            found = {}
            for attack in ("noise", "fgm", "pgd"):
                config = configured("attack", attack, surface=kind, eps=eps)
                worse, spent = built.attack(Shifted(model), attacks.build(config), "test", loss("softmax"))
                found[attack] = value(worse[0][0])
                assert spent["max_relative"] <= eps * (1 + 1e-4)
            assert found["pgd"] >= found["fgm"] > found["noise"]
            assert found["fgm"] > start

    def test_a_zero_budget_attack_leaves_the_metrics(self) -> None:
        model, built = build("mf").requires_grad_(False), evaluator(DATA, judge())
        clean = built.evaluate(Shifted(model), "test").metrics
        for name in SHIFTING:
            attack = attacks.build(configured("attack", name, eps=0.0))
            worse, spent = built.attack(Shifted(model), attack, "test", loss("margin"))
            assert built.evaluate(worse, "test").metrics == clean
            assert spent["mean_norm"] == 0 or spent["success"] == 0

    def test_an_activation_of_the_users_is_attacked_portion_by_portion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, found = Toy().requires_grad_(False), []
        for cells in (module.CELLS, N_ITEMS * 5):
            monkeypatch.setattr(module, "CELLS", cells)
            attack = attacks.build(configured("attack", "fgm", surface="activation", modules=["hidden"], eps=0.3))
            moved, spent = evaluator(DATA, judge()).attack(Shifted(model), attack, "test", loss("softmax"))
            found.append((moved, spent, evaluator(DATA, judge()).evaluate(moved, "test").metrics))
        (one, spent, metrics), (several, again, same) = found
        assert len(one) == 1 < len(several)
        parts = torch.cat([point.delta["hidden.shift"] for point, _ in several])
        torch.testing.assert_close(one[0][0].delta["hidden.shift"], parts)
        assert metrics == same
        assert spent == pytest.approx(again)

    @pytest.mark.parametrize("name", ["noise", "square", "simba", "pgd"])
    def test_portions_do_not_draw_the_same(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "CELLS", N_ITEMS * 5)
        changes = {"random_start": True, "steps": 0} if name == "pgd" else {}
        attack = attacks.build(configured("attack", name, surface="activation", modules=["hidden"], eps=0.3, **changes))
        moved, _ = evaluator(DATA, judge()).attack(Shifted(Toy()), attack, "test", loss("softmax"))
        first, second = (point.delta["hidden.shift"] for point, _ in moved[:2])
        turned = F.cosine_similarity(first, second)
        assert (turned < 0.999).all()

    def test_users_who_are_attacked_one_by_one_do_not_draw_the_same(self) -> None:
        built = attacks.build(configured("attack", "noise", scope="user", eps=0.5))
        deltas = []
        for user in (0, 1):
            batch = Batch(torch.tensor([user]), None, torch.zeros(1, N_ITEMS))
            worse, _ = built(Shifted(build("mf")), batch, loss("softmax"))
            deltas.append(worse.delta["item.weight"])
        assert not torch.equal(*deltas)

    def test_an_activation_of_the_catalogue_is_one_for_all(self) -> None:
        attack = attacks.build(configured("attack", "fgm", surface="activation", modules=["tower"]))
        moved, _ = evaluator(DATA, judge()).attack(Shifted(Toy()), attack, "test", loss("softmax"))
        assert moved[0][0].delta["tower.shift"].shape == (N_ITEMS, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "sampeld"}, "unknown protocol 'sampeld'; did you mean 'sampled'"),
        ({"metrics": ["ndgc"]}, "unknown metric 'ndgc'"),
        ({"metrics": ["ndcg", "rmse"]}, "metric of protocol 'full' 'rmse'.*; it is one of protocol=ratings"),
        ({"metrics": ["ndcg"], "protocol": "clicks"}, "'clicks' 'ndcg'.*; it is one of protocol=full and sampled"),
        ({"top_k": [21]}, "top_k=21.* 20 candidates"),
        ({"top_k": [0]}, "top_k=0"),
        ({"protocol": "sampled", "n_negatives": 3, "top_k": [5]}, "top_k=5.* 4 candidates"),
        ({"protocol": "sampled", "n_negatives": 0, "top_k": [1]}, "n_negatives=0"),
        ({"protocol": "sampled", "n_negatives": -3, "top_k": [1]}, "n_negatives=-3"),
        ({"n_negatives": 3}, "n_negatives=3: protocol=full draws none; .* protocol=clicks or sampled"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RrecError, match=message):
        evaluated(torch.rand(N_USERS, N_ITEMS), **changes)


@pytest.mark.parametrize("changes", [{}, {"protocol": "sampled", "n_negatives": 9}])
def test_a_part_that_nobody_liked_anything_of_is_refused(changes: dict[str, Any]) -> None:
    refused = replace(DATA, test=replace(DATA.test, values=torch.zeros(len(DATA.test))))
    with pytest.raises(RrecError, match="test: none of its events has label 1"):
        evaluator(refused, judge(**changes)).portions("test")


def test_an_unknown_part_and_an_empty_one_are_refused() -> None:
    with pytest.raises(RrecError, match=r"unknown part 'tset'; did you mean 'test'"):
        evaluated(torch.rand(N_USERS, N_ITEMS), part="tset")
    with pytest.raises(RrecError, match="'mine' has no valid events"):
        evaluated(torch.rand(2, 3), hand_made(2, 3, [(0, 0), (1, 0)], [], [(0, 1)]), part="valid", top_k=[1])


def test_a_batch_without_labels_is_only_scored() -> None:
    assert Batch.unlabelled(torch.arange(3)).labels.shape == (3, 0)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_scores_sorted_in_several_threads_are_sorted(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    scores = torch.randn(rows, 50)
    before = scores.clone()
    assert torch.equal(ranking._ordered(scores), scores.sort(1).values)
    assert torch.equal(scores, before)


@given(st.integers(0, 2**31), st.integers(1, 70), st.integers(1, 9), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_a_search_in_every_row_at_once_counts_as_torch_does(seed: int, n: int, levels: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = (torch.randn(6, n, generator=generator) * levels).round().sort(1).values
    order[0, : n // 2] = -torch.inf
    rows, places = (torch.randint(end, (count,), generator=generator) for end in (6, n))
    own = order[rows, places]
    for right, found in enumerate(ranking._bounds(order, rows, own)):
        assert torch.equal(found, torch.searchsorted(order[rows], own[:, None], right=bool(right)).squeeze(1))
