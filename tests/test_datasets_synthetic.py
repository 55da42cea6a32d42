"""The synthetic world: its planted truth can be found in what a recommender sees."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustbench_rec.datasets import datasets
from robustbench_rec.errors import RrecError

SMALL = {
    "name": "synthetic",
    "n_users": 300,
    "n_items": 200,
    "events_per_user": 30,
    "n_intents": 6,
    "n_entities": 60,
    "n_relations": 4,
    "kg_share": 0.8,
    "drift": 0.5,
    "label_noise": 0.1,
    "seed": 0,
}


def world(**values):
    return datasets.build({**SMALL, **values}).load(Path())


def codes(raw):
    """Events as numbers, `[N]` each: the row of the user and of the item in their tables."""
    return (
        pd.Index(raw.users["user"]).get_indexer(raw.events["user"]),
        pd.Index(raw.items["item"]).get_indexer(raw.events["item"]),
    )


def test_the_same_seed_gives_the_same_world_and_another_one_another():
    one, two, other = world(), world(), world(seed=1)
    for name in ("events", "items", "users", "kg"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    assert all((one.truth[name] == two.truth[name]).all() for name in one.truth)
    assert not one.events.equals(other.events)


def test_sizes_are_those_that_were_asked_for():
    raw = world(n_users=500, n_items=350)
    assert len(raw.users) == 500
    assert len(raw.items) == 350
    assert raw.events["user"].nunique() == 500
    assert len(raw.events) / 500 == pytest.approx(30, rel=0.15)
    assert raw.kg["relation"].nunique() == 4
    assert raw.truth["user/start"].shape == (500, 6)
    assert all(len(raw.truth[name]) == len(raw.events) for name in ("event/intent", "event/noise", "event/rating"))


def test_events_are_distinct_pairs_in_increasing_time_with_ratings_on_the_scale():
    events = world().events
    assert not events.duplicated(["user", "item"]).any()
    assert (events.groupby("user")["time"].diff().dropna() > 0).all()
    assert events["time"].between(1_400_000_000, 1_700_000_000).all()
    assert set(events["rating"]) == {1, 2, 3, 4, 5}


def test_a_few_items_take_most_of_the_events():
    counts = world().events["item"].value_counts().to_numpy()
    assert counts[: len(counts) // 5].sum() > 0.35 * counts.sum()


def test_ratings_follow_the_taste_of_the_user():
    raw = world(label_noise=0.0, drift=0.0)
    users, items = codes(raw)
    liking = raw.truth["user/start"][users, raw.truth["item/intent"][items]]
    assert np.corrcoef(liking, raw.events["rating"])[0, 1] > 0.4


def test_events_show_the_intent_that_caused_them():
    raw = world(label_noise=0.2)
    _, items = codes(raw)
    noise, intent = raw.truth["event/noise"], raw.truth["event/intent"]
    assert noise.mean() == pytest.approx(0.2, abs=0.02)
    assert (intent[noise] == -1).all()
    assert (intent[~noise] == raw.truth["item/intent"][items][~noise]).all()


def test_label_noise_turns_the_rating_round_and_the_truth_has_the_right_one():
    raw = world(label_noise=0.2)
    noise, truth, seen = raw.truth["event/noise"], raw.truth["event/rating"], raw.events["rating"].to_numpy()
    assert (seen[~noise] == truth[~noise]).all()
    assert (seen[noise] == 6 - truth[noise]).all()
    assert truth[noise].mean() + 0.4 < seen[noise].mean()


def test_intents_drift_from_the_first_mixture_to_the_last():
    raw = world(drift=1.0, label_noise=0.0, events_per_user=60)
    users, _ = codes(raw)
    intent, start, end = raw.truth["event/intent"], raw.truth["user/start"], raw.truth["user/end"]
    place = raw.events.groupby("user").cumcount() / raw.events.groupby("user")["item"].transform("size")
    early, late = (place < 0.2).to_numpy(), (place > 0.8).to_numpy()
    assert start[users, intent][early].mean() > start[users, intent][late].mean() + 0.1
    assert end[users, intent][late].mean() > end[users, intent][early].mean() + 0.1


def test_the_knowledge_graph_tells_the_intent_as_far_as_its_share():
    def purity(share):
        raw = world(kg_share=share)
        triples = raw.kg[raw.kg["head"].isin(raw.items["item"])]
        hub = raw.kg[raw.kg["relation"] == "belongs_to"].set_index("head")["tail"]
        intent = pd.Series(raw.truth["item/intent"], raw.items["item"])
        return (triples["tail"].map(hub) == "hub" + triples["head"].map(intent).astype(str)).mean()

    assert purity(1.0) == 1.0
    assert purity(0.5) == pytest.approx(0.5 + 0.5 / 6, abs=0.08)
    assert purity(0.0) == pytest.approx(1 / 6, abs=0.08)


@pytest.mark.parametrize(("table", "column"), [("items", "category"), ("users", "age_group"), ("users", "gender")])
def test_features_lean_on_the_intent(table, column):
    raw = world(n_users=2000, n_items=2000, events_per_user=5)
    intent = raw.truth["item/intent"] if table == "items" else raw.truth["user/start"].argmax(axis=1)
    shares = pd.crosstab(intent, getattr(raw, table)[column], normalize="index")
    assert shares.std().max() > 0.1


def test_texts_share_words_within_an_intent():
    raw = world()
    intent = raw.truth["item/intent"]
    words = raw.items["text"].str.split().map(set).tolist()
    same = [len(words[i] & words[j]) for i in range(100) for j in range(i) if intent[i] == intent[j]]
    other = [len(words[i] & words[j]) for i in range(100) for j in range(i) if intent[i] != intent[j]]
    assert np.mean(same) > 5 * np.mean(other)


def test_a_recommender_that_looks_at_co_occurrence_beats_popularity():
    raw = world(n_users=600, label_noise=0.05)
    users, items = codes(raw)
    place = raw.events.groupby("user").cumcount(ascending=False).to_numpy()
    train = np.zeros((600, 200))
    train[users[place > 2], items[place > 2]] = 1
    hits = {}
    scores = {"popularity": np.tile(train.sum(axis=0), (600, 1)), "co-occurrence": train @ (train.T @ train)}
    for name, score in scores.items():
        top = np.argsort(-np.where(train > 0, -np.inf, score), axis=1)[:, :10]
        held = users[place <= 2], items[place <= 2]
        hits[name] = (top[held[0]] == held[1][:, None]).any(axis=1).mean()
    assert hits["co-occurrence"] > 1.3 * hits["popularity"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_users", 1),
        ("events_per_user", 0),
        ("n_relations", 1),
        ("n_entities", 5),
        ("kg_share", 1.5),
        ("drift", -0.1),
        ("n_intents", 0),
    ],
)
def test_sizes_that_make_no_world_are_refused_by_name(key, value):
    with pytest.raises(RrecError, match=rf"dataset\.{key}"):
        world(**{key: value})


@pytest.mark.parametrize("values", [{"n_intents": 1, "n_entities": 1}, {"events_per_user": 1}, {"label_noise": 1.0}])
def test_extreme_worlds_still_have_events(values):
    raw = world(**values)
    assert len(raw.events) >= 200
    assert np.isfinite(raw.events["rating"]).all()
