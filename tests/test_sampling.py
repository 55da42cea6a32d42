"""Training batches: every event once, negatives that nobody owns, randomness from the generator alone."""

from dataclasses import replace

import pytest
import torch
from conftest import DATA, build, interactions, make_data

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.sampling import STREAMS, Events, Steps, epoch_generator, sampler


def epoch(seed: int = 0, batch_size: int = 7, negatives: int = 3) -> list[Batch]:
    built = Events(DATA, batch_size=batch_size, negatives=negatives)
    batches = list(built.epoch(torch.Generator().manual_seed(seed)))
    assert len(batches) == len(built)
    return batches


def items_of(batch: Batch) -> torch.Tensor:
    assert batch.items is not None
    return batch.items


def test_every_event_is_once_an_epoch_in_column_0() -> None:
    for batch_size in (1, 7, 60, 1000):
        found = [
            pair
            for batch in epoch(batch_size=batch_size)
            for pair in zip(batch.users.tolist(), items_of(batch)[:, 0].tolist(), strict=True)
        ]
        assert sorted(found) == sorted(zip(DATA.train.users.tolist(), DATA.train.items.tolist(), strict=True))


def test_column_0_is_the_positive_and_the_others_are_not() -> None:
    for batch in epoch():
        assert batch.labels.shape == items_of(batch).shape == (len(batch), 4)
        assert (batch.labels[:, 0] == 1).all()
        assert not batch.labels[:, 1:].any()


def test_no_negative_is_a_training_item_of_the_user_and_every_other_item_can_be_one() -> None:
    owned = set(zip(DATA.train.users.tolist(), DATA.train.items.tolist(), strict=True))
    drawn = {
        (user, item)
        for seed in range(60)
        for batch in epoch(seed)
        for user, row in zip(batch.users.tolist(), items_of(batch)[:, 1:].tolist(), strict=True)
        for item in row
    }
    assert not drawn & owned
    assert len(drawn) + len(owned) == DATA.n_users * DATA.n_items


def test_negatives_are_uniform_over_what_the_user_does_not_have() -> None:
    data = replace(make_data(), train=interactions([0] * 3, [0, 1, 2]))
    sampler = Events(data, batch_size=10, negatives=20_000)
    (batch,) = sampler.epoch(torch.Generator().manual_seed(0))
    counts = torch.bincount(items_of(batch)[:, 1:].flatten(), minlength=data.n_items)[3:].double()
    assert (counts / counts.mean() - 1).abs().max() < 0.1


def test_the_generator_decides_order_and_negatives_alone() -> None:
    torch.manual_seed(1)
    one = epoch(4)
    torch.manual_seed(2)
    two, other = epoch(4), epoch(5)
    assert all(torch.equal(items_of(a), items_of(b)) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(items_of(a), items_of(b)) for a, b in zip(one, other, strict=True))


def test_the_number_of_negatives_does_not_change_the_order_of_events() -> None:
    few, many = epoch(4, negatives=1), epoch(4, negatives=5)
    assert all(torch.equal(a.users, b.users) for a, b in zip(few, many, strict=True))


def test_every_consumer_of_every_epoch_and_seed_has_randomness_of_its_own() -> None:
    draws = {
        torch.rand(4, generator=epoch_generator(seed, number, stream)).sum().item()
        for seed in (0, 1, 7, 2**20)
        for number in range(50)
        for stream in STREAMS
    }
    assert len(draws) == 4 * 50 * len(STREAMS)


def test_a_user_who_has_everything_is_named() -> None:
    data = replace(make_data(n_items=9), train=interactions([0] * 9 + [1], [*range(9), 0]))
    with pytest.raises(RrecError, match="user 'u0' has an event with every item"):
        Events(data, batch_size=4, negatives=1)


def test_a_user_who_lacks_a_single_item_always_gets_that_one() -> None:
    data = replace(make_data(n_items=9), train=interactions([0] * 8 + [1], [*range(8), 0]))
    for batch in Events(data, batch_size=4, negatives=2).epoch(torch.Generator().manual_seed(0)):
        assert (items_of(batch)[batch.users == 0, 1:] == 8).all()


def labelled(value: float) -> Data:
    """`DATA` whose training events all have one label."""
    return replace(DATA, train=replace(DATA.train, values=torch.full((len(DATA.train),), float(value))))


@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
def test_losses_of_clicks_want_clicks(loss: str) -> None:
    rated = replace(DATA, train=replace(DATA.train, values=DATA.train.items % 5 + 1.0))
    with pytest.raises(RrecError, match=rf"loss={loss} with negatives=0 .* has ratings; prepare.label"):
        sampler(rated, build("mf"), loss=loss, batch_size=4, negatives=0)
    clicked = replace(DATA, train=replace(DATA.train, values=(DATA.train.items % 2).float()))
    assert len(sampler(clicked, build("mf"), loss=loss, batch_size=4, negatives=0))
    with pytest.raises(RrecError, match=rf"loss={loss} with negatives=0 learns from labels, and .* all are 1"):
        sampler(labelled(1), build("mf"), loss=loss, batch_size=4, negatives=0)
    for negatives in (0, 1):
        with pytest.raises(RrecError, match="no training event with label 1"):
            sampler(labelled(0), build("mf"), loss=loss, batch_size=4, negatives=negatives)


