"""From raw tables to the data that models see: cleaning, cores, indices, the KG, the cache."""

import dataclasses
import hmac
import json
import logging
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import compose
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rec import composing
from robustbench_rec.config import Prepare, Recipe
from robustbench_rec.datasets import synthetic
from robustbench_rec.errors import RrecError
from robustbench_rec.prepare import load, prepare
from robustbench_rec.prepare.cores import core
from robustbench_rec.prepare.report import DEFECTS, NOTES
from robustbench_rec.raw import Raw
from robustbench_rec.splits import splits

PREPARE = Prepare(threshold=None, label=None, user_core=0, item_core=0, defects="drop")
LAST = {"name": "leave_one_out"}
SYNTHETIC = {
    "name": "synthetic",
    "n_users": 60,
    "n_items": 40,
    "events_per_user": 10,
    "n_intents": 4,
    "n_entities": 12,
    "n_relations": 3,
    "kg_share": 0.8,
    "drift": 0.5,
    "label_noise": 0.1,
    "seed": 0,
}


def settled(**values):
    return dataclasses.replace(PREPARE, **values)


def events(rows, columns="user item rating time"):
    frame = pd.DataFrame(rows, columns=columns.split())
    return frame.astype({"user": "str", "item": "str"})


def plain(n_users=4, n_items=5):
    """Everybody met everything once, in the order of the items."""
    return [(f"u{u}", f"i{i}", 3.0, 1000 + 10 * i + u) for u in range(n_users) for i in range(n_items)]


def ready(rows, split=LAST, config=PREPARE, columns="user item rating time", **tables):
    return prepare(Raw(events(rows, columns), **tables), "mine", splits.build(split), config)


def frame(text):
    """A table of text from lines of words, the first line the header."""
    head, *rows = [line.split() for line in text.strip().splitlines()]
    return pd.DataFrame(rows, columns=head, dtype="str")


class TestIndices:
    def test_ids_stand_behind_indices_and_parts_are_ordered_by_user_and_time(self):
        data = ready(plain()[::-1])
        train = data.train
        assert sorted(data.user_ids) == ["u0", "u1", "u2", "u3"]
        assert train.users.tolist() == sorted(train.users.tolist())
        assert [data.item_ids[i] for i in train.items[:3]] == ["i0", "i1", "i2"]
        assert {data.item_ids[i] for i in data.test.items} == {"i4"}
        assert (train.users.dtype, train.values.dtype, train.times.dtype) == (torch.int64, torch.float32, torch.int64)

    def test_all_events_are_in_one_part(self):
        data = ready(plain())
        assert [len(data.part(part)) for part in ("train", "valid", "test")] == [12, 4, 4]

    def test_without_ratings_and_times_values_are_one_and_order_is_that_of_the_file(self):
        data = ready([row[:2] for row in plain()], columns="user item")
        assert set(data.train.values.tolist()) == {1.0}
        assert data.train.times is None
        assert data.has == frozenset()
        assert {data.item_ids[i] for i in data.test.items} == {"i4"}

    def test_side_tables_follow_the_indices(self):
        items = frame("item color\ni4 blue\nother grey\ni0 red\ni0 pink")
        data = ready(plain(), items=items)
        colors = dict(zip(data.item_ids, data.item_table["color"], strict=True))
        assert colors["i4"] == "blue"
        assert colors["i0"] == "red"
        assert pd.isna(colors["i1"])
        assert list(data.item_table.columns) == ["color"]
        assert {rule: data.report[f"items_{rule}"] for rule in ("repeated", "unknown", "without_row")} == {
            "repeated": 1,
            "unknown": 1,
            "without_row": 3,
        }

    def test_a_side_table_that_knows_none_of_the_ids_is_refused(self):
        with pytest.raises(RrecError, match=r"none of the 2 items of its table of items has an event.*'4.0' there"):
            ready(plain(), items=frame("item color\n4.0 blue\n0.0 red"))

    def test_ground_truth_follows_the_events_users_and_items(self):
        rows = plain()
        order = np.random.default_rng(0).permutation(len(rows))
        raw = Raw(
            events([rows[i] for i in order]),
            items=frame("item\ni4\ni3\ni2\ni1\ni0\nother"),
            truth={"event/place": order, "item/number": np.array([4.0, 3, 2, 1, 0, 9])},
        )
        data = prepare(raw, "mine", splits.build(LAST), PREPARE)
        for part in ("train", "valid", "test"):
            chosen = [rows[i] for i in data.truth[f"{part}/place"]]
            mine = data.part(part)
            assert [data.user_ids[u] for u in mine.users] == [row[0] for row in chosen]
            assert [data.item_ids[i] for i in mine.items] == [row[1] for row in chosen]
        assert [f"i{number:.0f}" for number in data.truth["item/number"]] == data.item_ids


