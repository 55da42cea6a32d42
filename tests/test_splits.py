"""Splits: every event in one part, reproducibly, with the counts that were asked for."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rec.errors import RrecError
from robustbench_rec.splits import splits

CONFIGS = {
    "cold_items": {"name": "cold_items", "valid": 0.1, "test": 0.2, "seed": 0},
    "random": {"name": "random", "valid": 0.2, "test": 0.2, "seed": 0},
    "ratio": {"name": "ratio", "valid": 0.1, "test": 0.2, "order": "random", "seed": 0},
    "leave_one_out": {"name": "leave_one_out"},
    "temporal": {"name": "temporal", "valid": 0.1, "test": 0.2},
    "presplit": {"name": "presplit", "valid": 0.2, "seed": 0},
}


@st.composite
def event_tables(draw):
    """Events of a few users in any order, with times (also equal ones) and a train/test part."""
    rows = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40), st.booleans()), min_size=1, max_size=80))
    users, times, tests = zip(*rows, strict=True)
    parts = np.where(tests, "test", "train")
    return pd.DataFrame({"user": users, "item": range(len(rows)), "time": times, "part": parts})


def many(n_users=30, each=40):
    users = np.repeat(np.arange(n_users), each)
    times = np.random.default_rng(1).permutation(len(users)) + 1
    return pd.DataFrame({"user": users, "item": np.arange(len(users)), "time": times})


def test_there_is_a_case_for_every_split():
    assert set(CONFIGS) == set(splits)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(max_examples=60, deadline=None)
@given(events=event_tables())
def test_each_event_is_in_exactly_one_part_and_twice_the_same_one(name, events):
    split = splits.build(CONFIGS[name])
    before = events.copy()
    parts = split(events)
    assert parts.shape == (len(events),)
    assert set(parts.tolist()) <= {0, 1, 2}
    assert (parts == split(events)).all()
    pd.testing.assert_frame_equal(events, before)


@settings(max_examples=100, deadline=None)
@given(events=event_tables(), valid=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.1, 0.25, 0.5]))
def test_ratio_gives_each_user_the_counts_that_recbole_gives(events, valid, test):
    parts = splits.build({**CONFIGS["ratio"], "valid": valid, "test": test})(events)
    for user, rows in events.groupby("user").indices.items():
        n = len(rows)
        n_valid, n_test = int(n * valid + 1e-9), int(n * test + 1e-9)
        n_train = n - n_valid - n_test
        if n_train > 1 and n_test == 0:
            n_test, n_train = 1, n_train - 1
        if n_train > 1 and n_valid == 0 and valid:
            n_valid, n_train = 1, n_train - 1
        assert np.bincount(parts[rows], minlength=3).tolist() == [n_train, n_valid, n_test], user


def test_ratio_takes_the_latest_events_of_a_user_for_test_when_asked():
    events = many()
    parts = splits.build({**CONFIGS["ratio"], "order": "time"})(events)
    for rows in events.groupby("user").indices.values():
        times = events["time"].to_numpy()[rows]
        train, valid, test = (times[parts[rows] == part] for part in range(3))
        assert train.max() < valid.min()
        assert valid.max() < test.min()


@settings(max_examples=60, deadline=None)
@given(events=event_tables(), valid=st.sampled_from([0.0, 0.1, 0.3]), test=st.sampled_from([0.1, 0.2, 0.5]))
def test_random_gives_the_whole_its_shares_rounded_down(events, valid, test):
    parts = splits.build({**CONFIGS["random"], "valid": valid, "test": test})(events)
    n_valid, n_test = int(len(events) * valid + 1e-9), int(len(events) * test + 1e-9)
    assert np.bincount(parts, minlength=3).tolist() == [len(events) - n_valid - n_test, n_valid, n_test]


def test_random_does_not_look_at_whose_an_event_is():
    events = many(n_users=200, each=5)
    assert (splits.build(CONFIGS["random"])(events) == splits.build(CONFIGS["random"])(events.assign(user=0))).all()
    counts = events.assign(test=splits.build(CONFIGS["random"])(events) == 2).groupby("user")["test"].sum()
    share = np.bincount(counts, minlength=6) / len(counts)
    binomial = [0.328, 0.410, 0.205, 0.051, 0.006, 0.000]  # of 5 events with probability 0.2
    assert np.allclose(share, binomial, atol=0.1)


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.2), (0.0, 0.25), (0.001, 0.001)])
def test_cold_items_never_splits_an_item_and_gives_the_shares_of_items(valid, test):
    events = many().assign(item=np.arange(1200) % 60)
    parts = splits.build({**CONFIGS["cold_items"], "valid": valid, "test": test})(events)
    of_item = pd.Series(parts).groupby(events["item"]).agg(["min", "max"])
    assert (of_item["min"] == of_item["max"]).all()
    counts = np.bincount(of_item["min"], minlength=3)
    assert counts[1:].tolist() == [max(int(60 * valid), valid > 0), max(int(60 * test), test > 0)]


@pytest.mark.parametrize("name", ["ratio", "random", "presplit"])
def test_another_seed_gives_another_split(name):
    events = many().assign(part="train")
    one, two = (splits.build({**CONFIGS[name], "seed": seed})(events) for seed in (0, 1))
    assert (one != two).any()
    assert np.bincount(one).tolist() == np.bincount(two).tolist()


@settings(max_examples=100, deadline=None)
@given(events=event_tables())
def test_leave_one_out_takes_the_latest_event_and_the_one_before(events):
    parts = splits.build(CONFIGS["leave_one_out"])(events)
    for rows in events.groupby("user").indices.values():
        order = rows[np.argsort(events["time"].to_numpy()[rows], kind="stable")]
        expected = [0] * (len(rows) - 2) + [1, 2] if len(rows) > 2 else [0] * len(rows)
        assert parts[order].tolist() == expected


def test_leave_one_out_goes_by_the_order_of_the_file_where_there_are_no_times():
    events = pd.DataFrame({"user": [0, 1, 0, 1, 0, 1, 0], "item": range(7)})
    assert splits.build(CONFIGS["leave_one_out"])(events).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_temporal_never_puts_one_second_into_two_parts():
    events = many().assign(time=lambda each: each["time"] // 50)
    parts = splits.build(CONFIGS["temporal"])(events)
    times = events["time"].to_numpy()
    assert times[parts == 0].max() < times[parts == 1].min()
    assert times[parts == 1].max() < times[parts == 2].min()


def test_temporal_cuts_at_the_shares():
    parts = splits.build(CONFIGS["temporal"])(many())
    assert np.allclose(np.bincount(parts) / len(parts), [0.7, 0.1, 0.2], atol=0.01)


@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)])
def test_temporal_shares_that_are_no_binary_fractions_cut_where_they_say(valid, test):
    events = pd.DataFrame({"user": 0, "item": range(20), "time": range(20)})
    parts = splits.build({"name": "temporal", "valid": valid, "test": test})(events)
    assert np.bincount(parts).tolist() == [12, round(20 * valid), round(20 * test)]


def test_temporal_without_times_names_what_works():
    with pytest.raises(RrecError, match=r"needs times.*leave_one_out"):
        splits.build(CONFIGS["temporal"])(many().drop(columns="time"))


def test_presplit_keeps_the_parts_of_the_source():
    parts = np.tile(["train", "valid", "test"], 400)
    assert splits.build(CONFIGS["presplit"])(many().assign(part=parts)).tolist() == [0, 1, 2] * 400


def test_presplit_takes_a_share_of_train_where_there_is_no_valid_part():
    parts = np.where(np.arange(1200) % 4 == 3, "test", "train")
    found = splits.build(CONFIGS["presplit"])(many().assign(part=parts))
    assert ((found == 2) == (parts == "test")).all()
    assert np.bincount(found).tolist() == [720, 180, 300]
    assert (splits.build({**CONFIGS["presplit"], "valid": 0.0})(many().assign(part=parts)) != 1).all()


def test_presplit_without_parts_names_the_other_splits():
    with pytest.raises(RrecError, match="ratio, leave_one_out and temporal"):
        splits.build(CONFIGS["presplit"])(many())


@pytest.mark.parametrize("shares", [{"valid": -0.1}, {"test": 1.0}, {"valid": 0.5, "test": 0.5}])
@pytest.mark.parametrize("name", ["cold_items", "ratio", "random", "temporal"])
def test_impossible_shares_are_refused(name, shares):
    with pytest.raises(RrecError, match="add up to less than 1"):
        splits.build({**CONFIGS[name], **shares})(many())


def test_an_unknown_order_lists_the_choices():
    with pytest.raises(RrecError, match=r"'tme'.*did you mean 'time'.*random, time"):
        splits.build({**CONFIGS["ratio"], "order": "tme"})(many())
