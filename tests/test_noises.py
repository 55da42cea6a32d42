"""Noise and shift of data: what changes, what stays, by how much, and a checkpoint judged on noisy data."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import STANDINS, WORDS, build, compose, configured, interactions, judge, make_data, pretrained, question
from torch import Tensor

from robustbench_rec import checkpoint, composing
from robustbench_rec.config import Prepare, Recipe
from robustbench_rec.data import KG, Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.features import features
from robustbench_rec.models import models
from robustbench_rec.noise import cycle, drawn, pairs, repeated
from robustbench_rec.noises import noises
from robustbench_rec.noises.history import cascading
from robustbench_rec.prepare import load
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import data as data_task
from robustbench_rec.tasks import eval as evaluate
from robustbench_rec.tasks import train
from robustbench_rec.text.distances import levenshtein

TOUCHED = {  # what a noise may change; everything else stays bit for bit
    "edge_add": "train",
    "edge_drop": "train",
    "edge_rewire": "train",
    "history": "train",
    "kg_add": "kg",
    "kg_align": "kg",
    "kg_drop": "kg",
    "kg_relation": "kg",
    "kg_rewire": "kg",
    "label_flip": "train",
    "popularity_shift": "test",
    "rating_noise": "train",
    "sparsify": "train",
    "subpopulation": "test",
    "temporal_shift": "train",
    "text_noise": "texts",
    "unseen_category": "train test",
}
DECIDED = {"temporal_shift"}  # nothing is drawn
WAYS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in TOUCHED),
    *((name, {"bias": "degree"}) for name in ("edge_add", "edge_drop", "edge_rewire", "kg_drop")),
    *(("history", {"op": op}) for op in ("crop", "delete", "insert", "reverse", "swap")),
    *(("history", {"op": op, "where": "end"}) for op in ("crop", "delete", "insert", "replace", "reverse", "swap")),
    ("subpopulation", {"among": "items", "share": 0.5}),
    ("subpopulation", {"among": "gender", "value": "F"}),
    ("unseen_category", {"column": "genres", "value": "old"}),
]
IDS = ["-".join([name, *map(str, changes.values())]) for name, changes in WAYS]


def sample() -> Data:
    """Every part of the data, with ground truth that names its event."""
    made = make_data(n_users=30, n_items=60, train=10, valid=1, test=4)
    assert made.kg is not None
    generator = torch.Generator().manual_seed(3)
    heads = torch.randint(60, (300,), generator=generator)
    tails = 60 + torch.randint(6, (300,), generator=generator)
    relations = torch.randint(3, (300,), generator=generator)
    unique = torch.unique(torch.stack([heads, relations, tails], 1), dim=0)
    graph = replace(made.kg, heads=unique[:, 0], relations=unique[:, 1], tails=unique[:, 2])
    truth = {f"{part}/pair": pairs(made.part(part), made) for part in ("train", "valid", "test")}
    return replace(made, kg=graph, truth=truth)


CLEAN = sample()
CLICKS = replace(CLEAN, train=replace(CLEAN.train, values=(CLEAN.train.values > 2).float()))


def noisy(name: str, data: Data = CLEAN, **changes: Any) -> Data:
    return noises.build(configured("noise", name, **changes))(data)


def graph(data: Data) -> KG:
    assert data.kg is not None
    return data.kg


def triples(data: Data) -> Tensor:
    kg = graph(data)
    return (kg.heads * kg.n_relations + kg.relations) * kg.n_entities + kg.tails


def same(one: Interactions, two: Interactions) -> bool:
    return all(torch.equal(each, getattr(two, name)) for name, each in vars(one).items() if each is not None)


def changed(data: Data, clean: Data = CLEAN) -> int:
    """Events of train and test that came or went, rows of train that differ, triples that came or went, other texts."""
    events = sum(
        int((~torch.isin(pairs(one.part(part), one), pairs(two.part(part), two))).sum())
        for part in ("train", "test")
        for one, two in ((data, clean), (clean, data))
    )
    rows = 0
    if len(data.train) == len(clean.train):
        rows = int(((data.train.items != clean.train.items) | (data.train.values != clean.train.values)).sum())
    a, b = triples(data), triples(clean)
    assert data.item_table is not None
    assert clean.item_table is not None
    rows += int((data.item_table.astype("str") != clean.item_table.astype("str")).to_numpy().sum())
    return events + rows + int((~torch.isin(a, b)).sum() + (~torch.isin(b, a)).sum())


def test_every_noise_says_what_it_touches() -> None:
    assert {*TOUCHED, "none", "embedding", "simulation"} == set(noises)


@pytest.mark.parametrize(("name", "changes"), WAYS, ids=IDS)
class TestNoise:
    def test_level_0_changes_nothing(self, name: str, changes: dict[str, Any]) -> None:
        assert noisy(name, level=0.0, **changes) is CLEAN

    def test_the_seed_decides(self, name: str, changes: dict[str, Any]) -> None:
        one, two, other = (noisy(name, level=0.5, seed=seed, **changes) for seed in (1, 1, 2))
        assert one.fingerprint == two.fingerprint
        assert all(same(one.part(part), two.part(part)) for part in ("train", "valid", "test"))
        assert torch.equal(triples(one), triples(two))
        assert len({one.fingerprint, other.fingerprint, CLEAN.fingerprint}) == 3
        if name not in DECIDED:
            assert changed(one, other)

    def test_what_it_does_not_touch_stays(self, name: str, changes: dict[str, Any]) -> None:
        data, touched = noisy(name, level=0.5, **changes), TOUCHED[name].split()
        for part in ("train", "valid", "test"):
            assert same(data.part(part), CLEAN.part(part)) != (part in touched), part
            if part not in touched:
                assert torch.equal(data.truth[f"{part}/pair"], CLEAN.truth[f"{part}/pair"])
        assert ("kg" in touched) != torch.equal(triples(data), triples(CLEAN))
        assert (data.user_ids, data.item_ids) == (CLEAN.user_ids, CLEAN.item_ids)
        assert (data.item_table is CLEAN.item_table) != ("texts" in touched)
        assert sorted(graph(data).entity_ids) == sorted(graph(CLEAN).entity_ids)
        assert graph(data).relation_ids == graph(CLEAN).relation_ids

    def test_a_higher_level_changes_more(self, name: str, changes: dict[str, Any]) -> None:
        found = [changed(noisy(name, level=level, **changes)) for level in (0.1, 0.4, 0.8)]
        assert found == sorted(found)
        assert found[-1] > found[0]

    def test_every_user_keeps_a_training_event_and_events_stay_in_order(
        self, name: str, changes: dict[str, Any]
    ) -> None:
        for level in (0.3, 1.0):
            train = noisy(name, level=level, **changes).train
            assert torch.equal(torch.unique(train.users), torch.arange(CLEAN.n_users))
            assert train.times is not None
            order = train.users * (1 + train.times.max()) + train.times
            assert torch.equal(order, order.sort().values)

    def test_no_pair_is_twice_in_train_and_no_held_out_pair_gets_there(
        self, name: str, changes: dict[str, Any]
    ) -> None:
        data = noisy(name, level=0.6, **changes)
        keys = pairs(data.train, data)
        assert len(torch.unique(keys)) == len(keys)
        held = torch.cat([pairs(CLEAN.part(part), CLEAN) for part in ("valid", "test")])
        assert not torch.isin(keys, held).any()

    def test_what_went_is_hidden(self, name: str, changes: dict[str, Any]) -> None:
        data = noisy(name, level=0.6, **changes)
        gone = pairs(CLEAN.train, CLEAN)
        gone = gone[~torch.isin(gone, pairs(data.train, data))]
        hidden = gone[:0] if data.hidden is None else pairs(data.hidden, data)
        assert torch.equal(hidden.sort().values, gone.sort().values)

    def test_ground_truth_follows_its_events(self, name: str, changes: dict[str, Any]) -> None:
        data = noisy(name, level=0.6, **changes)
        for part in ("train", "test"):
            made_up = data.truth.get(f"{part}/noise", torch.zeros(len(data.part(part)), dtype=torch.bool))
            own, told = pairs(data.part(part), data), data.truth[f"{part}/pair"]
            assert torch.equal(own[~made_up], told[~made_up])
            assert not torch.isin(own[made_up], CLEAN.truth[f"{part}/pair"]).any()

    def test_noise_upon_noise_hides_what_either_took(self, name: str, changes: dict[str, Any]) -> None:
        twice = noisy(name, noisy("sparsify", level=0.3), level=0.5, **changes)
        assert twice.hidden is not None
        known = torch.cat([pairs(twice.hidden, twice), pairs(twice.train, twice)])
        assert torch.isin(pairs(CLEAN.train, CLEAN), known).all()


class TestEvents:
    def test_flipped_labels_are_marked_and_a_user_keeps_a_click(self) -> None:
        data = noisy("label_flip", CLICKS, level=0.4)
        flipped = data.train.values != CLICKS.train.values
        assert torch.equal(flipped, data.truth["train/noise"])
        assert int(flipped.sum()) == round(0.4 * len(CLICKS.train))
        assert torch.equal(data.train.items, CLICKS.train.items)
        liked = CLICKS.train.liked().users.unique()
        assert torch.equal(noisy("label_flip", CLICKS, level=1.0).train.liked().users.unique(), liked)

    def test_as_many_false_positives_come_as_true_ones_go(self) -> None:
        data = noisy("label_flip", level=0.3)
        count = round(0.3 * len(CLEAN.train))
        assert len(data.train) == len(CLEAN.train)
        assert int(data.truth["train/noise"].sum()) == count
        assert data.hidden is not None
        assert len(data.hidden) == count

    @pytest.mark.parametrize("name", ["edge_add", "label_flip"])
    @pytest.mark.parametrize("timed", [True, False])
    def test_false_events_stand_among_true_ones(self, name: str, timed: bool) -> None:
        clean = make_data(n_users=30, n_items=400, train=20, valid=1, test=1)
        clean = replace(clean, train=replace(clean.train, values=torch.ones(600)))
        assert clean.train.times is not None
        same = clean.train.times - clean.train.times % 10  # many at once
        data = noisy(name, replace(clean, train=replace(clean.train, times=same if timed else None)), level=0.4)
        counts = torch.bincount(data.train.users)
        at = torch.arange(len(data.train)) - (counts.cumsum(0) - counts)[data.train.users]
        at, false = at / (counts - 1)[data.train.users], data.truth["train/noise"]
        assert at[false].mean().item() == pytest.approx(at[~false].mean().item(), abs=0.08)
        assert (at[false] == 1).float().mean() < 0.15

    @pytest.mark.parametrize("name", ["edge_add", "label_flip"])
    def test_where_no_other_event_can_be_a_warning_says_so(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        users, items = torch.cartesian_prod(torch.arange(20), torch.arange(3)).T
        clean = make_data(n_users=20, n_items=6, train=2, valid=1, test=1)
        train = interactions(users, items)
        clean = replace(clean, train=train, valid=interactions(users, items + 2), test=train)  # item 5 alone is left
        data = noisy(name, clean, level=0.6)
        found = int(data.truth["train/noise"].sum())
        assert found < 36
        assert f"{found} of 36 false events were found" in caplog.text

    def test_who_keeps_an_event_has_no_wrong_one_in_its_place(self, caplog: pytest.LogCaptureFixture) -> None:
        clean = replace(CLEAN, train=interactions(torch.arange(30), torch.arange(30)), truth={})
        assert not noisy("label_flip", clean, level=0.5).truth["train/noise"].any()
        assert "0 of 15 events are wrong" in caplog.text

    def test_noise_of_the_source_stays_marked(self) -> None:
        marked = torch.zeros(len(CLEAN.train), dtype=torch.bool)
        marked[:7] = True
        data = noisy("edge_add", replace(CLEAN, truth={"train/noise": marked}), level=0.1)
        assert int(data.truth["train/noise"].sum()) == 7 + len(data.train) - len(CLEAN.train)

    def test_noisy_ratings_stay_on_the_scale_with_about_the_spread_asked_for(self) -> None:
        scale = torch.arange(1000).float() / 10
        wide = replace(CLEAN, train=replace(CLEAN.train, values=scale[300 + torch.arange(len(CLEAN.train))]))
        data = noisy("rating_noise", wide, level=2.0)
        assert set(data.train.values.tolist()) <= set(wide.train.values.tolist())
        inner = slice(100, 200)  # away from the ends of the scale
        spread = (data.train.values - wide.train.values)[inner].std().item()
        assert spread == pytest.approx(2.0, rel=0.2)
        assert torch.equal(data.truth["train/rating"], wide.train.values)

    def test_sparsify_takes_the_same_share_of_every_user(self) -> None:
        counts = torch.bincount(noisy("sparsify", level=0.3).train.users)
        assert counts.tolist() == [7] * CLEAN.n_users

    @pytest.mark.parametrize("level", [0.1, 0.2, 0.4, 0.6])
    def test_sparsify_keeps_to_its_share_where_users_have_few_events(self, level: float) -> None:
        few = CLEAN.train.where(torch.arange(len(CLEAN.train)) % 10 < 4)
        counts = torch.bincount(noisy("sparsify", replace(CLEAN, train=few), level=level).train.users)
        assert int(counts.sum()) == len(few) - round(level * len(few))
        assert set(counts.tolist()) <= {math.floor(4 - 4 * level), math.ceil(4 - 4 * level)}

    def test_temporal_shift_takes_the_latest_events(self) -> None:
        scattered = torch.randperm(len(CLEAN.train), generator=torch.Generator().manual_seed(0))
        order = (scattered + CLEAN.train.users * len(scattered)).argsort()
        times = scattered[order]  # ascending for each user, mixed between them
        clean = replace(CLEAN, train=replace(CLEAN.train, times=times))
        data = noisy("temporal_shift", clean, level=0.25)
        assert data.train.times is not None
        assert len(data.train) == 225
        assert int(data.train.times.max()) < 230  # a user's first event may be later than others that went

    @pytest.mark.parametrize(("name", "level"), [("temporal_shift", 0.8), ("edge_drop", 0.8), ("sparsify", 0.8)])
    def test_nobody_loses_the_last_liked_event(self, name: str, level: float) -> None:
        clean = replace(CLICKS, train=replace(CLICKS.train, times=torch.arange(len(CLICKS.train))))
        before, after = (each.train.liked().users.unique() for each in (clean, noisy(name, clean, level=level)))
        assert torch.equal(before, after)

    @pytest.mark.parametrize("bias", ["none", "degree"])
    def test_an_edge_is_a_click_and_not_a_refusal(self, bias: str) -> None:
        clicks = int(CLICKS.train.values.sum())
        for name in ("edge_add", "edge_rewire"):
            data = noisy(name, CLICKS, level=0.4, bias=bias)
            assert data.train.values[data.truth["train/noise"]].all()
            assert int(data.truth["train/noise"].sum()) == pytest.approx(0.4 * clicks, abs=2)

    def test_popularity_shift_keeps_rare_items(self) -> None:
        users, items = torch.arange(1000) % 30, torch.arange(1000) % 2
        clean = replace(CLEAN, test=interactions(users, items), truth={})
        counts = torch.cat([torch.zeros(90, dtype=torch.long), torch.ones(10, dtype=torch.long)])
        clean = replace(clean, train=interactions(torch.arange(100) % 30, counts))
        kept = torch.bincount(noisy("popularity_shift", clean, level=1.0).test.items)
        assert int(kept.sum()) == 500
        assert kept[1] > 4 * kept[0]

    @pytest.mark.parametrize("name", [each for each in TOUCHED if each not in ("rating_noise", "temporal_shift")])
    def test_who_liked_something_still_does(self, name: str) -> None:
        data = noisy(name, CLICKS, level=1.0)
        before, after = (set(each.train.liked().users.tolist()) for each in (CLICKS, data))
        assert before <= after

    def test_noise_on_ratings_is_refused_where_there_are_clicks(self) -> None:
        with pytest.raises(RrecError, match=r"noise 'rating_noise' is for ratings, .* take noise=label_flip"):
            noisy("rating_noise", CLICKS, level=1.0)

    def test_an_unseen_category_is_in_test_alone(self) -> None:
        table = CLEAN.item_table
        assert table is not None
        members = torch.tensor(table["genres"].str.contains("sea").to_numpy())
        data = noisy("unseen_category", level=1.0)  # its own choice: genres, and of its words the one of a third
        assert not members[data.train.items].any()
        assert members[data.test.items].all()
        half = noisy("unseen_category", level=0.5)
        assert len(half.test.items.unique()) <= round(0.5 * int(members.sum()))

    def test_a_category_of_most_items_is_not_chosen(self) -> None:
        table = CLEAN.item_table
        assert table is not None
        constant = replace(CLEAN, item_table=table.assign(title="film"))  # has fewer words than genres
        data = noisy("unseen_category", constant, level=1.0)
        members = torch.tensor(table["genres"].str.contains("sea").to_numpy())
        assert torch.equal(data.test.items, CLEAN.test.items[members[CLEAN.test.items]])
        with pytest.raises(RrecError, match=r"in title every word is .* noise.value \(choices: film\)"):
            noisy("unseen_category", constant, level=1.0, column="title")
        named = noisy("unseen_category", constant, level=0.5, column="title", value="film")
        assert 0 < len(named.test) < len(CLEAN.test)

    @pytest.mark.parametrize("among", ["users", "items"])
    def test_the_coldest_are_left_in_test(self, among: str) -> None:
        train = interactions([0] * 5 + [1] * 2 + list(range(2, 30)), [1, 2, 3, 4, 5, 1, 2, *[1] * 28])
        data = noisy("subpopulation", replace(CLEAN, train=train, truth={}), among=among, share=0.9)
        assert 0 < len(data.test) < len(CLEAN.test)
        assert (0 if among == "users" else 1) not in getattr(data.test, among).tolist()

    def test_users_with_a_value_are_left_in_test(self) -> None:
        table = CLEAN.user_table
        assert table is not None
        data = noisy("subpopulation", among="gender", value="M")
        assert set(table["gender"][data.test.users.unique().tolist()]) == {"M"}

    def test_swapped_histories_have_the_same_events_in_another_order(self) -> None:
        data = noisy("history", op="swap", level=0.5)
        assert torch.equal(pairs(data.train, data).sort().values, pairs(CLEAN.train, CLEAN).sort().values)
        assert data.hidden is None
        assert torch.equal(data.train.times, CLEAN.train.times)  # type: ignore[arg-type]

    @pytest.mark.parametrize("timed", [True, False])
    def test_inserted_events_come_behind_others_which_stay(self, timed: bool) -> None:
        clean = CLEAN if timed else replace(CLEAN, train=replace(CLEAN.train, times=None))
        data = noisy("history", clean, op="insert", level=0.3)
        new = data.truth["train/noise"]
        assert int(new.sum()) == round(0.3 * len(clean.train))
        kept = data.train.where(~new)
        assert torch.equal(pairs(kept, data), pairs(clean.train, clean))
        assert data.hidden is None
        at = new.nonzero().squeeze(1)
        assert torch.equal(data.train.users[at], data.train.users[at - 1])
        if timed:
            assert data.train.times is not None
            assert torch.equal(data.train.times[at], data.train.times[at - 1])
        known = torch.cat([pairs(clean.part(each), clean) for each in ("train", "valid", "test")])
        assert not torch.isin(pairs(data.train.where(new), data), known).any()
        last = torch.cat([data.train.users.diff() != 0, torch.tensor([True])])
        assert int((new & ~last).sum()) > 0  # not all at the end

    @pytest.mark.parametrize("level", [0.05, 0.2, 0.5, 0.9])
    def test_as_many_events_of_short_histories_are_swapped_as_the_level_says(self, level: float) -> None:
        users = torch.cat([torch.arange(300).repeat_interleave(3), torch.arange(300, 400)])  # the last have one event
        clean = replace(CLEAN, user_ids=[str(each) for each in range(400)], truth={}, valid=CLEAN.test)
        clean = replace(clean, train=interactions(users, torch.arange(1000)), item_ids=[*map(str, range(1000))])
        data = noisy("history", clean, op="swap", level=level)
        moved = (data.train.items != clean.train.items).nonzero().squeeze(1)
        assert len(moved) == min(round(level * 1000), 900)
        assert set(torch.bincount(users[moved]).tolist()) <= {0, 2, 3}

    RUN = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)

    @pytest.mark.parametrize(
        ("op", "where", "expected"),
        [
            ("delete", "start", (3, 4, 5, 6, 7, 8, 9)),
            ("delete", "end", (0, 1, 2, 3, 4, 5, 6)),
            ("delete", "middle", (0, 1, 2, 6, 7, 8, 9)),
            ("crop", "start", (3, 4, 5, 6, 7, 8, 9)),
            ("crop", "end", (0, 1, 2, 3, 4, 5, 6)),
            ("crop", "middle", (1, 2, 3, 4, 5, 6, 7)),
            ("reverse", "start", (3, 2, 1, 0, 4, 5, 6, 7, 8, 9)),
            ("reverse", "end", (0, 1, 2, 3, 4, 5, 9, 8, 7, 6)),
            ("replace", "start", (None, None, None, 3, 4, 5, 6, 7, 8, 9)),
            ("insert", "end", (0, 1, 2, 3, 4, 5, 6, 7, None, 8, None, 9, None)),
        ],
    )
    def test_training_events_at_a_place_are_edited(self, op: str, where: str, expected: tuple[int | None, ...]) -> None:
        level = 0.4 if op == "reverse" else 0.3
        clean = replace(CLEAN, train=replace(CLEAN.train, values=torch.ones(len(CLEAN.train))))
        data = noisy("history", clean, op=op, where=where, level=level)
        for user in range(CLEAN.n_users):
            before, after = (each.train.items[each.train.users == user].tolist() for each in (clean, data))
            assert len(before) == len(self.RUN)
            assert len(after) == len(expected)
            for item, place in zip(after, expected, strict=True):
                assert item not in before if place is None else item == before[place]

    @pytest.mark.parametrize("level", [0.02, 0.2, 1.0])
    def test_cascades_begin_with_the_events_that_most_others_follow_from(self, level: float) -> None:
        train = CLEAN.train
        assert train.times is not None
        n, order = len(train), train.times.argsort(stable=True).tolist()
        follow: list[set[int]] = [set() for _ in range(n)]
        latest: dict[tuple[str, int], int] = {}
        behind: list[list[int]] = [[] for _ in range(n)]
        for event in order:
            for key in (("user", int(train.users[event])), ("item", int(train.items[event]))):
                if key in latest:
                    behind[latest[key]].append(event)
                latest[key] = event
        for event in reversed(order):
            follow[event] = {event}.union(*(follow[each] for each in behind[event]))
        sizes = torch.tensor([len(each) for each in follow])
        count = round(level * n)
        found = cascading(CLEAN, count)
        assert len(found.unique()) == count
        assert torch.equal(sizes[found], sizes.sort(descending=True).values[:count])
        data = noisy("history", op="delete", where="cascade", level=0.02)
        gone = set(range(n)) - {int((pairs(train, CLEAN) == key).nonzero()) for key in pairs(data.train, data)}
        assert gone == set(cascading(CLEAN, round(0.02 * n)).tolist())

    def test_cascades_need_times_and_single_events(self) -> None:
        with pytest.raises(
            RrecError, match="noise.where=cascade is for delete, insert, replace, not for noise.op=swap"
        ):
            noisy("history", op="swap", where="cascade")
        with pytest.raises(RrecError, match="noise.where=cascade: dataset 'tiny' has no times"):
            noisy("history", replace(CLEAN, train=replace(CLEAN.train, times=None)), op="delete", where="cascade")

    @pytest.mark.parametrize("op", ["crop", "delete", "replace", "swap"])
    @pytest.mark.parametrize("level", [0.05, 0.33, 0.8])
    def test_edits_at_a_place_are_as_many_as_the_level_says(self, op: str, level: float) -> None:
        data = noisy("history", op=op, where="middle", level=level)
        if op in ("crop", "delete"):
            assert len(CLEAN.train) - len(data.train) == round(level * len(CLEAN.train))
        else:
            moved = int((data.train.items != CLEAN.train.items).sum())
            assert moved == pytest.approx(level * len(CLEAN.train), abs=1)

    @pytest.mark.parametrize("op", ["crop", "delete"])
    def test_who_loses_events_keeps_one_that_is_liked(self, op: str) -> None:
        liked = CLICKS.train.liked().users.unique()
        left = noisy("history", CLICKS, op=op, where="start", level=1.0).train
        assert torch.equal(left.liked().users.unique(), liked)
        assert len(left) == CLICKS.n_users

    def test_items_are_put_into_training_by_their_share_of_it(self) -> None:
        popular = torch.bincount(CLEAN.train.items, minlength=CLEAN.n_items).double()
        found = {
            items: popular[data.train.items[data.truth["train/noise"]]].mean().item()
            for items in ("popular", "uniform", "unpopular")
            for data in [noisy("history", op="replace", items=items, level=0.9)]
        }
        assert found["popular"] > found["uniform"] > found["unpopular"]

    @pytest.mark.parametrize("bias", ["none", "degree"])
    def test_rewiring_keeps_every_degree(self, bias: str) -> None:
        for level in (0.1, 0.5, 1.0):
            data = noisy("edge_rewire", level=level, bias=bias)
            assert torch.equal(torch.bincount(data.train.users), torch.bincount(CLEAN.train.users))
            assert torch.equal(data.train.items.sort().values, CLEAN.train.items.sort().values)
            assert int((data.train.items != CLEAN.train.items).sum()) == round(level * len(CLEAN.train))

    def test_edges_that_cannot_be_rewired_are_said(self, caplog: pytest.LogCaptureFixture) -> None:
        clean = replace(
            CLEAN, train=interactions(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 2])), truth={}
        )
        clean = replace(clean, valid=clean.train.where(torch.zeros(5, dtype=torch.bool)), test=clean.train)
        data = noisy("edge_rewire", clean, level=1.0)  # a swap with the last edge is all that can be
        assert torch.equal(torch.bincount(data.train.items), torch.tensor([2, 2, 1]))
        assert f"{int(data.truth['train/noise'].sum())} of 5 edges were rewired" in caplog.text

    def test_edges_between_hubs_are_drawn_more_often(self) -> None:
        users, items = (
            torch.arange(30).repeat_interleave(20),
            torch.cat([torch.arange(20)] * 29 + [torch.arange(40, 60)]),
        )
        clean = replace(CLEAN, train=interactions(users, items), truth={})
        shares = {bias: noisy("edge_drop", clean, level=0.3, bias=bias).train.items for bias in ("none", "degree")}
        rare = {bias: int((each >= 40).sum()) for bias, each in shares.items()}
        assert rare["degree"] > rare["none"]
        popular = [int((noisy("edge_add", clean, level=0.3, bias=bias).train.items < 20).sum()) for bias in shares]
        assert popular[1] >= popular[0]


class TestTriples:
    def test_a_share_of_them_goes(self) -> None:
        kept = triples(noisy("kg_drop", level=0.25))
        assert len(kept) == len(triples(CLEAN)) - round(0.25 * len(triples(CLEAN)))
        assert torch.isin(kept, triples(CLEAN)).all()

    def test_false_ones_have_tails_that_their_relation_has(self) -> None:
        data = noisy("kg_add", level=0.5)
        false = ~torch.isin(triples(data), triples(CLEAN))
        assert int(false.sum()) == round(0.5 * len(triples(CLEAN)))
        types = {
            name: graph(each).relations * 100 + graph(each).tails for name, each in (("old", CLEAN), ("new", data))
        }
        assert torch.isin(types["new"], types["old"]).all()
        assert len(torch.unique(triples(data))) == len(data.kg)  # type: ignore[arg-type]

    def test_rewiring_keeps_heads_relations_and_how_often_a_relation_has_a_tail(self) -> None:
        data = noisy("kg_rewire", level=0.5)
        ends = [(graph(each).relations * graph(each).n_entities + graph(each).tails) for each in (data, CLEAN)]
        assert torch.equal(ends[0].sort().values, ends[1].sort().values)
        assert int((ends[0] != ends[1]).sum()) == round(0.5 * len(graph(CLEAN)))
        assert torch.equal(graph(data).heads, graph(CLEAN).heads)
        assert torch.equal(graph(data).relations, graph(CLEAN).relations)
        assert len(torch.unique(triples(data))) == len(graph(data))

    def test_relations_are_others(self) -> None:
        data = noisy("kg_relation", level=0.5)
        other = graph(data).relations != graph(CLEAN).relations
        assert int(other.sum()) == round(0.5 * len(graph(CLEAN)))
        assert len(torch.unique(triples(data))) == len(graph(data))
        assert torch.equal(graph(data).tails, graph(CLEAN).tails)

    @pytest.mark.parametrize("name", ["kg_add", "kg_relation"])
    def test_where_no_other_triple_can_be_a_warning_says_so(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        heads, relations, tails = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.tensor([60, 61])).T
        whole = replace(graph(CLEAN), heads=heads, relations=relations, tails=tails, relation_ids=["a", "b"])
        data = noisy(name, replace(CLEAN, kg=whole), level=0.5)
        assert torch.equal(triples(data), triples(replace(CLEAN, kg=whole)))
        assert "0 of 6" in caplog.text

    def test_misaligned_items_have_the_neighbourhood_and_the_name_of_another(self) -> None:
        data, clean = graph(noisy("kg_align", level=0.5)), graph(CLEAN)
        moved = [place for place in range(60) if data.entity_ids[place] != clean.entity_ids[place]]
        assert len(moved) == 30
        assert data.entity_ids[60:] == clean.entity_ids[60:]
        named = [
            (each.entity_ids[h], each.entity_ids[t])
            for each in (clean, data)
            for h, t in zip(each.heads, each.tails, strict=True)
        ]
        assert named[: len(clean)] == named[len(clean) :]


class TestTexts:
    def table(self, data: Data) -> pd.DataFrame:
        assert data.item_table is not None
        return data.item_table

    def titles(self, data: Data) -> list[str]:
        return self.table(data)["title"].tolist()

    def test_as_many_words_as_the_level_says_have_an_edit(self) -> None:
        many = replace(CLEAN, item_table=pd.DataFrame({"title": ["some words of a long title"] * 60}))
        distances = levenshtein(self.titles(many), self.titles(noisy("text_noise", many, level=0.3)), "characters")
        assert distances.max() <= 6
        assert distances.sum() / (6 * 60) == pytest.approx(0.3, abs=0.05)

    def test_prose_alone_changes_where_no_column_is_named(self) -> None:
        data = self.table(noisy("text_noise", level=0.9))
        assert data[["genres", "year"]].equals(self.table(CLEAN)[["genres", "year"]])
        named = self.table(noisy("text_noise", level=0.9, column="genres"))
        assert named["title"].equals(self.table(CLEAN)["title"])
        assert (named["genres"] != self.table(CLEAN)["genres"]).mean() > 0.8

    def test_what_is_missing_stays_missing(self) -> None:
        gaps = replace(CLEAN, item_table=self.table(CLEAN).assign(title=[None, "", "two words"] * 20))
        titles = self.titles(noisy("text_noise", gaps, level=1.0))
        assert [pd.isna(each) for each in titles] == [True, False, False] * 20
        assert titles[1::3] == [""] * 20

    @pytest.mark.parametrize("kind", ["typo", "swap", "delete", "homoglyph"])
    def test_kinds_of_edits(self, kind: str) -> None:
        assert self.titles(noisy("text_noise", level=0.9, kind=kind)) != self.titles(CLEAN)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("sparsify", {"level": 1.5}, r"noise.level=1.5: noise 'sparsify' has levels between 0 and 1"),
            ("rating_noise", {"level": -1.0}, "has levels at least 0"),
            ("edge_drop", {"bias": "rank"}, "unknown noise.bias 'rank'"),
            ("history", {"op": "duplicate"}, "unknown noise.op 'duplicate'"),
            ("history", {"where": "front"}, "unknown noise.where 'front'"),
            ("history", {"items": "similar"}, "unknown noise.items 'similar'"),
            ("text_noise", {"kind": "stuffing"}, "unknown noise.kind 'stuffing'"),
            ("text_noise", {"column": "plot"}, "unknown noise.column of the items of dataset 'tiny' 'plot'"),
            ("unseen_category", {"column": "color"}, "unknown noise.column 'color'"),
            ("unseen_category", {"column": "genres", "value": "opera"}, "unknown noise.value 'opera'"),
            ("subpopulation", {"among": "tribe"}, "unknown noise.among 'tribe'"),
            ("subpopulation", {"among": "gender", "value": "X"}, "unknown noise.value in column 'gender' 'X'"),
            ("subpopulation", {"share": 0.0}, "noise.share=0.0"),
        ],
    )
    def test_what_makes_no_sense(self, name: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            noisy(name, **changes)

    def test_data_without_what_a_noise_needs(self) -> None:
        with pytest.raises(RrecError, match="noise 'kg_drop' needs kg, which dataset 'tiny' does not have"):
            noisy("kg_drop", replace(CLEAN, kg=None))
        timeless = replace(CLEAN, train=replace(CLEAN.train, times=None))
        with pytest.raises(RrecError, match="noise 'temporal_shift' needs time"):
            noisy("temporal_shift", timeless)
        with pytest.raises(RrecError, match="needs an item table"):
            noisy("unseen_category", replace(CLEAN, item_table=None))
        empty = replace(
            CLEAN, item_table=pd.DataFrame({"genres": [None] * CLEAN.n_items, "year": [" "] * CLEAN.n_items})
        )
        with pytest.raises(RrecError, match="no item of dataset 'tiny' has a word in genres, year"):
            noisy("unseen_category", empty)
        with pytest.raises(RrecError, match="has a word in genres$"):
            noisy("unseen_category", empty, column="genres")


class TestDraws:
    def test_weights_decide_and_zero_is_never_drawn(self) -> None:
        weights, generator = torch.tensor([0.0, 1.0, 9.0, 0.0]), torch.Generator().manual_seed(0)
        first = torch.stack([drawn(weights, 1, generator) for _ in range(2000)]).flatten()
        assert torch.bincount(first, minlength=4).tolist()[::3] == [0, 0]
        assert (first == 2).float().mean().item() == pytest.approx(0.9, abs=0.03)
        assert sorted(drawn(weights, 4, generator).tolist()) == [1, 2]

    def test_a_cycle_moves_everything(self) -> None:
        for count in (0, 1, 2, 9):
            order = cycle(count, torch.Generator().manual_seed(count))
            assert sorted(order.tolist()) == list(range(count))
            assert count < 2 or all(place != each for place, each in enumerate(order.tolist()))

    def test_repeats(self) -> None:
        assert repeated(torch.tensor([4, 7, 4, 1, 7]), torch.tensor([1])).tolist() == [False, False, True, True, True]


SYNTHETIC = (
    "dataset=synthetic",
    "dataset.n_users=60",
    "dataset.n_items=40",
    "dataset.events_per_user=12",
    "dataset.n_intents=4",
    "dataset.n_entities=12",
)
TEXTUAL = [name for name in models if "text" in models[name].needs and pretrained(STANDINS.get(name, "encoder"))]
RECIPE = Recipe(
    dataset={**compose("train", *SYNTHETIC).dataset},
    split={"name": "leave_one_out"},
    prepare=Prepare(threshold=None, label=None, user_core=0, item_core=0, defects="drop"),
)


class TestRecipe:
    def test_noise_is_a_part_of_it(self, tmp_path: Path) -> None:
        clean = load(RECIPE, str(tmp_path))
        sparse = load(replace(RECIPE, noise=configured("noise", "sparsify")), str(tmp_path))
        assert len(sparse.train) < len(clean.train)
        assert sparse.fingerprint != clean.fingerprint
        assert load(replace(RECIPE, noise={"name": "none"}), str(tmp_path)).fingerprint == clean.fingerprint

    def test_a_checkpoint_knows_its_noise_and_one_from_before_has_none(self, tmp_path: Path) -> None:
        recipe = replace(RECIPE, noise=configured("noise", "sparsify"))
        for folder, each in (("noisy", recipe), ("old", RECIPE)):
            (tmp_path / folder).mkdir()
            data = load(each, None)
            checkpoint.save(tmp_path / folder, build("mf", data), configured("model", "mf"), each, data)
        card = json.loads((tmp_path / "old" / "model.json").read_text())
        del card["recipe"]["noise"]
        (tmp_path / "old" / "model.json").write_text(json.dumps(card))
        for folder, each in (("noisy", recipe), ("old", RECIPE)):
            loaded = checkpoint.load(str(tmp_path / folder), data_dir=None, device=torch.device("cpu"))
            assert loaded.recipe == each

    @pytest.mark.parametrize(
        ("model", "noise"), [("lightgcn", "edge_drop"), ("kgcn", "kg_rewire"), ("sasrec", "history"), ("mf", "none")]
    )
    def test_a_checkpoint_is_judged_on_changed_data_with_its_own_parameters(
        self, tmp_path: Path, model: str, noise: str
    ) -> None:
        clean = load(RECIPE, None)
        checkpoint.save(tmp_path, build(model, clean), configured("model", model), RECIPE, clean)
        loaded = [
            checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=each)
            for each in (None, configured("noise", noise))
        ]
        for (name, one), (_, two) in zip(*(each.model.named_parameters() for each in loaded), strict=True):
            assert torch.equal(one, two), name
        fingerprints = {each.data.fingerprint for each in loaded}
        values = [evaluator(each.data, judge()).evaluate(Shifted(each.model), "test").metrics for each in loaded]
        assert (len(fingerprints) == 1) == (noise == "none") == (values[0] == values[1])

    @pytest.mark.parametrize("name", TEXTUAL)
    def test_a_checkpoint_reads_noisy_texts_with_the_words_of_its_training(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clean = load(RECIPE, None)
        assert clean.item_table is not None
        titles = [f"The {WORDS[each % 5]} {WORDS[each % 7]}" for each in range(clean.n_items)]  # all encoders know them
        clean = replace(clean, item_table=clean.item_table.assign(title=titles))
        monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: clean)
        config = configured("model", name, **({"encoder": pretrained(STANDINS[name])} if name in STANDINS else {}))
        torch.manual_seed(0)
        checkpoint.save(tmp_path, checkpoint.build(config, clean), config, RECIPE, clean)
        loaded = [
            checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=each)
            for each in (
                None,
                configured("noise", "text_noise", level=0.0),
                configured("noise", "text_noise", level=0.9),
            )
        ]
        old, none, new = (Shifted(each.model.eval()) for each in loaded)
        table = loaded[2].data.item_table
        assert table is not None
        read = old.model.text_reader(loaded[0].data).read(table)
        for key, each in read.items():
            torch.testing.assert_close(new.model.get_buffer(key), each.to(new.model.get_buffer(key)))
        users = torch.arange(5)
        scores = [point(question(point.model, users)).scores for point in (old, none, new)]
        assert torch.equal(scores[0], scores[1])
        assert not torch.allclose(scores[0], scores[2])

    def test_a_checkpoint_reads_noisy_categories_with_the_codes_of_its_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clean = CLEAN
        monkeypatch.setattr(checkpoint, "load_data", lambda recipe, data_dir: clean)
        torch.manual_seed(0)
        config = configured("model", "deepfm")
        checkpoint.save(tmp_path, checkpoint.build(config, clean), config, RECIPE, clean)
        noise = configured("noise", "text_noise", level=0.7, column="genres")
        old, new = (
            checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=each)
            for each in (None, noise)
        )
        assert not caplog.text
        reworded = replace(clean, reworded=new.data.item_table)
        one, two = (features(each, "item", ["genres"]) for each in (clean, reworded))
        assert one.sizes == two.sizes
        assert old.data.item_table is not None
        assert new.data.item_table is not None
        kept = torch.tensor((old.data.item_table["genres"] == new.data.item_table["genres"]).tolist())
        assert 0 < kept.sum() < len(kept)
        assert torch.equal(one.codes[0][kept], two.codes[0][kept])
        known = [(each.codes[0][~kept] > 0).sum(1) for each in (one, two)]  # training has no misspelt genre
        assert (known[1] < known[0]).all()
        users = torch.arange(5)
        scores = [Shifted(each.model.eval())(question(each.model, users)).scores for each in (old, new)]
        assert torch.equal((scores[0] != scores[1]).any(0), ~kept)

    def test_noise_of_texts_that_nobody_reads_is_said(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        clean = load(RECIPE, None)
        checkpoint.save(tmp_path, build("mf", clean), configured("model", "mf"), RECIPE, clean)
        noise = configured("noise", "text_noise", level=0.5)
        checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=noise)
        assert "changes texts of items, which model 'mf' does not read" in caplog.text

    @pytest.mark.parametrize("protocol", ["full", "sampled"])
    @pytest.mark.parametrize("noise", ["label_flip", "edge_add", "edge_rewire", "sparsify", "history"])
    def test_noise_on_events_that_a_model_does_not_read_changes_no_result_and_is_told(
        self, noise: str, protocol: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it invents stays a candidate: else wrong candidates would go, and every model look better."""
        clean = load(RECIPE, None)
        checkpoint.save(tmp_path, build("mf", clean), configured("model", "mf"), RECIPE, clean)
        values = []
        for each in (None, configured("noise", noise, level=0.7)):
            loaded = checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=each)
            judging = evaluator(loaded.data, judge(protocol=protocol, metrics=["ndcg", "auc", "arp", "aplt"]))
            values.append(judging.evaluate(Shifted(loaded.model), "test").metrics)
            assert ("does not read again" in caplog.text) == (each is not None)
        assert values[0] == values[1]

    def test_noise_that_changes_the_sizes_of_a_model_is_refused(self, tmp_path: Path) -> None:
        clean, config = load(RECIPE, None), configured("model", "kgat", min_triples=3)
        torch.manual_seed(0)
        checkpoint.save(tmp_path, checkpoint.build(config, clean), config, RECIPE, clean)
        noise = configured("noise", "kg_drop", level=0.9)
        with pytest.raises(RrecError, match=r"tensor '.*' has shape .* change with noise=kg_drop"):
            checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=noise)

    @pytest.mark.parametrize(("model", "said"), [("mf", True), ("kgcn", False)])
    def test_noise_of_a_knowledge_graph_that_nobody_reads_is_said(
        self, model: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        words = (*SYNTHETIC, "device=cpu", "epochs=1", f"model={model}", "noise=kg_drop")
        train.run(composing.typed(compose("train", *words), "train"), tmp_path)
        assert caplog.text.count(f"knowledge graph, which model '{model}' does not read") == said
        caplog.clear()
        checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"))
        assert not caplog.text
        noise = configured("noise", "kg_drop", level=0.5)
        checkpoint.load(str(tmp_path), data_dir=None, device=torch.device("cpu"), noise=noise)
        assert caplog.text.count(f"knowledge graph, which model '{model}' does not read") == said

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("model=mf", "noise=history", "noise.op=swap"), "the order of events, which model 'mf' does not read"),
            (("model=mf", "noise=history", "noise.op=delete"), None),
            (("model=mf", "noise=rating_noise"), "ratings, which loss=bpr reads as one like each: nothing differs"),
            (("model=biased_mf", "noise=rating_noise", "protocol=ratings"), None),
        ],
    )
    def test_training_under_noise_that_it_does_not_read_is_said(
        self, words: tuple[str, ...], told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        train.run(composing.typed(compose("train", *SYNTHETIC, "device=cpu", "epochs=1", *words), "train"), tmp_path)
        assert (told in caplog.text) if told else ("noise=" not in caplog.text)

    def test_the_verbs_take_noise(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = (*SYNTHETIC, "device=cpu", "epochs=1", "model=lightgcn")
        (tmp_path / "run").mkdir()
        trained = train.run(composing.typed(compose("train", *words, "noise=label_flip"), "train"), tmp_path / "run")
        assert json.loads((tmp_path / "run" / "model.json").read_text())["recipe"]["noise"]["name"] == "label_flip"
        metrics = {}
        for noise in ("none", "edge_drop"):
            (tmp_path / noise).mkdir()
            words = (f"ckpt='{tmp_path / 'run'}'", "device=cpu", f"noise={noise}")
            typed = composing.typed(compose("eval", *words), "eval")
            metrics[noise] = evaluate.run(typed, tmp_path / noise)
        assert metrics["none"]["test/ndcg@10"] == pytest.approx(trained["test/ndcg@10"])
        assert metrics["none"] != metrics["edge_drop"]
        data_task.info(composing.typed(compose("data", *SYNTHETIC, "noise=sparsify", "noise.level=0.5"), "data"))
        assert load(RECIPE, None).fingerprint not in capsys.readouterr().out

    def test_data_with_times_in_no_year_can_be_looked_at(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "ratings.csv"
        rows = [f"u{u},i{i},1,{1_577_000_000_000 + i}" for u in range(3) for i in range(5)]
        path.write_text("user_id,item_id,rating,timestamp\n" + "\n".join(rows))
        words = ("dataset=table", f"dataset.path={path}", "prepare.defects=keep", f"data_dir={tmp_path}")
        data_task.info(composing.typed(compose("data", *words), "data"))
        assert "1,577,000,000,000 seconds" in capsys.readouterr().out

    @pytest.mark.parametrize("name", [name for name, what in TOUCHED.items() if "test" in what])
    def test_noise_of_the_test_part_is_refused_on_another(self, name: str, tmp_path: Path) -> None:
        words = (*SYNTHETIC, "device=cpu", "epochs=1")
        (tmp_path / "run").mkdir()
        train.run(composing.typed(compose("train", *words), "train"), tmp_path / "run")
        words = (f"ckpt='{tmp_path / 'run'}'", "device=cpu", "part=valid", f"noise={name}")
        (tmp_path / "eval").mkdir()
        with pytest.raises(RrecError, match=f"noise={name} changes what test asks, .* part=valid: take part=test"):
            evaluate.run(composing.typed(compose("eval", *words), "eval"), tmp_path / "eval")
        assert evaluate.run(composing.typed(compose("eval", *words, "noise.level=0"), "eval"), tmp_path / "eval")


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_an_event_that_noise_took_from_train_is_no_candidate(protocol: str) -> None:
    data = noisy("sparsify", level=0.6)
    assert data.hidden is not None
    judging = evaluator(data, judge(protocol=protocol, n_negatives=20 if protocol == "sampled" else None))
    gone = torch.zeros(data.n_users, data.n_items, dtype=torch.bool)
    gone[data.hidden.users, data.hidden.items] = True
    for portion in judging.portions("test"):
        if protocol == "sampled":
            assert not gone[portion.users[:, None], portion.items[:, 1:]].any()
        else:
            excluded = torch.zeros(len(portion.users), data.n_items, dtype=torch.bool)
            excluded[portion.excluded] = True
            assert excluded[gone[portion.users]].all()


@pytest.mark.parametrize("name", ["edge_add", "edge_drop", "sparsify"])
def test_noise_on_a_finished_model_leaves_the_negatives_of_clicks(name: str) -> None:
    parts = {each: CLEAN.part(each) for each in ("train", "valid", "test")}
    clicks = replace(CLEAN, **{part: replace(each, values=torch.ones(len(each))) for part, each in parts.items()})  # type: ignore[arg-type]
    data = replace(noisy(name, clicks, level=0.6), learnt=clicks.train)
    (one,), (two,) = (
        evaluator(each, judge(protocol="clicks", metrics=["auc"])).portions("test") for each in (clicks, data)
    )
    assert torch.equal(one.items, two.items)