FLAWS = {
    "duplicates": ("u0", "i0", 3.0, 1000),
    "repeated_pairs": ("u0", "i0", 4.0, 2000),
    "nonfinite_ratings": ("u0", "new", float("nan"), 2000),
    "out_of_scale": ("u0", "new", 6.0, 2000),
    "impossible_times": ("u0", "new", 3.0, -5),
}


class TestCleaning:
    @pytest.mark.parametrize("rule", FLAWS)
    def test_a_defect_is_counted_and_dropped(self, rule):
        clean = ready(plain(), scale=(1.0, 5.0))
        data = ready([*plain(), FLAWS[rule]], scale=(1.0, 5.0))
        assert {name: data.report[name] for name in DEFECTS if data.report.get(name)} == {rule: 1}
        assert data.fingerprint == clean.fingerprint

    @pytest.mark.parametrize("rating", [1e300, -1e39, float("inf")])
    def test_a_rating_beyond_single_precision_is_none(self, rating: float, recwarn: pytest.WarningsRecorder) -> None:
        data = ready([*plain(), ("u0", "new", rating, 2000)])
        assert data.report["nonfinite_ratings"] == 1
        assert data.fingerprint == ready(plain()).fingerprint
        assert not recwarn.list

    @pytest.mark.parametrize("rule", FLAWS)
    def test_a_defect_is_refused_by_name_when_asked(self, rule):
        with pytest.raises(RrecError, match=rf"'mine', {rule}: 1 events.*prepare\.defects=drop"):
            ready([*plain(), FLAWS[rule]], config=settled(defects="refuse"), scale=(1.0, 5.0))

    @pytest.mark.parametrize("rule", sorted(set(FLAWS) - {"nonfinite_ratings"}))
    def test_a_defect_is_kept_when_asked_and_still_counted(self, rule):
        data = ready([*plain(), FLAWS[rule]], config=settled(defects="keep"), scale=(1.0, 5.0))
        assert data.report[rule] == 1
        assert sum(len(data.part(part)) for part in ("train", "valid", "test")) == 21

    def test_clean_data_pass_when_defects_are_refused(self):
        assert ready(plain(), config=settled(defects="refuse"), scale=(1.0, 5.0)).n_users == 4

    def test_of_repeated_pairs_the_first_by_time_stays(self):
        late_first = [("u0", "i0", 5.0, 5000), *plain()]
        data = ready(late_first)
        assert data.report["repeated_pairs"] == 1
        assert data.fingerprint != ready([("u0", "i0", 5.0, 5), *plain()]).fingerprint
        assert 5.0 not in torch.cat([data.train.values, data.test.values]).tolist()

    @pytest.mark.parametrize("flaw", [("u0", "i0", 9.0, 500), ("u0", "i0", 3.0, 0), ("u0", "i0", float("nan"), 500)])
    def test_a_defective_copy_does_not_take_a_good_event_away(self, flaw):
        data = ready([flaw, *plain()], scale=(1.0, 5.0))
        assert data.fingerprint == ready(plain(), scale=(1.0, 5.0)).fingerprint
        assert not data.report.get("repeated_pairs")

    def test_sequences_may_come_back_to_an_item(self):
        rows = [("u0", "i0"), ("u0", "i1"), ("u0", "i0"), ("u0", "i0"), ("u1", "i1"), ("u1", "i0"), ("u1", "i1")]
        data = ready(rows, columns="user item", repeats=True)
        assert [len(data.part(part)) for part in ("train", "valid", "test")] == [3, 2, 2]
        assert data.report["test_seen_in_train"] == 2
        assert "duplicates" not in data.report

    def test_times_of_tomorrow_and_of_next_week(self):
        rows = [*plain(), ("u0", "a", 1.0, int(time.time()) + 3600), ("u0", "b", 1.0, int(time.time()) + 7 * 86400)]
        assert ready(rows).report["impossible_times"] == 1

    def test_milliseconds_taken_for_seconds_are_noticed(self):
        rows = [(user, item, rating, (10**9 + when) * 1000) for user, item, rating, when in plain()]
        with pytest.raises(RrecError, match="all 20 are events at time 0 or before, or more than a day in the future"):
            ready(rows)

    def test_users_without_train_are_left_out_and_counted(self):
        rows = [*plain(), ("late", "i0", 3.0, 9000), ("late", "i1", 3.0, 9001)]
        data = ready(rows, split={"name": "temporal", "valid": 0.1, "test": 0.2})
        assert "late" not in data.user_ids
        assert data.report["users_without_train"] == 1
        assert data.report["events_without_train"] == 2

    def test_items_that_train_never_shows_are_kept_and_counted(self):
        data = ready(plain())
        assert data.report["test_items_unseen"] == data.report["valid_items_unseen"] == 1
        assert "i4" in data.item_ids

    def test_every_rule_has_a_description(self):
        data = ready(plain(), config=settled(threshold=1.0, user_core=2), kg=TRIPLES, links=LINKS)
        assert set(data.report) <= DEFECTS.keys() | NOTES.keys()

    def test_an_unknown_way_with_defects_lists_the_choices(self):
        with pytest.raises(RrecError, match=r"'dorp'.*did you mean 'drop'.*drop, keep, refuse"):
            ready(plain(), config=settled(defects="dorp"))

    @pytest.mark.parametrize(("users", "told"), [(1, "user, 'u0'"), (4, "item, 'only'")])
    def test_one_user_or_one_item_is_too_few(self, users, told):
        rows = plain(users, 5)
        if users > 1:
            rows = [(user, "only", rating, when) for user, _, rating, when in rows]
        with pytest.raises(RrecError, match=f"has only one {told}"):
            ready(rows)

    def test_a_split_that_leaves_no_test_event_is_refused(self):
        with pytest.raises(RrecError, match="no test event after the split"):
            ready(plain(4, 2))


