"""Histories: what a user did before a moment, oldest first, padding on the right."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from conftest import DATA, interactions, judge, make_data
from torch import Tensor, nn

from robustbench_rec.batch import Batch, History, Output
from robustbench_rec.data import Interactions
from robustbench_rec.evaluation import evaluator
from robustbench_rec.histories import Histories, overtaken
from robustbench_rec.model import RecModel
from robustbench_rec.sampling import Events, Labelled
from robustbench_rec.shifted import Shifted


def histories(*parts: Interactions) -> Histories:
    return Histories(*parts, n_users=4, n_items=10)


def timed(users: list[int], items: list[int], times: list[int]) -> Interactions:
    return replace(interactions(users, items), times=torch.tensor(times))


def read(history: History) -> list[list[int]]:
    return [row[:length] for row, length in zip(history.items.tolist(), history.lengths.tolist(), strict=True)]


def test_the_latest_events_stand_in_order_and_the_rest_is_padding() -> None:
    found = histories(interactions([0, 0, 0, 1, 3], [5, 4, 3, 2, 1])).of(torch.tensor([3, 0, 2, 1]), 2)
    assert read(found) == [[1], [4, 3], [], [2]]
    assert found.items.tolist() == [[1, 10], [4, 3], [10, 10], [2, 10]]
    assert found.real.sum(1).tolist() == found.lengths.tolist()


def test_a_history_is_as_wide_as_its_longest_row() -> None:
    built = histories(interactions([0, 0, 0, 1], [5, 4, 3, 2]))
    assert built.of(torch.tensor([0, 1]), 50).items.shape == (2, 3)
    assert built.of(torch.tensor([1]), 50).items.shape == (1, 1)
    assert built.of(torch.tensor([2]), 50).items.tolist() == [[10]]


def test_parts_are_merged_by_time() -> None:
    train, valid = timed([0, 0, 1], [1, 3, 7], [10, 30, 5]), timed([0, 1], [2, 8], [20, 1])
    assert read(histories(train, valid).of(torch.tensor([0, 1]), 9)) == [[1, 2, 3], [8, 7]]


def test_without_times_one_part_follows_the_other() -> None:
    train, valid = (replace(interactions(u, i), times=None) for u, i in (([0, 0, 1], [1, 3, 7]), ([0, 1], [2, 8])))
    assert read(histories(train, valid).of(torch.tensor([0, 1]), 9)) == [[1, 3, 2], [7, 8]]


def test_the_state_that_speaks_for_a_row_is_the_last_real_one() -> None:
    states = torch.arange(12.0).view(2, 3, 2)
    history = History(torch.zeros(2, 3, dtype=torch.long), torch.tensor([2, 0]))
    assert history.read(states).tolist() == [[2.0, 3.0], [6.0, 7.0]]
    steps = replace(history, steps=torch.tensor([0, 1, 5]))
    assert steps.read(states).tolist() == [[0.0, 1.0], [2.0, 3.0], [10.0, 11.0]]


def test_an_example_sees_the_events_before_it_and_no_other() -> None:
    order = {user: DATA.train.items[DATA.train.users == user].tolist() for user in range(DATA.n_users)}
    for sampler in (Events(DATA, batch_size=7, negatives=2, window=3), Labelled(DATA, batch_size=7, window=3)):
        seen = []
        for batch in sampler.epoch(torch.Generator().manual_seed(0)):
            assert batch.history is not None
            assert batch.items is not None
            for user, item, past in zip(
                batch.users.tolist(), batch.items[:, 0].tolist(), read(batch.history), strict=True
            ):
                place = order[user].index(item)
                assert past == order[user][max(0, place - 3) : place]
                seen.append((user, item))
        first = 0 if isinstance(sampler, Labelled) else 1
        assert sorted(seen) == sorted((user, item) for user, row in order.items() for item in row[first:])


class Last(RecModel):
    """Scores 1 for the last item of the history, 0 else."""

    needs: ClassVar[frozenset[str]] = frozenset({"order"})

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.window, self.table = 5, nn.Parameter(torch.eye(n_items + 1, n_items))

    def forward(self, batch: Batch, encoded: None) -> Output:
        assert batch.history is not None
        scores = batch.history.read(self.table[batch.history.items])
        return Output(scores if batch.items is None else scores.gather(1, batch.items))


def test_how_much_is_asked_about_what_a_history_has_passed() -> None:
    train, valid, test = timed([0, 0, 1], [1, 2, 3], [5, 20, 7]), timed([0, 1], [3, 4], [10, 8]), timed([0], [5], [30])
    data = replace(DATA, train=train, valid=valid, test=test)
    assert overtaken(data) == pytest.approx(1 / 3), "the first of the two events of validation"
    assert overtaken(replace(data, test=timed([0], [5], [15]))) == pytest.approx(2 / 3)
    assert overtaken(replace(data, valid=replace(valid, times=None))) == 0, "times are not known"


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_validation_knows_train_and_test_knows_validation_too(protocol: str) -> None:
    users = torch.arange(6)

    def part(items: Tensor, time: int) -> Interactions:
        return Interactions(users, items, torch.ones(6), torch.full((6,), time))

    data = replace(make_data(n_users=6), train=part(users, 1), valid=part(users + 6, 2), test=part(users + 12, 3))
    judging, model = evaluator(data, judge(protocol=protocol)), Last(data.n_items)
    for name, last in (("valid", users), ("test", users + 6)):
        for batch in judging.inputs(model, name):
            assert batch.history is not None
            assert [row[-1] for row in read(batch.history)] == last[batch.users].tolist()
    again = replace(data, test=part(users + 6, 3))  # the same again
    assert evaluator(again, judge(protocol=protocol, seen=True)).evaluate(Shifted(model), "test").metrics["hr@5"] == 1.0
