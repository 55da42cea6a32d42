"""The LSTM text recommender against nn.LSTM read word by word, at θ and at θ + δ."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, build, moved
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.features import features
from robustbench_rec.models import lstm_text
from robustbench_rec.models._fields import Fields
from robustbench_rec.models.lstm_text import LSTMText
from robustbench_rec.shifted import Shifted, surface

USERS = torch.arange(DATA.n_users)


def titled(titles: list[str | None]) -> Data:
    table = pd.DataFrame({"title": [titles[each % len(titles)] for each in range(DATA.n_items)]})
    return replace(DATA, item_table=table)


MIXED = titled(["sea", "old sea house", None, "red night song", "winter", "song sea"])
SMALL: dict[str, Any] = {"token_dim": 6, "state_dim": 5, "field_dim": 4, "layers": [7], "dropout": 0.0, "min_count": 1}


def model_of(data: Data = MIXED, **changes: Any) -> LSTMText:
    model = build("lstm_text", data, **(SMALL | changes))
    assert isinstance(model, LSTMText)
    return model.eval()


def word_by_word(model: LSTMText, item: int) -> Tensor:
    """The state after the words of one item, by nn.LSTM on exactly those."""
    lstm = nn.LSTM(model.token.embedding_dim, model.lstm.hidden_size, batch_first=True)
    lstm.load_state_dict(model.lstm.state_dict())
    words = model.tokens[item, : int(model.lengths[item])]
    if not len(words):
        return torch.zeros(model.lstm.hidden_size)
    _, (last, _) = lstm(model.token.weight[words][None])
    return last[0, 0]  # type: ignore[no-any-return]


def side_by_side(fields: Fields, side: str) -> Tensor:
    """The vectors of the id and of all features of every user or item `[n, K · D]`."""
    known = features(DATA, side, None)
    found = [] if fields.id is None else [fields.id.weight]
    if fields.number is not None:
        found += [values[:, None] * vector for values, vector in zip(known.numbers.T, fields.number, strict=True)]
    for table, codes in zip(fields.categories, known.codes, strict=True):
        assert isinstance(table, nn.Embedding)
        found.append(torch.stack([table.weight[row[row > 0]].sum(0) / max(1, int((row > 0).sum())) for row in codes]))
    return torch.cat(found, 1)


def scores(model: LSTMText, delta: dict[str, Tensor] | None = None, items: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = Shifted(model, delta or {})(Batch.unlabelled(USERS, items)).scores
    return found


def test_a_state_is_that_of_the_last_word_and_nothing_where_there_is_none() -> None:
    model = model_of()
    found = model._states(torch.arange(DATA.n_items))
    torch.testing.assert_close(found, torch.stack([word_by_word(model, item) for item in range(DATA.n_items)]))
    assert not found[2].any()


def test_scores_are_a_linear_and_a_deep_part_of_profile_text_and_features() -> None:
    model = model_of(DATA)
    assert (model.users.count, model.items.count) == (3, 2)  # id, age, gender; year, genres
    states = torch.stack([word_by_word(model, item) for item in range(DATA.n_items)])
    user, item = side_by_side(model.users, "user"), torch.cat([states, side_by_side(model.items, "item")], 1)
    pairs = torch.cat([user.repeat_interleave(len(item), 0), item.repeat(len(user), 1)], 1)
    assert model.deep is not None
    assert model.readout is not None
    deep = model.readout(F.relu(model.deep.layers[0](pairs))).view(len(user), len(item))
    torch.testing.assert_close(scores(model), model.user_readout(user) + model.item_readout(item).T + deep)


def test_the_lstm_starts_as_that_of_torch() -> None:
    bound = 64**-0.5
    for name, each in model_of(token_dim=16, state_dim=64).lstm.named_parameters():
        assert stats.kstest(each.detach().flatten(), "uniform", (-bound, 2 * bound)).pvalue > 1e-3, name


def test_padding_never_counts() -> None:
    model, longer = model_of(), model_of()
    longer.tokens = nn.functional.pad(longer.tokens, (0, 7))
    longer.token = nn.Embedding.from_pretrained(model.token.weight.detach().clone())
    with torch.no_grad():
        longer.token.weight[0] = 1e3
    longer.load_state_dict({**model.state_dict(), "token.weight": longer.token.weight})
    torch.testing.assert_close(scores(longer), scores(model))


@pytest.mark.parametrize("name", ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "token.weight"])
@pytest.mark.parametrize("training", [True, False])
def test_a_shift_reaches_the_lstm_as_if_the_weight_were_there(name: str, training: bool) -> None:
    model = model_of().train(training)
    delta = {name: 0.5 * torch.randn_like(model.get_parameter(name))}
    items = torch.arange(6).expand(DATA.n_users, -1)
    found = scores(model, delta, items)
    torch.testing.assert_close(found, scores(moved(model, delta), items=items))  # type: ignore[arg-type]
    assert (found - scores(model, items=items)).abs().max() > 1e-3


def test_the_gradient_in_a_shift_is_that_in_the_weight() -> None:
    model = model_of()
    names = [name for name in surface(model, "weight") if name.startswith(("lstm", "token"))]
    delta = {name: torch.zeros_like(model.get_parameter(name)).requires_grad_() for name in names}
    outer = torch.randn(DATA.n_users, DATA.n_items)
    shifted = torch.autograd.grad((Shifted(model, delta)(Batch.unlabelled(USERS)).scores * outer).sum(), delta.values())
    plain = torch.autograd.grad(
        (Shifted(model)(Batch.unlabelled(USERS)).scores * outer).sum(), [model.get_parameter(name) for name in names]
    )
    for one, two in zip(shifted, plain, strict=True):
        torch.testing.assert_close(one, two)
        assert one.any()


def test_embedded_words_are_a_site_and_a_shift_of_a_word_moves_its_item_alone() -> None:
    model = model_of()
    at = Shifted(model)
    (seen,) = at.activations(["embedded.shift"], Batch.unlabelled(USERS)).values()
    assert seen.shape == (DATA.n_items, 3, 6)
    delta = torch.zeros_like(seen)
    delta[4, 0] = 1.0
    changed = (scores(model, {"embedded.shift": delta}) != scores(model)).any(0)
    assert changed.nonzero().flatten().tolist() == [4]
    beyond = torch.zeros_like(seen)
    beyond[4, 1:] = 1.0  # item 4 has one word
    assert torch.equal(scores(model, {"embedded.shift": beyond}), scores(model))


def test_training_reads_the_items_of_the_batch_and_finds_the_same_scores() -> None:
    model = model_of()
    items = torch.tensor([[3, 3, 0]]).expand(DATA.n_users, -1)
    torch.testing.assert_close(scores(model.train(), items=items), scores(model.eval(), items=items))
    torch.testing.assert_close(scores(model.train()), scores(model.eval()))


def test_texts_in_portions_have_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    whole = scores(model)
    monkeypatch.setattr(lstm_text, "CELLS", 1)
    torch.testing.assert_close(scores(model), whole)


def test_without_hidden_layers_it_is_linear_and_ranks_alike_for_everyone() -> None:
    model = model_of(layers=[], item_columns=[])
    user, item = model.users(USERS).flatten(1), model._states(torch.arange(DATA.n_items))
    expected = model.user_readout(user) + (item @ model.item_readout.weight[0])
    found = scores(model)
    torch.testing.assert_close(found, expected)
    assert (found.argsort(1) == found.argsort(1)[0]).all()
    assert not (scores(model_of()).argsort(1) == scores(model_of()).argsort(1)[0]).all()


def test_without_the_user_id_users_of_one_profile_are_one() -> None:
    table = pd.DataFrame({"gender": ["F", "M"] * (DATA.n_users // 2)})
    model = model_of(replace(MIXED, user_table=table), user_id=False)
    found = scores(model)
    torch.testing.assert_close(found[0], found[2])
    assert (found[0] != found[1]).any()
    with pytest.raises(RrecError, match="user_id=false.*no features of its users"):
        model_of(replace(MIXED, user_table=None), user_id=False)


def test_an_item_that_train_does_not_have_is_scored_by_its_words() -> None:
    train = DATA.train
    kept = train.items != 4
    parts = {name: getattr(train, name)[kept] for name in ("users", "items", "values", "times")}
    data = replace(MIXED, train=type(train)(**parts))
    found = scores(model_of(data))
    torch.testing.assert_close(found[:, 4], found[:, 10])  # both are called "winter"


def test_bf16_trains() -> None:
    model = model_of().train()
    with torch.autocast("cpu", torch.bfloat16):
        value = Shifted(model)(Batch.unlabelled(USERS, torch.arange(6).expand(DATA.n_users, -1))).scores.sum()
    value.backward()
    assert model.lstm.weight_hh_l0.grad is not None
    assert model.lstm.weight_hh_l0.grad.isfinite().all()


def test_a_dataset_without_texts_is_refused() -> None:
    with pytest.raises(RrecError, match="needs text"):
        model_of(replace(DATA, item_table=None))


@pytest.mark.parametrize("changes", [{"token_dim": 0}, {"layers": [0]}, {"dropout": -0.1}, {"max_tokens": 0}], ids=str)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=next(iter(changes))):
        model_of(**changes)
