"""Training batches: every event once, negatives that nobody owns, randomness from the generator alone."""

from dataclasses import replace

import pytest
import torch
from conftest import DATA, interactions, make_data

from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.sampling import STREAMS, Events, epoch_generator


def epoch(seed: int = 0, batch_size: int = 7, negatives: int = 3) -> list[Batch]:
    sampler = Events(DATA, batch_size=batch_size, negatives=negatives)
    batches = list(sampler.epoch(torch.Generator().manual_seed(seed)))
    assert len(batches) == len(sampler)
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


@pytest.mark.parametrize(("batch_size", "negatives"), [(0, 1), (4, -1), (-1, 1)])
def test_sizes_that_make_no_sense_are_refused(batch_size: int, negatives: int) -> None:
    with pytest.raises(RrecError, match="must "):
        Events(DATA, batch_size=batch_size, negatives=negatives)
