"""DeepFM against loops over pairs of fields and an MLP over their concatenation."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, build, configured, judge, make_data
from torch import Tensor
from torch.nn import functional as F

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data, Interactions
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.features import features
from robustbench_rec.losses import loss
from robustbench_rec.models import _pairs
from robustbench_rec.models.deepfm import DeepFM
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted, surface


def with_context(data: Data = DATA, sizes: tuple[int, ...] = (4, 3)) -> Data:
    """The same events, each with a code of every context column; 0 is left to what train does not have."""
    generator = torch.Generator().manual_seed(0)

    def part(events: Interactions) -> Interactions:
        columns = [torch.randint(1, size, (len(events),), generator=generator) for size in sizes]
        return replace(events, context=torch.stack(columns, 1))

    parts = {name: part(data.part(name)) for name in ("train", "valid", "test")}
    return replace(data, **parts, context_sizes={f"c{place}": size for place, size in enumerate(sizes)})


CONTEXT = with_context()


def model_of(data: Data = CONTEXT, **changes: Any) -> DeepFM:
    model = build("deepfm", data, **({"dim": 5, "layers": [7, 6]} | changes))
    assert isinstance(model, DeepFM)
    return model.eval()


def fields(model: DeepFM, data: Data, user: int, item: int, context: list[int]) -> list[Tensor]:
    """The row `[1 + D]` of every field of an event, one value at a time."""
    found = []
    for side, owner, row in (("user", model.users, user), ("item", model.items, item)):
        made = features(data, side, None)
        assert owner.id is not None
        assert owner.number is not None
        found.append(owner.id.weight[row])
        found += [value * vector for value, vector in zip(made.numbers[row], owner.number, strict=True)]
        for table, codes in zip(owner.categories, made.codes, strict=True):
            real = [table.weight[code] for code in codes[row].tolist() if code]
            found.append(sum(real) / len(real) if real else torch.zeros(len(table.weight[0])))
        if side == "user":
            found += [
                table.weight[code] if code else torch.zeros(len(table.weight[0]))
                for table, code in zip(model.context, context, strict=True)
            ]
    return found


def naive(model: DeepFM, data: Data, user: int, item: int, context: list[int]) -> Tensor:
    rows = fields(model, data, user, item, context)
    vectors = [row[1:] for row in rows]
    score = sum(row[0] for row in rows) + sum(a @ b for a, b in combinations(vectors, 2))
    x = torch.cat(vectors)
    for layer in model.deep.layers:
        x = F.relu(layer(x))
    return score + model.out(x).squeeze()  # type: ignore[no-any-return]


def test_a_score_is_first_order_weights_all_pairs_of_fields_and_the_mlp() -> None:
    model, data = model_of(), CONTEXT
    users, items, context = torch.tensor([3, 0, 11]), torch.tensor([[1, 19], [6, 0], [2, 2]]), [[1, 2], [3, 0], [0, 1]]
    found = Shifted(model)(Batch.unlabelled(users, items, context=torch.tensor(context))).scores
    expected = [
        [naive(model, data, user, item, codes) for item in row]
        for user, row, codes in zip(users.tolist(), items.tolist(), context, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in expected]))


@pytest.mark.parametrize("training", [True, False])
def test_without_a_context_its_fields_are_nothing(training: bool) -> None:
    model = model_of(dropout=0.0).train(training)
    users, items = torch.tensor([3, 0]), torch.tensor([[1, 19], [6, 0]])
    unknown = torch.zeros(2, 2, dtype=torch.long)
    torch.testing.assert_close(
        Shifted(model)(Batch.unlabelled(users, items)).scores,
        Shifted(model)(Batch.unlabelled(users, items, context=unknown)).scores,
    )


def test_what_is_computed_once_for_all_items_is_what_training_computes_for_each() -> None:
    model = model_of(dropout=0.0)
    batch = Batch.unlabelled(CONTEXT.test.users, CONTEXT.test.items[:, None], context=CONTEXT.test.context)
    judged = Shifted(model.eval())(batch).scores
    torch.testing.assert_close(judged, Shifted(model.train())(batch).scores)


def test_the_catalogue_in_small_pieces_has_the_same_scores_and_gradients_at_a_shifted_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = model_of(), Batch.unlabelled(torch.arange(DATA.n_users))
    labels = torch.zeros(DATA.n_users, DATA.n_items).index_fill(1, torch.tensor([3]), 1.0)
    names = surface(model, "weight") + surface(model, "feature")

    def run() -> tuple[Tensor, tuple[Tensor, ...]]:
        torch.manual_seed(0)
        tensors = Shifted(model).tensors(names)
        delta = {name: (0.1 * torch.randn_like(each)).requires_grad_() for name, each in tensors.items()}
        at = Shifted(model).shift(delta)
        output = at(batch)
        value = loss("bce")(output, replace(batch, labels=labels)).mean()
        return output.scores.detach(), torch.autograd.grad(value, [*delta.values()], allow_unused=True)

    scores, gradients = run()
    for room in ("PIECE", "GRADED", "KEPT"):
        monkeypatch.setattr(_pairs, room, 1)
    again, others = run()
    torch.testing.assert_close(again, scores)
    context = {name for name in names if name.startswith("context")}  # which full ranking does not have
    for name, one, two in zip(names, gradients, others, strict=True):
        if name in context:
            assert one is None
            assert two is None
        else:
            torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-6)
            assert one.any(), name
    with torch.no_grad():
        torch.testing.assert_close(Shifted(model)(batch).scores, run_plain(model, batch))


def run_plain(model: DeepFM, batch: Batch) -> Tensor:
    items = torch.arange(DATA.n_items).expand(len(batch), -1)
    scores: Tensor = Shifted(model)(Batch.unlabelled(batch.users, items)).scores
    return scores


def test_the_features_are_a_surface_and_their_gradient_is_that_of_the_scores() -> None:
    model = model_of(DATA)
    assert surface(model, "feature") == ["users.feature_numbers", "items.feature_numbers"]
    delta = {"items.feature_numbers": torch.zeros(DATA.n_items, 1, requires_grad=True)}
    scores = Shifted(model, delta)(Batch.unlabelled(torch.tensor([0]), torch.tensor([[4, 7]]))).scores
    (gradient,) = torch.autograd.grad(scores.sum(), [*delta.values()])
    assert set(gradient.nonzero()[:, 0].tolist()) == {4, 7}


@pytest.mark.parametrize("protocol", ["clicks", "full"])
def test_an_attack_on_features_lowers_what_is_judged(protocol: str) -> None:
    model = model_of()
    test = replace(CONTEXT.test, values=(CONTEXT.test.values > 3).float())
    data = replace(CONTEXT, test=test if protocol == "clicks" else CONTEXT.test)
    judging = evaluator(data, judge(protocol=protocol, metrics=None))
    attack = attacks.build(configured("attack", "pgd", surface="feature", eps=3.0, norm="linf", relative="no"))
    worse, spent = judging.attack(
        Shifted(model), attack, "test", judging.climbed("softmax" if protocol == "full" else None)
    )
    name = "logloss" if protocol == "clicks" else "auc"
    clean, attacked = (judging.evaluate(at, "test").metrics[name] for at in (Shifted(model), worse))
    assert attacked > clean if protocol == "clicks" else attacked < clean
    assert spent["max_norm"] <= 3.0 * (1 + 1e-5)


def test_nothing_of_the_side_tables_is_in_a_checkpoint() -> None:
    assert set(model_of().state_dict()) == {name for name, _ in model_of().named_parameters()}


def test_columns_can_be_chosen() -> None:
    bare = model_of(DATA, user_columns=[], item_columns=["year"])
    assert bare.users.count == 1
    assert bare.items.count == 2
    with pytest.raises(RrecError, match="'sex'.*gender"):
        model_of(DATA, user_columns=["sex"])


def test_a_dataset_of_ids_alone_will_do() -> None:
    model = model_of(replace(DATA, item_table=None, user_table=None))
    assert model.users.count == model.items.count == 1
    with pytest.raises(RrecError, match="no feature surface"):
        surface(model, "feature")


@pytest.mark.parametrize("negatives", [0, 1])
def test_it_learns_a_click_that_the_context_alone_decides(negatives: int) -> None:
    """With labels, or with sampled items whose context is that of the click they stand beside (nothing to learn)."""
    data = with_context(make_data(n_users=20, n_items=30, train=12))
    assert data.train.context is not None
    values = (data.train.context[:, 0] == 2).float()
    data = replace(data, train=replace(data.train, values=values))
    model = model_of(data, user_columns=[], item_columns=[]).train()
    built = sampler(data, model, loss="bce", batch_size=64, negatives=negatives)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for epoch in range(30):
        for batch in built.epoch(torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            loss("bce")(Shifted(model)(batch), batch).mean().backward()
            optimizer.step()
    model.eval()
    users, items = torch.arange(20), torch.arange(20)[:, None]
    contexts = [torch.tensor([code, 1]).expand(20, -1) for code in (1, 2)]
    asked = [Shifted(model)(Batch.unlabelled(users, items, context=each)).scores.mean() for each in contexts]
    assert (asked[1] - asked[0] > 2) == (negatives == 0)


@pytest.mark.parametrize("changes", [{"dim": 0}, {"layers": [8, 0]}, {"layers": []}, {"dropout": 1.0}], ids=str)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=next(iter(changes))):
        model_of(DATA, **changes)


def test_a_missing_value_and_an_unknown_one_add_nothing_to_a_score() -> None:
    table = pd.DataFrame({"genres": ["a b", "a", None, "b"] * 5, "year": [1.0, 2.0, float("nan"), 3.0] * 5})
    model = model_of(replace(DATA, item_table=table))
    index = torch.tensor([2])
    assert not model.items(index)[0, 1:].any()
    shifted = {"items.categories.0.weight": torch.ones_like(model.get_parameter("items.categories.0.weight"))}
    batch = Batch.unlabelled(torch.tensor([0]), index[None])
    assert torch.equal(Shifted(model, shifted)(batch).scores, Shifted(model)(batch).scores)
