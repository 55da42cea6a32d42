"""Adapters: identity at first, few parameters, a body that stays, and what counts as one."""

from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, configured, question
from torch import Tensor, nn

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Adaptation, Bottleneck, LoRA, changes, digest, frozen, sizes
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted

ADAPTED = [("sasrec", "lora"), ("sasrec", "adapter"), ("gru4rec", "adapter"), ("comirec", "head"), ("mf", "head")]
USERS = torch.arange(DATA.n_users)


def scores(model: RecModel) -> Tensor:
    with torch.no_grad():
        return Shifted(model.eval())(question(model, USERS)).scores


def adapted(name: str, adaptation: str, **changed: Any) -> RecModel:
    model = build(name)
    adaptations.build(configured("adaptation", adaptation, **changed))(model)
    return model


@pytest.mark.parametrize(("name", "adaptation"), ADAPTED)
def test_it_starts_as_the_identity_bit_for_bit(name: str, adaptation: str) -> None:
    assert torch.equal(scores(build(name)), scores(adapted(name, adaptation)))


@pytest.mark.parametrize(("name", "adaptation"), ADAPTED)
def test_steps_change_the_scores_and_leave_the_body(name: str, adaptation: str) -> None:
    model = adapted(name, adaptation)
    before, hashed, batch = scores(model), digest(model), batch_for(model)
    optimizer = torch.optim.Adam((each for each in model.parameters() if each.requires_grad), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(model.loss)(Shifted(model.train())(batch), batch).mean().backward()
        optimizer.step()
    assert frozen(model)
    assert digest(model) == hashed
    assert not torch.equal(before, scores(model))
    trained, total = sizes(model)
    assert 0 < trained < total


def test_the_hash_of_a_body_sees_one_number_that_changed() -> None:
    model = adapted("sasrec", "lora")
    before = digest(model)
    with torch.no_grad():
        model.get_parameter("blocks.0.qkv.base.weight")[0, 0] += 1e-6
    assert digest(model) != before


def test_a_model_that_is_trained_as_a_whole_has_no_frozen_body() -> None:
    assert not frozen(build("sasrec"))
    assert not frozen(build("kgat"))


def test_the_body_has_no_dropout_and_adapters_have_theirs() -> None:
    model = adapted("sasrec", "lora", dropout=0.3).train()
    found = {each.dropout.p for each in model.modules() if isinstance(each, LoRA)}
    assert found == {0.3}
    assert model.get_submodule("blocks.0").dropout.p == 0.0


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_nothing_random_is_left_in_front_of_a_head(name: str) -> None:
    model = build(name, dropout=0.5)
    adaptations.build(configured("adaptation", "head"))(model)
    at, batch = Shifted(model.train()), question(model, USERS)
    assert torch.equal(at(batch).scores, at(batch).scores)


def test_the_size_of_a_change_is_that_of_the_product() -> None:
    lora = LoRA(nn.Linear(5, 4), Adaptation(rank=2, alpha=6, dropout=0))
    bottleneck = Bottleneck(nn.Identity(), 5, 3, 0.0)
    nn.init.normal_(lora.up)
    nn.init.normal_(bottleneck.up.weight)
    model = nn.ModuleList([lora, bottleneck])
    expected = [
        (3 * lora.up @ lora.down).square().sum(),
        (bottleneck.up.weight @ bottleneck.down.weight).square().sum(),
    ]
    for one, two in zip(changes(model), expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    ("adaptation", "changed"),
    [("lora", {"rank": 0}), ("lora", {"dropout": 1.0}), ("adapter", {"size": 0}), ("adapter", {"dropout": -0.1})],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(adaptation: str, changed: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match=r"adaptation\."):
        adapted("sasrec", adaptation, **changed)


def test_a_text_tower_with_lora_is_not_adapted_twice() -> None:
    if configured("model", "text_tower")["encoder"] == "none":
        pytest.skip("needs the extra text")
    model = build("text_tower", lora={"rank": 2, "alpha": 4, "dropout": 0.0})
    assert frozen(model)
    assert sizes(model)[0] < sizes(model)[1]
    with pytest.raises(RrecError, match="has LoRA already: set model.lora"):
        adaptations.build(configured("adaptation", "lora"))(model)