class TestThinning:
    def test_a_threshold_keeps_positives_with_their_rating(self):
        rows = [(user, item, 5.0 if item != "i0" else 2.0, when) for user, item, _, when in plain()]
        data = ready(rows, config=settled(threshold=4))
        assert data.report["below_threshold"] == 4
        assert set(data.train.values.tolist()) == {5.0}
        assert "i0" not in data.item_ids

    def test_a_threshold_needs_ratings(self):
        with pytest.raises(RrecError, match=r"no ratings that prepare\.threshold=4 could cut"):
            ready([row[:2] for row in plain()], columns="user item", config=settled(threshold=4))

    def test_cores_that_leave_nothing_are_named(self):
        with pytest.raises(RrecError, match="cores are too strict"):
            ready(plain(), config=settled(user_core=6))
        with pytest.raises(RrecError, match=r"prepare\.threshold or the cores are too strict"):
            ready(plain(), config=settled(threshold=9, user_core=2, item_core=2))

    def test_removals_are_counted(self):
        rows = [*plain(), ("few", "i0", 3.0, 50), ("few", "rare", 3.0, 51)]
        data = ready(rows, config=settled(user_core=3, item_core=2))
        assert [data.report[name] for name in ("core_users", "core_items", "core_events")] == [1, 1, 2]
        assert data.fingerprint == ready(plain()).fingerprint

    @pytest.mark.parametrize("name", ["threshold", "label"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_what_ratings_cannot_be_compared_with_is_refused(self, name, value):
        with pytest.raises(RrecError, match=rf"prepare\.{name}={value}"):
            ready(plain(), config=settled(**{name: value}))

    def test_negative_cores_are_refused(self):
        with pytest.raises(RrecError, match=r"prepare\.item_core must be at least 0"):
            ready(plain(), config=settled(item_core=-1))

    @settings(max_examples=100, deadline=None)
    @given(
        pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60),
        k=st.integers(0, 4),
        m=st.integers(0, 4),
    )
    def test_cores_are_the_largest_set_with_enough_of_everything(self, pairs, k, m):
        users, items = (np.array(column) for column in zip(*pairs, strict=True))
        kept = core([(users, np.full(7, k)), (items, np.full(7, m))])
        left = set(range(len(pairs)))
        while True:  # one row at a time, any order comes to the same set
            poor = [
                row
                for row in left
                if sum(users[row] == users[other] for other in left) < k
                or sum(items[row] == items[other] for other in left) < m
            ]
            if not poor:
                break
            left.discard(poor[0])
        assert set(np.flatnonzero(kept)) == left


TRIPLES = frame("head relation tail\nm0 by jp\nm1 by jp\njp from fr\nm0 by jp\nm9 by ed\nm2 like m0")
LINKS = frame("item entity\ni0 m0\ni1 m1\ni2 m2\ni3 m0\ni4 lost\nother m9")


def test_fractions_of_a_second_order_events_and_are_dropped():
    rows = [(f"u{u}", f"i{i}", 3.0, 1000 + i / 10) for u in range(3) for i in (4, 3, 2, 1, 0)]  # the newest first
    data = ready(rows)
    assert [data.item_ids[item] for item in data.test.items] == ["i4"] * 3
    assert [data.item_ids[item] for item in data.train.items] == ["i0", "i1", "i2"] * 3
    assert data.train.times.tolist() == [1000] * 9
    again = [("u0", "i0", 3.0, 2000 + part) for part in (0.2, 0.4, 0.4)]
    assert ready([*rows, *again], config=settled(defects="keep")).report["duplicates"] == 1


def test_a_side_table_that_has_ids_alone_is_none():
    data = ready(plain(), items=frame("item\ni0\ni9"))
    assert data.item_table is None
    assert data.report["items_unknown"] == 1


def test_a_second_is_never_in_two_parts():
    rows = [(f"u{u}", f"i{u + i}", 3.0, 1000 + i + u / 10) for i in range(10) for u in range(4)]
    data = ready(rows, split={"name": "temporal", "valid": 0.21, "test": 0.21})
    assert data.train.times.max() < data.valid.times.min()
    assert data.valid.times.max() < data.test.times.min()


def test_what_the_threshold_cuts_off_is_known_and_makes_no_other_data():
    low = [("u0", "gone", 1.0, 5), ("u1", "i4", 1.0, 1041), ("lost", "i0", 2.0, 7), ("u1", "i0", 2.0, 1001)]
    rows = [row for row in plain() if row[:2] not in {("u1", "i4"), ("u1", "i0")}]
    data, other = ready([*rows, *low], config=settled(threshold=3)), ready(rows)
    assert data.fingerprint == other.fingerprint
    found = [
        (data.user_ids[u], data.item_ids[i]) for u, i in zip(data.disliked.users, data.disliked.items, strict=True)
    ]
    assert found == [("u1", "i4"), ("u1", "i0")]
    assert other.disliked is None
    assert data.known.disliked is None


class TestKG:
    def test_items_are_the_first_entities_and_the_others_follow_as_they_appear(self):
        data = ready(plain(), kg=TRIPLES, links=LINKS)
        kg = data.kg
        names = dict(zip(data.item_ids, kg.entity_ids, strict=False))
        assert names == {"i0": "m0", "i1": "m1", "i2": "m2", "i3": "i3", "i4": "i4"}
        assert kg.entity_ids[5:] == ["jp", "fr", "m9", "ed"]
        assert [data.item_ids[i] for i in torch.nonzero(kg.linked).ravel()] == ["i0", "i1", "i2"]
        triples = list(zip(kg.heads.tolist(), kg.relations.tolist(), kg.tails.tolist(), strict=True))
        named = [(kg.entity_ids[h], kg.relation_ids[r], kg.entity_ids[t]) for h, r, t in triples]
        assert named == [
            ("m0", "by", "jp"),
            ("m1", "by", "jp"),
            ("jp", "from", "fr"),
            ("m9", "by", "ed"),
            ("m2", "like", "m0"),
        ]

    def test_what_does_not_fit_is_counted(self):
        report = ready(plain(), kg=TRIPLES, links=LINKS).report
        rules = ("kg_duplicates", "links_ambiguous", "links_unknown", "links_without_triples")
        assert {rule: report[rule] for rule in rules} == dict.fromkeys(rules, 1)

    @pytest.mark.parametrize(
        ("links", "linked"),
        [
            ("zz m1\ni1 m1\ni2 m2", ["i1", "i2"]),  # zz has no event
            ("i1 m1\ni1 m2\ni2 m2", ["i1", "i2"]),  # the second is dropped, so m2 is free
            ("i1 m1\ni2 m1\ni2 m2", ["i1", "i2"]),
        ],
    )
    def test_links_that_are_dropped_take_nothing_from_others(self, links, linked):
        data = ready(plain(), kg=TRIPLES, links=frame(f"item entity\n{links}"))
        assert [data.item_ids[i] for i in torch.nonzero(data.kg.linked).ravel()] == linked

    def test_without_links_items_are_the_entities_of_their_id(self):
        data = ready(plain(), kg=frame("head relation tail\ni1 by jp\njp from i3"))
        assert [data.item_ids[i] for i in torch.nonzero(data.kg.linked).ravel()] == ["i1", "i3"]
        assert data.kg.n_entities == 6

    def test_with_links_an_item_is_not_the_entity_of_its_id(self):
        data = ready(plain(), kg=frame("head relation tail\ni1 by i2"), links=frame("item entity\ni0 i1"))
        assert data.kg.entity_ids == ["i1", "i1", "i2", "i3", "i4", "i2"]
        assert data.kg.linked.sum() == 1

    @pytest.mark.parametrize("links", [None, frame("item entity\ni0 zz")])
    def test_a_graph_that_no_item_is_in_is_refused(self, links):
        with pytest.raises(RrecError, match="none of its 5 items is in its knowledge graph of 1 triples"):
            ready(plain(), kg=frame("head relation tail\na by b"), links=links)

    def test_items_that_cores_removed_stay_ordinary_entities(self):
        rows = [*plain(), ("u0", "rare", 3.0, 5)]
        kg, links = frame("head relation tail\nm1 by jp\nm2 by jp"), frame("item entity\nrare m1\ni0 m2")
        data = ready(rows, config=settled(item_core=2), kg=kg, links=links)
        assert data.kg.entity_ids[5:] == ["m1", "jp"]
        assert data.report["links_unknown"] == 0


def recipe(dataset=SYNTHETIC, split=LAST, **values):
    return Recipe(dataset=dict(dataset), split=dict(split), prepare=settled(**values))


@pytest.fixture
def table(tmp_path):
    """A recipe for a CSV file of 60 users, with an item table and a KG."""
    raw = synthetic.Synthetic(synthetic.Synthetic.Config(**{k: v for k, v in SYNTHETIC.items() if k != "name"})).load(
        tmp_path
    )
    raw.events.to_csv(tmp_path / "events.csv", index=False)
    raw.items.to_csv(tmp_path / "items.csv", index=False)
    raw.kg.to_csv(tmp_path / "kg.csv", index=False)
    layout = {"separator": None, "quote": '"', "header": True, "encoding": "utf-8"}
    nothing = {"path": None, **layout}
    dataset = {
        "name": "table",
        "path": str(tmp_path / "events.csv"),
        **layout,
        "user": "user",
        "item": "item",
        "rating": "rating",
        "time": "time",
        "time_format": "seconds",
        "scale": [1, 5],
        "repeats": False,
        "items": {"path": str(tmp_path / "items.csv"), **layout, "id": "item", "numbers": ["year"]},
        "users": {**nothing, "id": "user", "numbers": []},
        "kg": {"path": str(tmp_path / "kg.csv"), **layout, "head": "head", "relation": "relation", "tail": "tail"},
        "links": {**nothing, "item": "item", "entity": "entity"},
        "linked_only": False,
    }
    return recipe(dataset)


def entries(place):
    return sorted(path.name for path in (place / "prepared").iterdir())


def same(one, two):
    for part in ("train", "valid", "test"):
        for name, value in vars(one.part(part)).items():
            assert value is None or torch.equal(value, getattr(two.part(part), name))
    assert (one.user_ids, one.item_ids, one.report, one.name) == (two.user_ids, two.item_ids, two.report, two.name)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.kg.heads, two.kg.heads)
    assert one.kg.entity_ids == two.kg.entity_ids
    pd.testing.assert_frame_equal(one.item_table, two.item_table)
    assert two.user_table is None


