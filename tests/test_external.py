"""Recommenders that are not ours: judged like any model, attacked through what they read of their users."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, configured, judge
from torch import Tensor

from robustbench_rec.attack import Attack
from robustbench_rec.attacks import single
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full, evaluator
from robustbench_rec.evaluation.worst import attacked, judged, members
from robustbench_rec.external import External
from robustbench_rec.goals import goals
from robustbench_rec.shifted import Shifted


def clicks() -> Tensor:
    rows = torch.zeros(DATA.n_users, DATA.n_items)
    rows[DATA.train.users, DATA.train.items] = 1
    return rows


def neighbours(rows: Any, items: Any) -> Any:
    """A plain Python function: items clicked together."""
    table = clicks().numpy()
    scores = rows @ (table.T @ table + 0.01 * np.arange(DATA.n_items))
    return scores if items is None else np.take_along_axis(scores, items, 1)


@pytest.fixture
def external() -> External:
    return External(neighbours, clicks())


@pytest.fixture
def judging() -> Full:
    built = evaluator(DATA, judge())
    assert isinstance(built, Full)
    return built


def on_rows(name: str, **changes: Any) -> Attack:
    return single(configured("attack", name, surface="activation", **changes))


def shown(judging: Full, external: External, name: str, **changes: Any) -> dict[str, float]:
    goal = goals.build(configured("goal", "promote", k=5, stratum="random", count=1), DATA)
    attack = on_rows(name, **changes)
    attack.check(external)
    [member] = members(judging, attack, goal)
    moved, budget = attacked(judging, Shifted(external), member, "test", goal, None)
    before = judged(judging, Shifted(external), "test", goal).metrics["t_rank"]
    return {"before": before, "after": judged(judging, moved, "test", goal).metrics["t_rank"], **budget}


def test_its_scores_are_those_of_the_function(external: External, judging: Full) -> None:
    [batch] = judging.inputs(external, "test")
    expected = neighbours(clicks()[batch.users].numpy(), None)
    np.testing.assert_allclose(Shifted(external)(batch).scores.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"), [("square", {"eps": 1.0, "queries": 60}), ("simba", {"eps": 1.0, "queries": 60})]
)
def test_a_search_within_a_ball_promotes_a_target(external: External, judging: Full, name: str, changes: Any) -> None:
    found = shown(judging, external, name, **changes)
    assert found["after"] < found["before"]
    assert found["max_relative"] <= 1 + 1e-5


@pytest.mark.parametrize("direction", ["add", "remove", "both"])
def test_flipped_clicks_promote_a_target_within_their_number(external: External, judging: Full, direction: str) -> None:
    found = shown(judging, external, "flips", edits=2, direction=direction, queries=60)
    assert found["after"] < found["before"]
    assert found["max_flips"] <= 2


def test_added_and_removed_clicks_are_what_is_asked_for(external: External, judging: Full) -> None:
    for direction, sign in (("add", 1), ("remove", -1)):
        attack = on_rows("flips", edits=3, direction=direction, queries=20)
        moved, _ = judging.attack(Shifted(external), attack, "test", judging.climbed(None))
        for point, batch in moved:
            delta = point.delta["rows.shift"]
            assert set((sign * delta).unique().tolist()) <= {0.0, 1.0}
            assert set((clicks()[batch.users] + delta).unique().tolist()) <= {0.0, 1.0}


def test_numbers_that_are_no_clicks_are_not_flipped(judging: Full) -> None:
    model = External(neighbours, clicks() * 0.5)
    with pytest.raises(RrecError, match="other numbers than 0 and 1"):
        judging.attack(
            Shifted(model), single(configured("attack", "flips", surface="activation")), "test", judging.climbed(None)
        )


def test_gradients_are_refused_and_bad_scores_named(external: External, judging: Full) -> None:
    with pytest.raises(RrecError, match="gradient|does not reach"):
        judging.attack(
            Shifted(external), single(configured("attack", "fgm", surface="activation")), "test", judging.climbed(None)
        )
    wrong = External(lambda rows, items: np.zeros(3), clicks())
    with pytest.raises(RrecError, match="score"):
        judging.evaluate(Shifted(wrong), "test")


def test_a_model_of_implicit_is_attacked(judging: Full) -> None:
    als = pytest.importorskip("implicit.als")
    sparse = pytest.importorskip("scipy.sparse")
    model = als.AlternatingLeastSquares(factors=4, iterations=5, random_state=0, use_gpu=False)
    model.fit(sparse.csr_matrix(clicks().numpy()), show_progress=False)

    def score(rows: Any, items: Any) -> Any:
        matrix = sparse.csr_matrix(rows)
        factors = np.stack([model.recalculate_user(user, matrix[user]) for user in range(len(rows))])
        found = factors @ np.asarray(model.item_factors).T
        return found if items is None else np.take_along_axis(found, items, 1)

    found = shown(judging, External(score, clicks()), "flips", edits=2, queries=20)
    assert found["after"] < found["before"]
