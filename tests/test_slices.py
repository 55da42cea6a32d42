"""Groups of users and items, lists before and after, calibration, and what the verbs show of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, Fixed, build, compose, interactions, judge, make_data
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score
from torch import Tensor

from robustbench_rec import composing
from robustbench_rec.data import Data, Profiles
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Result, base, by_user, evaluator
from robustbench_rec.evaluation.alike import alike
from robustbench_rec.evaluation.calibration import Calibrated, deviations
from robustbench_rec.evaluation.slices import _quarters, groups, sliced
from robustbench_rec.evaluation.worst import winners, worst
from robustbench_rec.goals import goals
from robustbench_rec.metrics import fairness, popularity, prediction, uncertainty
from robustbench_rec.profiles import inject
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import attack, train
from robustbench_rec.tasks import eval as evaluate

N_USERS, N_ITEMS = DATA.n_users, DATA.n_items
SMALL = (
    "dataset=synthetic",
    "dataset.n_users=60",
    "dataset.n_items=40",
    "dataset.events_per_user=12",
    "model.dim=8",
    "device=cpu",
    "epochs=3",
    "batch_size=128",
    "lr=0.02",
)


def scored(seed: int = 0, levels: int = 1000, data: Data = DATA) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (data.n_users, data.n_items), generator=generator) / levels


def judged(scores: Tensor, data: Data = DATA, **changes: Any) -> tuple[Any, Result]:
    judging = evaluator(data, judge(**changes))
    return judging, judging.evaluate(Shifted(Fixed(scores)), "test")


def labelled(data: Data = DATA) -> Data:
    """Clicks: labels of 0 and 1 in every part."""
    generator = torch.Generator().manual_seed(5)
    parts = {}
    for part in ("train", "valid", "test"):
        events = data.part(part)
        parts[part] = replace(events, values=torch.randint(2, (len(events),), generator=generator).float())
    return replace(data, **parts)


class TestAnonymity:
    def sizes(self, frame: pd.DataFrame) -> dict[str, int]:
        return dict(zip(frame["slice"], frame["users"], strict=True))

    def of(self, counts: list[int]) -> tuple[Any, Result, Data]:
        """Users with an age each; so many of 20, 30, 40, …"""
        ages = [20 + 10 * number for number, count in enumerate(counts) for _ in range(count)]
        data = make_data(n_users=len(ages))
        data = replace(data, user_table=pd.DataFrame({"age": ages}))
        return (*judged(scored(data=data), data), data)

    @pytest.mark.parametrize(
        ("counts", "least", "wanted"),
        [
            ([4, 1, 2, 5], 1, {"20": 4, "30": 1, "40": 2, "50": 5}),
            ([4, 1, 2, 5], 2, {"20": 4, "30, 40": 3, "50": 5}),
            ([4, 1, 2, 5], 4, {"20, 30, 40": 7, "50": 5}),
            ([4, 1, 2, 5], 6, {"20, 30, 40, 50": 12}),
            ([1, 4, 4], 2, {"20, 30": 5, "40": 4}),
            ([4, 4, 1], 2, {"20": 4, "30, 40": 5}),
        ],
    )
    def test_small_groups_are_joined_with_a_neighbour(
        self, counts: list[int], least: int, wanted: dict[str, int]
    ) -> None:
        judging, result, _ = self.of(counts)
        frame = sliced(judging, "test", result, ["age"], anonymity=least).frame
        main = frame[frame["metric"] == "ndcg@5"]
        assert self.sizes(main) == wanted
        mean = (main["value"] * main["users"]).sum() / main["users"].sum()
        assert mean == pytest.approx(result.metrics["ndcg@5"])

    def test_gaps_are_those_of_the_joined_groups(self) -> None:
        judging, result, _ = self.of([4, 1, 5])
        found = sliced(judging, "test", result, ["age"], anonymity=2)
        values = found.frame.loc[found.frame["metric"] == "ndcg@5", "value"]
        assert len(values) == 2
        assert found.metrics["fair/age/gap/ndcg@5"] == pytest.approx(values.max() - values.min())

    @pytest.mark.parametrize("least", [2, 7])
    def test_groups_of_items_have_so_many_users_too(self, least: int) -> None:
        judging, result = judged(scored(), top_k=[5])
        frame = sliced(judging, "test", result, ["popularity"], anonymity=least).frame
        assert frame["users"].min() >= least
        whole = sliced(judging, "test", result, ["popularity"]).frame
        for metric in ("exposure@5", "catalogue"):
            assert frame.loc[frame["metric"] == metric, "value"].sum() == pytest.approx(1)
        assert frame.loc[frame["metric"] == "catalogue", "events"].sum() == len(DATA.test)
        assert len(frame) <= len(whole)

    def test_single_predictions_count_users_not_events(self) -> None:
        data = labelled(replace(DATA, user_table=pd.DataFrame({"kind": ["a"] + ["b"] * (N_USERS - 1)})))
        judging, result = judged(scored(data=data), data, protocol="clicks", metrics=None)
        assert self.sizes(sliced(judging, "test", result, ["kind"]).frame)["a"] == 1
        assert set(sliced(judging, "test", result, ["kind"], anonymity=2).frame["slice"]) == {"a, b"}

    def test_fewer_users_than_asked_for_are_one_line(self) -> None:
        judging, result, data = self.of([2, 2])
        for anonymity in (0, 5):
            with pytest.raises(RrecError, match=f"anonymity={anonymity}: between 1 and the 4 users of the data"):
                sliced(judging, "test", result, ["age"], anonymity=anonymity)
        ageless = replace(data, user_table=pd.DataFrame({"age": [20, 20, 30, None]}))
        judging, result = judged(scored(data=ageless), ageless)
        told = r"slices=\[age\]: all groups together have 3 users, fewer than anonymity=4"
        with pytest.raises(RrecError, match=told):
            sliced(judging, "test", result, ["age"], anonymity=4)

    def test_a_number_that_makes_no_sense_is_refused_before_anything_is_judged(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        train.run(composing.typed(compose("train", *SMALL, "model=mf"), "train"), tmp_path / "run")
        for verb, module in (("eval", evaluate), ("attack", attack)):
            words = (f"ckpt='{tmp_path / 'run'}'", "device=cpu", "slices=[activity]", "anonymity=61")
            out = tmp_path / verb
            out.mkdir()
            with pytest.raises(RrecError, match="anonymity=61: between 1 and the 60 users of the data"):
                module.run(composing.typed(compose(verb, *words), verb), out)
            assert not list(out.iterdir())


class TestShown:
    def test_the_lists_are_the_best_candidates_in_order(self) -> None:
        scores = scored()
        _, result = judged(scores, top_k=[3, 5])
        assert result.shown is not None
        seen = {
            (u, i)
            for p in ("train", "valid")
            for u, i in zip(DATA.part(p).users.tolist(), DATA.part(p).items.tolist(), strict=True)
        }
        wanted = set(zip(DATA.test.users.tolist(), DATA.test.items.tolist(), strict=True))
        for user, row, values, hits in zip(*map(Tensor.tolist, vars(result.shown).values()), strict=True):
            order = sorted((i for i in range(N_ITEMS) if (user, i) not in seen), key=lambda i: -scores[user, i].item())
            assert row == order[:5]
            assert values == pytest.approx(scores[user, row].tolist())
            assert hits == [(user, item) in wanted for item in row]

    def test_a_user_with_fewer_candidates_has_empty_places_at_the_end(self) -> None:
        data = make_data(n_items=9, train=5, valid=1, test=2)
        _, result = judged(scored(data=data), data, top_k=[8])
        assert result.shown is not None
        assert ((result.shown.items >= 0).sum(1) == 3).all()
        assert (result.shown.items[:, 3:] == -1).all()
        assert result.per_user["ndcg@8"].isfinite().all()

    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    def test_popularity_is_that_of_the_items_in_the_lists(self, protocol: str) -> None:
        judging, result = judged(scored(), protocol=protocol, metrics=["arp", "gini", "coverage"], top_k=[2, 4])
        assert result.shown is not None
        events = torch.bincount(DATA.train.items, minlength=N_ITEMS)
        assert torch.equal(judging.popularity, events)
        for k in (2, 4):
            lists = result.shown.items[:, :k]
            own = popularity.arp(lists, events)
            users = [own[result.shown.users == user].mean() for user in result.users]
            assert result.metrics[f"arp@{k}"] == pytest.approx(torch.stack(users).mean().item())
            counts = torch.bincount(lists.flatten(), minlength=N_ITEMS)
            assert result.metrics[f"gini@{k}"] == pytest.approx(popularity.gini(counts).item())

    def test_lists_are_as_long_as_the_largest_k_where_no_metric_has_one(self) -> None:
        found = []
        for metrics in (["auc"], ["auc", "ndcg"]):
            pairs = [judged(scored(seed), metrics=metrics, top_k=[2, 5]) for seed in (0, 1)]
            (judging, one), (_, two) = pairs
            assert one.shown is not None
            assert one.shown.items.shape == (N_USERS, 5)
            both = alike(one, two, [2, 5])
            assert both is not None
            frame = sliced(judging, "test", one, ["popularity"]).frame
            found.append((both.metrics, frame[frame["metric"] != "auc"]["value"].tolist()))
        assert found[0][0] == found[1][0]
        assert found[0][1] == pytest.approx(found[1][1], nan_ok=True)

    def test_pru_takes_places_among_all_candidates(self) -> None:
        scores = scored()
        events = torch.bincount(DATA.train.items, minlength=N_ITEMS)
        _, result = judged(events.float().expand(N_USERS, -1) + 0.01 * scores, metrics=["pru"])
        assert result.metrics["pru"] == pytest.approx(1.0)  # two relevant items each, the more popular further up
        _, result = judged(-events.float().expand(N_USERS, -1) - 0.01 * scores, metrics=["pru"])
        assert result.metrics["pru"] == pytest.approx(-1.0)

    def test_what_is_no_quality_is_no_monitor(self) -> None:
        judging = evaluator(DATA, judge(metrics=["gini", "ndcg"]))
        assert judging.watched(None) == "ndcg@5"
        with pytest.raises(RrecError, match="unknown monitor 'gini@5'"):
            judging.watched("gini@5")

    def test_early_stopping_needs_a_quality(self) -> None:
        judging = evaluator(DATA, judge(metrics=["arp", "gini"]))
        assert judging.watched(None) == "arp@5"
        with pytest.raises(RrecError, match=r"metrics=\[arp,gini\]: none tells .* such as ndcg"):
            judging.monitored(None)
        assert evaluator(DATA, judge(metrics=["arp", "auc"])).monitored(None) == "auc"

    def test_a_training_that_is_judged_by_popularity_alone_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RrecError, match=r"metrics=\[arp\]: none tells"):
            run(train, tmp_path, *SMALL, "metrics=[arp]")

    def test_of_several_attacks_the_lists_are_those_of_the_most_harmful(self) -> None:
        goal = goals.build({"name": "untargeted", "k": 5}, DATA)
        results = [judged(scored(seed), metrics=["gini", "ndcg", "arp"])[1] for seed in range(3)]
        chief = min(results, key=lambda each: each.metrics["ndcg@5"])
        found = worst(results, goal, frozenset())
        assert found.shown is chief.shown
        assert found.metrics["gini@5"] == chief.metrics["gini@5"]
        assert torch.equal(found.per_user["arp@5"], chief.per_user["arp@5"])
        assert found.metrics["ndcg@5"] <= chief.metrics["ndcg@5"]

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
    def test_what_an_attack_leaves_undefined_is_not_the_worst_of_several(self, order: list[int]) -> None:
        users, nan = torch.arange(2), math.nan
        values = [([nan, 0.5], nan), ([0.4, 0.3], 0.7), ([0.45, 0.35], 0.6)]
        results = [
            Result({"m": sum(each) / 2, "error_auroc": whole}, users, {"m": torch.tensor(each, dtype=torch.double)})
            for each, whole in (values[index] for index in order)
        ]
        goal = goals.build({"name": "untargeted", "k": 5}, DATA)
        found = worst(results, goal, frozenset())
        assert found.metrics == pytest.approx({"m": 0.35, "error_auroc": 0.6})
        clean = Result({}, users, {"m": torch.tensor([0.5, 0.2], dtype=torch.double)})
        assert winners(clean, results, goal, "m", frozenset()).tolist() == [1, -1]


class TestAlike:
    def test_the_same_lists_are_alike_and_others_less(self) -> None:
        (_, one), (_, two) = judged(scored(0)), judged(scored(1))
        same, other = alike(one, one, [5]), alike(one, two, [5])
        assert same is not None
        assert other is not None
        assert same.metrics == dict.fromkeys(("frbo@5", "jaccard@5", "kendall@5", "top1"), 1.0)
        assert all(value < 1 for value in other.metrics.values())
        assert all(each.shape == (N_USERS,) for each in other.per_user.values())

    def test_every_k_is_about_so_many_places(self) -> None:
        (_, one), (_, two) = (judged(scored(seed), top_k=[2, 5]) for seed in (0, 1))
        assert one.shown is not None
        assert two.shown is not None
        found = alike(one, two, [2, 5])
        assert found is not None
        for k in (2, 5):
            pairs = list(zip(one.shown.items[:, :k].tolist(), two.shown.items[:, :k].tolist(), strict=True))
            expected = [len({*a} & {*b}) / len({*a, *b}) for a, b in pairs]
            assert found.metrics[f"jaccard@{k}"] == pytest.approx(sum(expected) / len(expected))

    def test_single_predictions_have_no_lists(self) -> None:
        data = labelled()
        _, result = judged(scored(), data, protocol="clicks", metrics=None, n_negatives=None)
        assert alike(result, result, [5]) is None


class TestByUser:
    def test_the_value_of_a_user_stands_at_its_place_and_the_others_have_none(self, tmp_path: Path) -> None:
        data = replace(DATA, test=DATA.test.where((DATA.test.users == 2) | (DATA.test.users == 7)))
        judging, result = judged(scored(), data)
        by_user.write(tmp_path, judging, {"test": result})
        found = by_user.read(tmp_path)
        assert found is not None
        (values,) = found.values.values()
        assert (~values.isnan()).nonzero().flatten().tolist() == [2, 7]
        assert values[[2, 7]].tolist() == result.per_user["ndcg@5"].tolist()


class TestGroups:
    def test_quarters_that_do_not_coincide_are_those_of_pandas(self) -> None:
        column = pd.Series(torch.randn(101, generator=torch.Generator().manual_seed(0)).tolist())
        assert _quarters(column).cat.codes.tolist() == pd.qcut(column, 4, labels=False).tolist()

    @pytest.mark.parametrize(
        ("values", "sizes"),
        [
            ([0] * 80 + [*range(1, 21)], {"0": 80, "1 – 7": 7, "8 – 13": 6, "14 – 20": 7}),
            ([*range(1, 21)] + [30] * 80, {"1 – 7": 7, "8 – 13": 6, "14 – 20": 7, "30": 80}),
            ([1, 1, 2, 2] + [3] * 20 + [*range(4, 12)], {"1 – 2": 4, "3": 20, "4 – 7": 4, "8 – 11": 4}),
            ([1] * 60 + [2] * 20 + [*range(3, 23)], {"1": 60, "2": 20, "3 – 12": 10, "13 – 22": 10}),
        ],
    )
    def test_a_number_that_most_have_is_a_group_of_its_own(self, values: list[int], sizes: dict[str, int]) -> None:
        column = pd.Series([*values, None], dtype=float)
        assert _quarters(column).value_counts(sort=False).to_dict() == sizes

    def test_one_group_has_no_gap_to_another(self) -> None:
        for means in (torch.tensor([0.3]), torch.tensor([0.3, math.nan])):
            assert math.isnan(fairness.gap(means))
            assert math.isnan(fairness.ratio(means))
            assert fairness.worst(means).item() == pytest.approx(0.3)
        assert fairness.gap(torch.tensor([0.3, 0.1])).item() == pytest.approx(0.2)
        assert fairness.ratio(torch.tensor([0.3, 0.1])).item() == pytest.approx(1 / 3)

    def test_quarters_never_part_equal_numbers(self) -> None:
        users = [u for u in range(8) for _ in range((1, 1, 1, 2, 3, 4, 4, 9)[u])]
        data = replace(
            DATA,
            train=interactions(users, [n % N_ITEMS for n in range(len(users))]),
            user_ids=DATA.user_ids[:8],
            user_table=None,
        )
        found = groups(data, "activity")
        assert not found.items
        counts = torch.bincount(data.train.users)
        for number, name in enumerate(found.names):
            inside = counts[found.of == number]
            low, _, high = name.partition(" – ")
            assert (inside.min(), inside.max()) == (int(low), int(high or low))
        assert len({(int(c), int(g)) for c, g in zip(counts, found.of, strict=True)}) == len(counts.unique())

    def test_cold_ones_are_those_with_few_events(self) -> None:
        users = [0] * 25 + [1] * 5 + [2] * 6
        data = replace(DATA, train=interactions(users, [n % N_ITEMS for n in range(36)]))
        found = groups(data, "cold_users")
        assert [found.names[each] for each in found.of[:4]] == ["> 20", "1 – 5", "6 – 20", "0"]
        items = groups(data, "cold_items")
        assert items.items
        assert len(items.of) == N_ITEMS

    @pytest.mark.parametrize("attribute", ["activity", "cold_users"])
    def test_fake_users_belong_to_no_group_and_move_no_other(self, attribute: str) -> None:
        data = make_data(n_users=30, train=5)
        fakes = Profiles(interactions([0, 0, 1], [1, 2, 3]), 2, torch.tensor([1]), {"fingerprint": data.fingerprint})
        clean, poisoned = groups(data, attribute), groups(inject(data, fakes), attribute)
        assert poisoned.names == clean.names
        assert poisoned.of[:30].tolist() == clean.of.tolist()
        assert poisoned.of[30:].tolist() == [-1, -1]

    def test_a_column_without_a_value_is_refused(self) -> None:
        table = pd.DataFrame({"age": [float("nan")] * N_USERS})
        with pytest.raises(RrecError, match=r"slices=\[age\]: the column has no value"):
            groups(replace(DATA, user_table=table), "age")

    def test_columns_of_the_user_table(self) -> None:
        gender, age = groups(DATA, "gender"), groups(DATA, "age")
        assert gender.names == ["F", "M"]
        assert gender.of[:3].tolist() == [0, 1, -1]  # not told
        assert len(age.names) == 4
        with pytest.raises(RrecError, match=r"unknown slice 'agee'; did you mean 'age'"):
            groups(DATA, "agee")

    def test_numbers_that_are_texts_become_quarters_too(self) -> None:
        assert DATA.user_table is not None
        table = DATA.user_table.assign(age=DATA.user_table["age"].astype(int).astype(str))
        found = groups(replace(DATA, user_table=table), "age")
        assert found.names == groups(DATA, "age").names

    def test_an_empty_text_is_no_value(self) -> None:
        assert DATA.user_table is not None
        ages = DATA.user_table["age"].astype(int).astype(str)
        ages[ages.index[:3]] = [" ", "", "\t"]
        found = groups(replace(DATA, user_table=DATA.user_table.assign(age=ages)), "age")
        assert len(found.names) == 4, "numbers, in quarters"
        assert (found.of[:3] == -1).all()
        assert (found.of[3:] >= 0).all()

    def test_large_numbers_that_are_near_to_one_another_are_told_apart(self) -> None:
        table = pd.DataFrame({"joined": [1.6e9 + 60 * each for each in range(N_USERS)]})
        found = groups(replace(DATA, user_table=table), "joined")
        assert [float(name.partition(" – ")[0]) for name in found.names] == [1.6e9 + 180 * each for each in range(4)]
        assert found.of.bincount().tolist() == [3] * 4
        few = pd.DataFrame({"joined": [1600000001.0, 1600000002.0] * (N_USERS // 2)})
        assert groups(replace(DATA, user_table=few), "joined").names == ["1600000001", "1600000002"]

    def test_many_names_share_the_rest(self) -> None:
        table = pd.DataFrame({"job": [f"j{each}" for each in range(30)] + ["j0"] * 5})
        data = replace(DATA, user_table=table, user_ids=[str(each) for each in range(35)])
        found = groups(data, "job")
        assert len(found.names) == 12
        assert "other" in found.names


class TestSlices:
    def test_by_users_they_are_means_over_the_users_of_the_slice(self) -> None:
        judging, result = judged(scored())
        frame = sliced(judging, "test", result, ["gender", "activity"]).frame
        for named, of in (("F", 0), ("M", 1)):
            inside = [i for i, u in enumerate(result.users.tolist()) if u % 3 == of]
            row = frame[(frame["slice"] == named) & (frame["metric"] == "ndcg@5")].iloc[0]
            assert row["value"] == pytest.approx(result.per_user["ndcg@5"][inside].mean().item())
            assert (row["users"], row["events"]) == (4, 8)

    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    def test_by_items_they_are_the_relevant_pairs_of_the_slice(self, protocol: str) -> None:
        judging, result = judged(scored(), protocol=protocol)
        found = sliced(judging, "test", result, ["popularity"])
        of, frame = groups(DATA, "popularity"), found.frame
        assert result.shown is not None
        hits, pairs, rates = 0, 0, []
        for number, named in enumerate(of.names):
            wanted = [
                (u, i)
                for u, i in zip(DATA.test.users.tolist(), DATA.test.items.tolist(), strict=True)
                if of.of[i] == number
            ]
            listed = [
                sum(bool(h) and int(of.of[i]) == number for i, h in zip(row, hit, strict=True))
                for row, hit in zip(result.shown.items.tolist(), result.shown.hits.tolist(), strict=True)
            ]
            row = frame[(frame["slice"] == named) & (frame["metric"] == "recall@5")].iloc[0]
            assert row["events"] == len(wanted)
            assert row["users"] == len({u for u, _ in wanted})
            assert row["value"] == pytest.approx(sum(listed) / len(wanted) if wanted else math.nan, nan_ok=True)
            hits, pairs = hits + sum(listed), pairs + len(wanted)
            rates.append(row["value"])
        assert pairs == len(DATA.test)
        assert hits == int(result.shown.hits.sum())
        known = [each for each in rates if each == each]
        assert found.metrics["fair/popularity/opportunity@5"] == pytest.approx(max(known) - min(known))
        shares = frame[frame["metric"] == "exposure@5"]["value"].sum()
        assert shares == pytest.approx(1)

    def test_exposure_and_catalogue_are_shares_of_places_and_of_items_whatever_the_portions(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(base, "CELLS", N_ITEMS * 5)
        judging, result = judged(scored(), top_k=[3])
        assert len(judging.portions("test")) > 1
        assert result.shown is not None
        found, of = sliced(judging, "test", result, ["popularity"]), groups(DATA, "popularity")
        places = [int(of.of[item]) for row in result.shown.items.tolist() for item in row]
        apart, owned = [], dict.fromkeys(range(len(of.names)), 0)
        for item in of.of.tolist():
            owned[item] += 1
        for number, name in enumerate(of.names):
            told = found.frame[found.frame["slice"] == name].set_index("metric")["value"]
            assert told["exposure@3"] == pytest.approx(places.count(number) / len(places))
            assert told["catalogue"] == pytest.approx(owned[number] / N_ITEMS)
            apart.append(abs(told["exposure@3"] - told["catalogue"]))
            wanted, hits = 0, 0
            for user, item in zip(DATA.test.users.tolist(), DATA.test.items.tolist(), strict=True):
                row = result.shown.items[result.shown.users.tolist().index(user)].tolist()
                wanted, hits = (wanted + 1, hits + (item in row)) if of.of[item] == number else (wanted, hits)
            assert told["recall@3"] == pytest.approx(hits / wanted if wanted else math.nan, nan_ok=True)
        assert found.metrics["fair/popularity/parity@3"] == pytest.approx(max(apart))

    def test_single_predictions_are_judged_within_the_slice(self) -> None:
        data = labelled()
        judging, result = judged(scored() - 0.5, data, protocol="clicks", metrics=None, n_negatives=None)
        frame = sliced(judging, "test", result, ["gender", "popularity"]).frame
        inside = data.test.users % 3 == 1
        scores = scored()[data.test.users, data.test.items][inside] - 0.5
        row = frame.query("slice == 'M' and metric == 'logloss'").iloc[0]
        assert row["value"] == pytest.approx(prediction.logloss(scores, data.test.values[inside]).item())
        assert row["events"] == int(inside.sum())


class TestCalibration:
    def test_probabilities_of_clicks_that_are_too_sure_are_mended_on_validation(self) -> None:
        generator = torch.Generator().manual_seed(7)
        data = make_data(n_users=60, n_items=60, train=2, valid=20, test=20)
        truth = torch.randn(60, 60, generator=generator)
        labels = (torch.rand(60, 60, generator=generator) < truth.sigmoid()).float()
        parts = {
            p: replace(data.part(p), values=labels[data.part(p).users, data.part(p).items])
            for p in ("train", "valid", "test")
        }
        data = replace(data, **parts)
        judging, result = judged(6 * truth, data, protocol="clicks", metrics=None, n_negatives=None)
        found = Calibrated(judging, Shifted(Fixed(6 * truth)), "test", result)
        assert found.fitted["temperature"] == pytest.approx(6, rel=0.2)
        for name in ("logloss", "ece", "brier"):
            assert found.after[name] < found.before[name]
        assert found.after["f1"] >= found.before["f1"] - 0.02
        assert set(found.reliability["scores"]) == {"before", "after"}
        with pytest.raises(RrecError, match="validation is what is calibrated on"):
            Calibrated(judging, Shifted(Fixed(truth)), "valid", result)

    def test_intervals_of_ratings_have_nine_of_ten(self) -> None:
        generator = torch.Generator().manual_seed(7)
        data = make_data(n_users=60, n_items=60, train=2, valid=20, test=20)
        truth = 3 + torch.randn(60, 60, generator=generator)
        parts = {
            p: replace(data.part(p), values=truth[data.part(p).users, data.part(p).items])
            for p in ("train", "valid", "test")
        }
        data = replace(data, **parts)
        judging, result = judged(torch.full((60, 60), 3.0), data, protocol="ratings", metrics=None, n_negatives=None)
        found = Calibrated(judging, Shifted(Fixed(torch.full((60, 60), 3.0))), "test", result)
        assert found.after["interval_coverage"] == pytest.approx(0.9, abs=0.03)
        assert found.fitted["interval"] == pytest.approx(1.64, abs=0.15)

    def test_clicks_are_fitted_on_validation_and_judged_on_the_part(self) -> None:
        scores = 3 * scored() - 1.5
        parts = {}
        for part in ("train", "valid", "test"):
            events = DATA.part(part)
            place = torch.arange(len(events))
            clicked = (
                (scores[events.users, events.items] > 0.5) != (place % 5 == 0) if part == "valid" else place % 2 == 0
            )
            parts[part] = replace(events, values=clicked.float())
        data = replace(DATA, **parts)
        judging, result = judged(scores, data, protocol="clicks", metrics=None, n_negatives=None)
        found = Calibrated(judging, Shifted(Fixed(scores)), "test", result)
        (old, truth), (new, labels) = (
            (scores[part.users, part.items], part.values) for part in (data.valid, data.test)
        )
        heat, line = uncertainty.temperature(old, truth), uncertainty.threshold(old, truth)
        assert found.fitted == pytest.approx({"temperature": heat, "threshold": 1 / (1 + math.exp(-line))})
        assert heat != pytest.approx(uncertainty.temperature(new, labels), rel=0.01)
        assert ((new > line) != (new > 0)).any()
        known = {**prediction.CLICKS, **uncertainty.OF_CLICKS}
        for name, moved in {
            **dict.fromkeys(("logloss", "brier", "ece"), new / heat),
            **dict.fromkeys(("accuracy", "precision", "recall", "f1"), new - line),
        }.items():
            assert found.before[name] == pytest.approx(known[name](new, labels).item())
            assert found.after[name] == pytest.approx(known[name](moved, labels).item())

    def test_ratings_have_the_errors_of_validation_and_are_judged_on_the_part(self) -> None:
        scores = 5 * scored()
        judging, result = judged(scores, protocol="ratings", metrics=None, n_negatives=None)
        found = Calibrated(judging, Shifted(Fixed(scores)), "test", result)
        old, new = (
            (scores[part.users, part.items].double() - part.values).abs().tolist() for part in (DATA.valid, DATA.test)
        )
        width = sorted(old)[math.ceil(0.9 * (len(old) + 1)) - 1]
        variance = sum(each**2 for each in old) / len(old)
        assert found.fitted == pytest.approx({"interval": width, "std": math.sqrt(variance)})
        nll = sum(math.log(2 * math.pi * variance) / 2 + each**2 / (2 * variance) for each in new) / len(new)
        assert found.after == pytest.approx({"interval_coverage": sum(e <= width for e in new) / len(new), "nll": nll})

    def test_lists_are_fitted_on_validation_and_judged_on_the_part(self) -> None:
        scores = scored(3)
        scores[DATA.valid.users, DATA.valid.items] += 0.3
        judging, result = judged(scores, top_k=[3, 5])
        found, valid = (
            Calibrated(judging, Shifted(Fixed(scores)), "test", result),
            judging.evaluate(Shifted(Fixed(scores)), "valid"),
        )
        for k in (3, 5):
            (old, truth), (new, hits) = (
                (each.shown.scores[:, :k].flatten(), each.shown.hits[:, :k].flatten().double())
                for each in (valid, result)
                if each.shown is not None
            )
            slope, shift = uncertainty.scaling(old, truth)
            assert found.fitted[f"slope@{k}"] == pytest.approx(slope)
            assert slope != pytest.approx(uncertainty.scaling(new, hits)[0], rel=0.01)
            sure = [1 / (1 + math.exp(-(slope * each + shift))) for each in new.tolist()]
            expected = sum((p - y) ** 2 for p, y in zip(sure, hits.tolist(), strict=True)) / len(sure)
            assert found.after[f"brier@{k}"] == pytest.approx(expected)

    def test_scores_of_a_ranking_become_probabilities_of_a_hit(self) -> None:
        scores = 50 + 20 * scored()
        judging, result = judged(scores)
        found = Calibrated(judging, Shifted(Fixed(scores)), "test", result)
        assert found.after["ece@5"] < found.before["ece@5"]
        assert found.after["logloss@5"] < found.before["logloss@5"]

    def test_doubts_are_those_of_the_listed_items(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "CELLS", N_ITEMS * 5)  # several portions
        model = build("multi_intent_gaussian").eval()
        judging = evaluator(DATA, judge())
        at = Shifted(model)
        result = judging.evaluate(at, "test")
        doubts = deviations(judging, at, "test", result)
        assert doubts is not None
        assert result.shown is not None
        with torch.no_grad():
            whole = torch.cat([model.deviation(each, at.encoded) for each in judging.inputs(model, "test")])
        torch.testing.assert_close(doubts, whole.gather(1, result.shown.items))
        assert (doubts > 0).all()
        told, doubt = Calibrated(judging, at, "test", result).before, doubts.flatten()
        misses = ~result.shown.hits.flatten()
        assert 0 < misses.sum() < len(misses)
        assert told["error_auroc@5"] == pytest.approx(roc_auc_score(misses, doubt))
        assert told["doubt@5"] == pytest.approx(doubt.mean().item())
        risks = misses[doubt.argsort()].double().cumsum(0) / torch.arange(1, 1 + len(misses))
        assert told["aurc@5"] == pytest.approx(risks.mean().item())
        plain = Shifted(Fixed(scored()))
        assert deviations(judging, plain, "test", judging.evaluate(plain, "test")) is None


def run(verb: Any, out: Path, *words: str) -> dict[str, float]:
    out.mkdir(parents=True, exist_ok=True)
    name = verb.__name__.rpartition(".")[2]
    composed = compose(name, *words)
    found: dict[str, float] = verb.run(composing.typed(composed, name), out)
    (out / "metrics.json").write_text(json.dumps(found))
    (out / ".hydra").mkdir()
    OmegaConf.save(composed, out / ".hydra" / "config.yaml")
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, words in {"one": ["seed=0"], "two": ["seed=1", "epochs=6"]}.items():
        found[name] = tmp_path_factory.mktemp(name)
        run(train, found[name], *{w.partition("=")[0]: w for w in (*SMALL, *words)}.values())
    return found


class TestVerbs:
    def test_training_says_what_it_took(self, runs: dict[str, Path]) -> None:
        cost = json.loads((runs["one"] / "run.json").read_text())["cost"]
        assert cost["parameters"] == (60 + 40) * 8
        assert cost["epochs"] == 3
        assert cost["forward_equivalents_per_step"] == 3
        assert cost["seconds_per_epoch"] > 0

    def test_eval_compares_with_a_baseline_and_slices_and_calibrates(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        words = ["slices=[activity,popularity]", "calibrate=true", f"baseline='{runs['two']}'", "device=cpu"]
        found = run(evaluate, tmp_path, f"ckpt='{runs['one']}'", *words)
        other = run(evaluate, tmp_path / "other", f"ckpt='{runs['two']}'", "device=cpu")
        difference = found["test/ndcg@10"] - other["test/ndcg@10"]
        assert found["test/difference/ndcg@10"] == pytest.approx(difference)
        assert found["test/difference/ndcg@10/low"] <= difference <= found["test/difference/ndcg@10/high"]
        assert 0 <= found["test/difference/ndcg@10/p"] <= 1
        assert found["between/score_rmse"] > 0
        assert 0 < found["between/overlap@10"] < 1
        assert 0 < found["between/lists@10"] <= 60
        assert 0 < found["between/jaccard@10"] < found["between/overlap@10"]
        assert {f"between/{name}" for name in ("frbo@20", "kendall@10", "top1")} <= found.keys()
        assert "test/fair/activity/gap/ndcg@10" in found
        assert "test/calibrated/ece@10" in found
        frame = pd.read_csv(tmp_path / "slices.csv")
        assert list(frame.columns) == ["attribute", "slice", "users", "events", "metric", "value"]
        assert {each.name for each in tmp_path.glob("*.csv")} == {"slices.csv", "calibration.csv", "reliability.csv"}

    def test_scores_that_are_no_ratings_are_said_to_be_none(
        self, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run(evaluate, tmp_path / "a", f"ckpt='{runs['one']}'", "protocol=ratings", "device=cpu")
        assert "protocol=ratings: the scores of" in caplog.text
        caplog.clear()
        run(train, tmp_path / "rated", *SMALL, "model=biased_mf", "protocol=ratings", "loss=mse", "negatives=0")
        run(evaluate, tmp_path / "b", f"ckpt='{tmp_path}/rated'", "protocol=ratings", "device=cpu")
        assert "no ratings" not in caplog.text

    def test_bf16_and_a_baseline_are_each_told(self, runs: dict[str, Path], tmp_path: Path) -> None:
        words = f"ckpt='{runs['one']}'", f"baseline='{runs['one']}'", "precision=bf16", "device=cpu"
        found = run(evaluate, tmp_path, *words)
        assert found["divergence/score_rmse"] > 0
        assert (found["between/score_rmse"], found["between/overlap@10"], found["between/lists@10"]) == (0, 1, 0)
        assert found["between/jaccard@10"] == found["between/kendall@20"] == found["between/top1"] == 1

    def test_how_far_lists_move_with_a_few_training_events_is_told(self, runs: dict[str, Path], tmp_path: Path) -> None:
        values = []
        for share in (0.01, 0.5):
            noise = ("noise=history", "noise.op=delete", f"noise.level={share}")
            run(train, tmp_path / f"{share}", *SMALL, *noise)
            words = f"ckpt='{tmp_path / str(share)}'", f"baseline='{runs['one']}'", "device=cpu"
            found = run(evaluate, tmp_path / f"eval-{share}", *words)
            other = run(
                evaluate,
                tmp_path / f"turned-{share}",
                words[1].replace("baseline", "ckpt"),
                words[0].replace("ckpt", "baseline"),
                "device=cpu",
            )
            assert found["between/jaccard@10"] == pytest.approx(other["between/jaccard@10"])
            assert found["test/difference/ndcg@10"] == pytest.approx(-other["test/difference/ndcg@10"])
            values.append(found["between/jaccard@10"])
        assert 1 > values[0] > values[1]

    def test_clicks_are_compared_and_calibrated_too(self, tmp_path: Path) -> None:
        clicks = ["prepare.label=4", "protocol=clicks", "loss=bce", "negatives=0"]
        for name, epochs in (("one", 1), ("two", 4)):
            run(train, tmp_path / name, *(w for w in SMALL if w != "epochs=3"), f"epochs={epochs}", *clicks)
        words = ["protocol=clicks", "device=cpu", "slices=[activity]", "calibrate=true"]
        ckpts = f"ckpt='{tmp_path / 'one'}'", f"baseline='{tmp_path / 'two'}'"
        found = run(evaluate, tmp_path / "eval", *ckpts, *words)
        assert {"test/difference/logloss/p", "test/difference/auc", "test/fitted/temperature"} <= found.keys()
        assert "test/difference/auc/p" not in found
        assert [name for name in found if name.startswith("between/")] == ["between/score_rmse"]
        assert "test/fair/activity/gap/auc" in found

    def test_other_data_is_no_baseline(self, runs: dict[str, Path], tmp_path: Path) -> None:
        other = tmp_path / "other"
        run(train, other, *(w for w in SMALL if "n_users" not in w), "dataset.n_users=50")
        with pytest.raises(RrecError, match="there is nothing to compare"):
            run(evaluate, tmp_path / "eval", f"ckpt='{runs['one']}'", f"baseline='{other}'", "device=cpu")

    def test_other_fake_users_are_no_baseline(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            run(train, tmp_path / f"{seed}", *SMALL, "poison=random", f"poison.seed={seed}")
        words = f"ckpt='{tmp_path / '0'}'", f"baseline='{tmp_path / '1'}'", "device=cpu"
        with pytest.raises(RrecError, match="there is nothing to compare"):
            run(evaluate, tmp_path / "eval", *words)

    def test_an_attack_tells_how_the_lists_changed_and_what_a_defence_gave_back(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        words = ["eps=0.3", "device=cpu"]
        base = run(attack, tmp_path / "base", f"ckpt='{runs['two']}'", *words)
        assert base["stability/jaccard@10"] < 1
        assert {f"stability/{name}" for name in ("frbo@10", "kendall@10", "top1")} <= base.keys()
        assert base["rise/gini@10"] == pytest.approx(base["attacked/gini@10"] - base["clean/gini@10"])
        more = ["slices=[activity]", f"baseline='{tmp_path / 'base'}'"]
        found = run(attack, tmp_path / "attack", f"ckpt='{runs['one']}'", *words, *more)
        taken = base["clean/ndcg@10"] - base["attacked/ndcg@10"]
        expected = (found["attacked/ndcg@10"] - base["attacked/ndcg@10"]) / taken
        assert found["improvement/ndcg@10"] == pytest.approx(expected)
        assert found["flag/improvement_undefined/ndcg@10"] == 0
        assert list(pd.read_csv(tmp_path / "attack" / "slices.csv").columns)[-2:] == ["clean", "attacked"]
        assert "attacked/fair/activity/gap/ndcg@10" in found

    def test_another_attack_is_no_baseline(self, runs: dict[str, Path], tmp_path: Path) -> None:
        run(attack, tmp_path / "base", f"ckpt='{runs['one']}'", "eps=0.1", "device=cpu")
        with pytest.raises(
            RrecError, match="not the same attack on the same data, its budget is .* 0.1 .*, not .* 0.2 "
        ):
            run(
                attack,
                tmp_path / "a",
                f"ckpt='{runs['one']}'",
                "eps=0.2",
                f"baseline='{tmp_path / 'base'}'",
                "device=cpu",
            )

    @pytest.mark.parametrize(
        ("word", "told"),
        [
            ("attack.steps=2", "its attack.steps is 2, not 10"),
            ("loss=bce", "its loss is bce, not None"),
            ("part=valid", "its part is valid, not test"),
            ("seen=true", "its seen is True, not False"),
            ("protocol=sampled n_negatives=15", "its protocol is sampled, not full"),
            ("goal=promote", "its goal is promote .*, not untargeted"),
        ],
    )
    def test_an_attack_with_other_settings_is_no_baseline(
        self, runs: dict[str, Path], tmp_path: Path, word: str, told: str
    ) -> None:
        words = [f"ckpt='{runs['one']}'", "device=cpu", "top_k=[5]"]
        run(attack, tmp_path / "base", *words, *word.split())
        with pytest.raises(RrecError, match=f"not the same attack on the same data, {told}"):
            run(attack, tmp_path / "a", *words, "attack.steps=10", f"baseline='{tmp_path / 'base'}'")

    def test_a_baseline_may_have_other_seeds_and_tell_other_metrics(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        words = ["eps=0.3", "device=cpu"]
        run(attack, tmp_path / "base", f"ckpt='{runs['two']}'", *words, "attack.seed=3", "top_k=[10]")
        more = [f"baseline='{tmp_path / 'base'}'", "slices=[activity]", "per_user=true"]
        found = run(attack, tmp_path / "a", f"ckpt='{runs['one']}'", *words, *more)
        assert "improvement/ndcg@10" in found
        assert "improvement/ndcg@20" not in found

    def test_a_baseline_that_is_not_finished_or_does_not_say_how_it_was_attacked_is_refused(
        self, runs: dict[str, Path], tmp_path: Path
    ) -> None:
        words = [f"ckpt='{runs['one']}'", "device=cpu"]
        base = tmp_path / "base"
        run(attack, base, *words)
        (base / ".hydra" / "config.yaml").rename(base / "config.yaml")
        with pytest.raises(RrecError, match="how it was attacked cannot be read"):
            run(attack, tmp_path / "a", *words, f"baseline='{base}'")
        (base / "metrics.json").unlink()
        with pytest.raises(RrecError, match="is no finished run"):
            run(attack, tmp_path / "b", *words, f"baseline='{base}'")