class TestCache:
    def test_a_second_load_takes_the_stored_copy(self, table, tmp_path, monkeypatch):
        first = load(table, str(tmp_path))
        monkeypatch.setattr("robustbench_rec.prepare.pipeline.prepare", lambda *_: pytest.fail("prepared again"))
        same(first, load(table, str(tmp_path)))
        assert len(entries(tmp_path)) == 1

    @pytest.mark.parametrize("name", ["arrays.safetensors", "meta.json", "item_table.parquet"])
    @pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
    def test_a_harmed_copy_is_made_anew(self, table, tmp_path, name, harm, caplog):
        first = load(table, str(tmp_path))
        (path,) = (tmp_path / "prepared").glob(f"*/{name}")
        content = path.read_bytes()
        if harm == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "flip" and name == "arrays.safetensors":
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        elif harm == "flip" and name == "meta.json":
            path.write_text(json.dumps({**json.loads(content), "fingerprint": "0"}))
        elif harm == "flip":
            pd.DataFrame({"title": ["x"]}).to_parquet(path)
        else:
            path.unlink()
        with caplog.at_level(logging.WARNING):
            same(first, load(table, str(tmp_path)))
        assert "made anew" in caplog.text
        caplog.clear()
        same(first, load(table, str(tmp_path)))
        assert not caplog.text

    def test_another_recipe_or_another_content_is_another_copy(self, table, tmp_path):
        first = load(table, str(tmp_path))
        other = dataclasses.replace(table, prepare=settled(threshold=3.0))
        assert load(other, str(tmp_path)).fingerprint != first.fingerprint
        path = tmp_path / "events.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        assert load(table, str(tmp_path)).fingerprint != first.fingerprint
        assert len(entries(tmp_path)) == 3

    def test_the_fingerprint_does_not_depend_on_where_the_files_are(self, table, tmp_path):
        first = load(table, str(tmp_path))
        (tmp_path / "events.csv").rename(tmp_path / "moved.csv")
        table.dataset["path"] = str(tmp_path / "moved.csv")
        assert load(table, str(tmp_path / "elsewhere")).fingerprint == first.fingerprint

    def test_the_fingerprint_tells_another_split_seed(self):
        ratio = {"name": "ratio", "valid": 0.1, "test": 0.1, "order": "random"}
        one, two, again = (load(recipe(split={**ratio, "seed": seed}), None).fingerprint for seed in (0, 1, 0))
        assert one == again != two

    def test_data_made_from_a_seed_are_not_stored(self, tmp_path):
        load(recipe(), str(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_cannot_be_written_costs_only_a_warning(self, table, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        data = load(table, str(tmp_path / "file"))
        assert data.n_users == 60
        assert "not cached" in caplog.text

    def test_a_full_disk_leaves_no_half_written_copy(self, table, tmp_path, monkeypatch, caplog):
        def full(*_):
            raise RrecError("no space left on device")

        monkeypatch.setattr("robustbench_rec.prepare.cache.write_text", full)
        assert load(table, str(tmp_path)).n_users == 60
        assert entries(tmp_path) == []
        assert "no space left" in caplog.text

    def test_a_missing_file_is_one_line(self, table, tmp_path):
        (tmp_path / "kg.csv").unlink()
        with pytest.raises(RrecError, match=r"kg\.csv does not exist"):
            load(table, str(tmp_path))


@pytest.mark.parametrize("split", [LAST, {"name": "ratio", "valid": 0.1, "test": 0.1, "order": "time", "seed": 0}])
def test_a_split_by_order_warns_where_the_data_have_no_times(table, tmp_path, split, caplog):
    for column, warned in (("time", False), (None, True)):
        load(recipe({**table.dataset, "time": column}, split), str(tmp_path))
        assert ("no times" in caplog.text) is warned


def test_data_from_a_seed_has_the_truth_of_its_noise():
    data = load(recipe(), None)
    assert data.has == {"kg", "order", "rating", "text", "time"}
    for part in ("train", "valid", "test"):
        noise, values = data.truth[f"{part}/noise"], data.part(part).values
        assert torch.equal(torch.where(noise, 6 - values, values), data.truth[f"{part}/rating"])
    assert data.truth["item/intent"].shape == (data.n_items,)


class TestPseudonyms:
    CONFIG = settled(pseudonyms=True)
    TABLE = pd.DataFrame({"user": ["u3", "u0", "u1", "u2"], "age": ["30", "1", "2", "3"]})

    @pytest.fixture(autouse=True)
    def _salted(self, monkeypatch):
        monkeypatch.setenv("RREC_SALT", "a secret of sixteen characters")

    def test_users_lose_their_names_and_nothing_else(self):
        plain_, hashed = (ready(plain(), config=each, users=self.TABLE) for each in (PREPARE, self.CONFIG))
        assert not set(hashed.user_ids) & set(plain_.user_ids)
        assert [len(each) for each in hashed.user_ids] == [20] * 4
        assert torch.equal(hashed.train.items, plain_.train.items)
        assert hashed.item_ids == plain_.item_ids
        assert hashed.user_table.equals(plain_.user_table)
        assert hashed.user_table["age"].tolist() == ["1", "2", "3", "30"]

    def test_a_name_depends_on_the_salt_and_the_id_alone(self, monkeypatch):
        first = ready(plain(), config=self.CONFIG).user_ids
        assert ready(plain(n_users=3), config=self.CONFIG).user_ids == first[:3]
        monkeypatch.setenv("RREC_SALT", "another secret of the same length")
        assert not set(ready(plain(), config=self.CONFIG).user_ids) & set(first)

    def test_it_is_hmac_sha256(self):
        key = b"a secret of sixteen characters"
        assert ready(plain(), config=self.CONFIG).user_ids[0] == hmac.new(key, b"u0", "sha256").hexdigest()[:20]

    @pytest.mark.parametrize("salt", [None, "short"])
    def test_without_a_salt_nothing_is_prepared(self, monkeypatch, salt):
        monkeypatch.setenv("RREC_SALT", salt) if salt else monkeypatch.delenv("RREC_SALT")
        with pytest.raises(RrecError, match="set the environment variable RREC_SALT to a secret of 16 characters"):
            ready(plain(), config=self.CONFIG)

    def test_prepared_data_of_one_salt_is_not_taken_for_another(self, monkeypatch, tmp_path):
        (tmp_path / "events.csv").write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i, *_ in plain()))
        words = compose(
            "data",
            "dataset=table",
            f"dataset.path={tmp_path}/events.csv",
            "prepare.pseudonyms=true",
            "dataset.rating=null",
            "dataset.time=null",
        )
        recipe = composing.typed(words, "data")
        first = load(recipe, str(tmp_path))
        assert load(recipe, str(tmp_path)).user_ids == first.user_ids
        monkeypatch.setenv("RREC_SALT", "another secret of the same length")
        assert not set(load(recipe, str(tmp_path)).user_ids) & set(first.user_ids)
