"""Ranking metrics against ranx and against a naive loop."""

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation.prediction import Clicks, Ratings
from robustbench_rec.metrics.direction import sign
from robustbench_rec.metrics.ranking import KNOWN, TOP_K, check
from robustbench_rec.metrics.stability import STABILITY


@st.composite
def lists(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """hits `[B, K]` and how many relevant items there are, never fewer than hits."""
    k = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=6))
    more = [draw(st.integers(0 if any(row) else 1, 15)) for row in rows]
    return torch.tensor(rows), torch.tensor([sum(row) + extra for row, extra in zip(rows, more, strict=True)])


def naive(name: str, hits: list[bool], relevant: int) -> float:
    k = len(hits)
    if name == "hr":
        return float(any(hits))
    if name == "precision":
        return sum(hits) / k
    if name == "recall":
        return sum(hits) / relevant
    if name == "mrr":
        return next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0.0)
    if name == "map":
        return sum(sum(hits[:rank]) / rank for rank, hit in enumerate(hits, 1) if hit) / min(k, relevant)
    assert name == "ndcg"
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, relevant) + 1))
    return sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, 1) if hit) / ideal


@pytest.mark.parametrize("name", TOP_K)
@given(case=lists())
def test_every_metric_is_the_naive_loop(name: str, case: tuple[Tensor, Tensor]) -> None:
    hits, relevant = case
    expected = [naive(name, row, int(n)) for row, n in zip(hits.tolist(), relevant, strict=True)]
    assert TOP_K[name](hits, relevant).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TOP_K)
@given(case=lists())
def test_every_metric_is_between_nothing_and_one_and_no_hit_gives_nothing(
    name: str, case: tuple[Tensor, Tensor]
) -> None:
    hits, relevant = case
    value = TOP_K[name](hits, relevant)
    assert ((value >= 0) & (value <= 1 + 1e-6)).all()
    assert torch.equal(value > 0, hits.any(1))


@pytest.mark.parametrize("name", ["hr", "map", "mrr", "ndcg"])
def test_a_perfect_list_gives_one(name: str) -> None:
    hits = torch.tensor([[True, True, False], [True, True, True]])
    assert TOP_K[name](hits, torch.tensor([2, 9])).tolist() == pytest.approx([1, 1])


def test_the_ideal_of_ndcg_is_not_the_best_order_of_what_was_retrieved() -> None:
    """One of three relevant items, at the top: KGAT's and ComiRec's code would say 1."""
    value = TOP_K["ndcg"](torch.tensor([[True, False, False]]), torch.tensor([3])).item()
    assert value == pytest.approx(1 / (1 + 1 / math.log2(3) + 1 / 2))


@pytest.mark.slow
def test_ranx_agrees() -> None:
    ranx = pytest.importorskip("ranx")
    generator = torch.Generator().manual_seed(0)
    n_users, n_items, k = 40, 60, 10
    scores = torch.rand(n_users, n_items, generator=generator)
    wanted = torch.rand(n_users, n_items, generator=generator).argsort(1) < torch.arange(n_users)[:, None] % k + 1
    qrels = ranx.Qrels(
        {f"u{u:02}": {f"i{i}": 1 for i in wanted[u].nonzero().flatten().tolist()} for u in range(n_users)}
    )
    run = ranx.Run(
        {f"u{u:02}": {f"i{i}": score for i, score in enumerate(row)} for u, row in enumerate(scores.tolist())}
    )
    hits, relevant = wanted.gather(1, scores.topk(k, 1).indices), wanted.sum(1)
    assert relevant.max() <= k  # beyond, ranx divides average precision by all relevant items
    theirs = {
        "hr": "hit_rate",
        "map": "map",
        "mrr": "mrr",
        "ndcg": "ndcg",
        "precision": "precision",
        "recall": "recall",
    }
    for name, metric in TOP_K.items():
        judged = ranx.evaluate(qrels, run, f"{theirs[name]}@{k}", return_mean=False)
        assert metric(hits, relevant).tolist() == pytest.approx(judged.tolist(), rel=1e-5), name


def test_the_page_of_definitions_has_every_metric() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "numbers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)(?:@K)?`", page))
    assert {*KNOWN, *Clicks.known, *Ratings.known, *STABILITY, "top1"} <= named


def test_every_metric_is_better_one_way_or_neither() -> None:
    ways = {name: sign(name) for name in (*KNOWN, *Clicks.known, *Ratings.known)}
    neither = {"aplt", "arp", "entropy", "gini", "log_arp", "pru"}
    less = {"adaptive_ece", "aurc", "brier", "ece", "logloss", "mae", "mce", "no_positives", "rmse", "sharpness"}
    assert {name for name, way in ways.items() if way == 0} == neither
    assert {name for name, way in ways.items() if way == -1} == less
    assert (sign("ece@10"), sign("gini@10"), sign("recall@5"), sign("t_hr@10")) == (-1, 0, 1, 0)


def test_an_unknown_metric_and_an_impossible_k_are_refused() -> None:
    check(["ndcg", "auc", "coverage"], [1, 20], 20)
    with pytest.raises(RrecError, match=r"unknown metric 'ndgc'; did you mean 'ndcg'"):
        check(["ndgc"], [10], 20)
    for k in (0, 21):
        with pytest.raises(RrecError, match=f"top_k={k}.*between 1 and the 20 candidates"):
            check(["ndcg"], [k], 20)
    with pytest.raises(RrecError, match=r"top_k=\[\]: at least one K"):
        check(["ndcg"], [], 20)