@pytest.mark.parametrize(("batch_size", "negatives"), [(0, 1), (4, -1), (-1, 1)])
def test_sizes_that_make_no_sense_are_refused(batch_size: int, negatives: int) -> None:
    with pytest.raises(RrecError, match="must "):
        Events(DATA, batch_size=batch_size, negatives=negatives)


RAGGED = replace(
    make_data(n_items=60),
    train=interactions(
        [0] * 41 + [1] * 2 + [2] + [4] * 7 + [5] * 20, [*range(41), 3, 4, 7, *range(20, 27), *range(30, 50)]
    ),
)
OWN = {user: RAGGED.train.items[RAGGED.train.users == user].tolist() for user in range(RAGGED.n_users)}


def examples(window: int, batch_size: int = 16, negatives: int = 0, seed: int = 0) -> list[tuple[int, list[int], int]]:
    """(user, history, target) of every step of an epoch."""
    sampler = Steps(RAGGED, batch_size=batch_size, negatives=negatives, window=window)
    found = []
    for batch in sampler.epoch(torch.Generator().manual_seed(seed)):
        assert batch.history is not None
        assert batch.history.steps is not None
        width = batch.history.items.shape[1]
        assert width == batch.history.lengths.max() <= window
        assert ((batch.history.items < RAGGED.n_items) == batch.history.real).all()
        targets = items_of(batch)[:, 0] if batch.targets is None else batch.targets
        for step, target in zip(batch.history.steps.tolist(), targets.tolist(), strict=True):
            row, place = divmod(step, width)
            assert place < batch.history.lengths[row]
            found.append((int(batch.users[row]), batch.history.items[row, : place + 1].tolist(), target))
    return found


class TestSteps:
    @pytest.mark.parametrize("window", [1, 2, 5, 6, 7, 19, 40, 41, 100])
    @pytest.mark.parametrize("batch_size", [1, 16, 1000])
    def test_every_event_but_a_users_first_is_a_target_once_an_epoch(self, window: int, batch_size: int) -> None:
        for seed in range(3):
            found = sorted((user, target) for user, _, target in examples(window, batch_size, seed=seed))
            assert found == sorted((user, item) for user, items in OWN.items() for item in items[1:])

    @pytest.mark.parametrize("window", [1, 2, 5, 6, 7, 19, 40, 41, 100])
    def test_its_history_is_exactly_the_events_before_it(self, window: int) -> None:
        for user, history, target in examples(window):
            place = OWN[user].index(target)
            assert 1 <= len(history) <= window
            assert history == OWN[user][place - len(history) : place]

    def test_a_history_that_fits_is_not_cut(self) -> None:
        for window in (40, 100):
            assert all(len(history) == OWN[user].index(target) for user, history, target in examples(window))

    def test_long_histories_are_cut_at_other_places_every_epoch(self) -> None:
        lengths = {
            len(history)
            for seed in range(60)
            for user, history, target in examples(5, seed=seed)
            if target == 30 and user == 0
        }
        assert lengths == {1, 2, 3, 4, 5}

    def test_batches_have_about_the_asked_number_of_steps_of_rows_of_about_one_length(self) -> None:
        sampler = Steps(RAGGED, batch_size=16, negatives=0, window=5)
        batches = list(sampler.epoch(torch.Generator().manual_seed(0)))
        assert all(len(batch) < 16 + 5 for batch in batches)
        assert len(batches) <= len(sampler)
        for batch in batches:
            assert batch.items is None
            assert batch.labels.shape == (len(batch), 0)

    def test_steps_have_negatives_of_their_own_that_the_user_does_not_have(self) -> None:
        sampler = Steps(RAGGED, batch_size=16, negatives=3, window=5)
        for batch in sampler.epoch(torch.Generator().manual_seed(0)):
            assert batch.targets is None
            assert items_of(batch).shape == batch.labels.shape == (len(batch), 4)
            assert batch.labels.tolist() == [[1.0, 0.0, 0.0, 0.0]] * len(batch)
            assert batch.history is not None
            assert batch.history.steps is not None
            rows = batch.history.steps // batch.history.items.shape[1]
            for user, drawn in zip(batch.users[rows].tolist(), items_of(batch)[:, 1:].tolist(), strict=True):
                assert not set(drawn) & set(OWN[user])

    def test_the_generator_alone_decides(self) -> None:
        torch.manual_seed(1)
        one = examples(5, seed=4)
        torch.manual_seed(2)
        assert examples(5, seed=4) == one != examples(5, seed=5)

    def test_data_without_anything_to_follow_are_refused(self) -> None:
        with pytest.raises(RrecError, match="no user with two training events"):
            Steps(replace(RAGGED, train=interactions([0, 1], [3, 4])), batch_size=4, negatives=0, window=5)
        with pytest.raises(RrecError, match="no user with two training events"):
            Events(replace(RAGGED, train=interactions([0, 1], [3, 4])), batch_size=4, negatives=2, window=5)
