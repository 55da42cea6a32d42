"""Defences of random noise: where it falls, how large it is, and that none of it is plain training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import DATA, assert_gradients, batch_for, build, buildable, configured, gradients
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import divergence, loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import llm_prompt
from robustbench_rec.objective import Objective, Plain, start_epoch
from robustbench_rec.shifted import Shifted


def defended(name: str, model: RecModel, **changes: Any) -> Any:
    built = defenses.build(configured("defense", name, **changes), plain(model), model)
    start_epoch(built, 0, torch.Generator().manual_seed(0))
    return built


def plain(model: RecModel) -> Objective:
    return Plain(loss(model.loss))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("gaussian", {"consistency": 0.0}), ("neftune", {"alpha": 0.0}), ("rdrop", {"weight": 0.0})],
    ids=str,
)
def test_without_weight_it_is_plain_training_bit_for_bit(name: str, changes: dict[str, Any]) -> None:
    model, batch, found = build("sasrec"), batch_for(build("sasrec")), []
    for objective in (plain(model), defended(name, model, **changes)):
        torch.manual_seed(3)
        found.append(gradients(model, objective(Shifted(model.train()), batch)))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("model", ["mf", "sasrec", "gru4rec", "kgat", "neumf", "deepfm", "text_tower"])
def test_zero_noise_has_zero_divergence(model: str, training: bool) -> None:
    """Conformance 10, of the random control; with dropout too, since both outputs have the same masks."""
    built = build(model).train(training)
    if not any(isinstance(each, torch.nn.Embedding) for each in built.modules()):
        pytest.skip("no embeddings")
    batch, values = batch_for(built), []
    for objective in (defended("gaussian", built, sigma=0.0, consistency=7.0), plain(built)):
        torch.manual_seed(3)
        values.append(objective(Shifted(built), batch))
    torch.testing.assert_close(*values)


def test_gaussian_noise_is_as_large_as_said_on_events_and_on_tables() -> None:
    for name in ("mf", "sasrec"):
        model = build(name).eval()
        at, batch = Shifted(model), batch_for(model, size=200)
        noise = defended("gaussian", model, sigma=0.3).noise(at, batch)
        assert set(noise) == ({"embedded.shift"} if name == "sasrec" else {"user.weight", "item.weight"})
        for key, each in noise.items():
            base = at.activations([key], batch)[key] if name == "sasrec" else model.get_parameter(key)
            if name == "sasrec":
                assert batch.history is not None
                assert not each[~batch.history.real].any()
                each, base = each[batch.history.real], base[batch.history.real]
            ratio = each.square().sum() / base.detach().square().sum()
            assert ratio.sqrt().item() == pytest.approx(0.3, rel=0.15)


@pytest.mark.parametrize(("name", "tables"), [("sasrec", 1), ("stosa", 2), ("multi_intent_gaussian", 2)])
def test_the_noise_of_neftune_is_within_alpha_and_on_real_events_alone(name: str, tables: int) -> None:
    """Conformance 10; a Gaussian is looked up in two tables."""
    model = build(name).eval()
    batch, objective = batch_for(model, size=200), defended("neftune", model, alpha=5.0)
    assert batch.history is not None
    noises = objective.noise(Shifted(model), batch)
    assert len(noises) == tables
    for noise in noises.values():
        assert not noise[~batch.history.real].any()
        sizes = noise.flatten(1).norm(dim=1)
        assert bool((sizes <= 5.0).all())
        assert sizes.mean().item() == pytest.approx(5 / 3**0.5, rel=0.1)  # of uniform numbers, with true lengths
    assert not torch.allclose(objective(Shifted(model), batch), plain(model)(Shifted(model), batch))


def test_padding_makes_no_difference_to_the_size_of_the_noise() -> None:
    model = build("sasrec").eval()
    short = batch_for(model, size=30)
    assert short.history is not None
    padded = torch.nn.functional.pad(short.history.items, (0, 3), value=DATA.n_items)[:, : model.window]
    longer = replace(short, history=replace(short.history, items=padded, steps=None))
    sizes = [
        next(iter(defended("neftune", model).noise(Shifted(model), each).values())).abs().amax((1, 2))
        for each in (short, longer)
    ]
    dim = model.get_parameter("item.weight").shape[1]
    bound = 5 / (short.history.lengths * dim).sqrt()
    assert all(bool((each <= bound + 1e-6).all()) for each in sizes)


TITLES = ["sea", "old sea house", "", "red night song", "winter", "song sea"]
MIXED = replace(DATA, item_table=pd.DataFrame({"title": [TITLES[each % 6] for each in range(DATA.n_items)]}))
WORDS = torch.tensor([len(TITLES[each % 6].split()) for each in range(DATA.n_items)])
PROMPT = {"template": "The {history} Will like {item} :", "window": 2, "title_tokens": 6, "separator": ","}
LORA = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}


def prompted(batch: Batch) -> Tensor:
    """Tokens of the prompts of a batch: four of the template, the titles, and a comma between those of the history."""
    assert batch.history is not None
    assert batch.items is not None
    items, lengths = batch.history.items, batch.history.lengths
    past = (torch.cat([WORDS, torch.zeros(1, dtype=torch.long)])[items] * batch.history.real).sum(1)
    return (4 + past + (lengths - 1).clamp_min(0))[:, None].add(WORDS[batch.items]).flatten()


@pytest.mark.parametrize("alpha", [5.0, 15.0])
@pytest.mark.parametrize(
    ("name", "changes", "lengths"),
    [
        ("lstm_text", {}, lambda batch: WORDS[batch.items.unique()]),
        ("text_tower", LORA, lambda _: WORDS + 2),  # with the special tokens; of all items, which are compared
        ("text_tower", {"user": "history", **LORA}, lambda _: WORDS + 2),
        ("text_tower", {"max_tokens": 4, **LORA}, lambda _: (WORDS + 2).clamp_max(4)),
        ("llm_prompt", PROMPT, prompted),
    ],
    ids=["lstm_text", "text_tower", "text_tower of histories", "text_tower of short texts", "llm_prompt"],
)
def test_the_noise_of_neftune_is_on_the_tokens_of_each_text_by_their_true_number(
    name: str, changes: dict[str, Any], lengths: Callable[[Batch], Tensor], alpha: float
) -> None:
    if not buildable(name):
        pytest.skip("needs the extra `text`")
    model = build(name, MIXED, **changes).train()
    batch, objective = batch_for(model, MIXED), defended("neftune", model, alpha=alpha)
    (noise,) = objective.noise(Shifted(model), batch).values()
    true = lengths(batch)
    assert len(noise) == len(true)
    assert len(true.unique()) > 1
    real = torch.arange(noise.shape[1]) < true[:, None]
    assert not noise[~real].any()
    bound = (alpha / (true * noise.shape[2]).sqrt())[:, None, None].expand_as(noise)[real]
    within = noise[real].abs() / bound
    assert (noise[real] / bound).mean().item() == pytest.approx(0, abs=0.06)  # to both sides
    assert within.max() <= 1 + 1e-6
    assert within.mean().item() == pytest.approx(0.5, abs=0.03)
    moved = objective(Shifted(model), batch)
    assert not torch.allclose(moved, plain(model)(Shifted(model), batch))
    assert any(each.any() for each in gradients(model, moved).values())


@pytest.mark.skipif(not buildable("llm_prompt"), reason="needs the extra `text`")
def test_prompts_that_go_through_in_parts_have_no_noise_on_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llm_prompt", MIXED, **PROMPT)
    monkeypatch.setattr(llm_prompt, "TOKENS", 4 * model.longest)
    with pytest.raises(RrecError, match="activations of 32 prompts cannot be shifted at once, .* a smaller batch_size"):
        defended("neftune", model)(Shifted(model), batch_for(model, MIXED))


@pytest.mark.skipif(not buildable("text_tower"), reason="needs the extra `text`")
def test_gaussian_noise_is_on_what_a_frozen_encoder_gave() -> None:
    for user, tables in (("embedding", {"user.weight", "feature_text"}), ("history", {"feature_text"})):
        model = build("text_tower", MIXED, user=user)
        batch = batch_for(model, MIXED)
        noise = defended("gaussian", model, sigma=0.3).noise(Shifted(model), batch)
        assert set(noise) == tables
        ratio = noise["feature_text"].norm() / model.get_buffer("feature_text").norm()
        assert ratio.item() == pytest.approx(0.3, rel=0.15)


def test_gaussian_noise_without_a_part_adds_nothing() -> None:
    model = build("mf")
    objective = defended("gaussian", model, consistency=0.0, noisy=0.0)
    assert objective.added(Shifted(model), batch_for(model)).item() == 0


@pytest.mark.parametrize("name", ["sasrec", "kgat"])  # kgat drops in `encode` alone
def test_rdrop_is_two_passes_and_their_symmetric_divergence(name: str) -> None:
    model, batch = build(name).train(), batch_for(build(name))
    torch.manual_seed(1)
    found = defended("rdrop", model, weight=0.7)(Shifted(model), batch)
    torch.manual_seed(1)
    first, second = Shifted(model)(batch), Shifted(model)(batch)
    value = loss(model.loss)
    expected = 0.5 * (value(first, batch) + value(second, batch)).mean()
    expected = expected + 0.35 * symmetric(first.scores, second.scores)
    torch.testing.assert_close(found, expected)


def test_what_rdrop_adds_has_two_draws_of_what_is_propagated_too() -> None:
    model = build("kgat", dropout=0.5).train()
    assert defended("rdrop", model).added(Shifted(model), batch_for(model)) > 1e-4


def test_rdrop_around_a_defence_adds_the_divergence_to_its_value() -> None:
    model, batch = build("sasrec").train(), batch_for(build("sasrec"))
    inner = defended("awp", model, gamma=0.3)
    objective = defenses.build(configured("defense", "rdrop", weight=0.7), inner, model)
    torch.manual_seed(1)
    found = objective(Shifted(model), batch)
    torch.manual_seed(1)
    first, second = Shifted(model)(batch), Shifted(model)(batch)
    expected = inner(Shifted(model), batch) + 0.35 * symmetric(first.scores, second.scores)
    torch.testing.assert_close(found, expected)


def test_gaussian_is_the_loss_its_divergence_under_noise_and_the_noisy_loss() -> None:
    """Reference: the noise of the docstring drawn again, and two models."""
    model, batch = build("mf"), batch_for(build("mf"))
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(5)  # so that the noise parts the scores by more than the rounding does
    found = defended("gaussian", model, sigma=0.3, consistency=0.7, noisy=0.4)(Shifted(model), batch)
    draw, noise = torch.Generator().manual_seed(0), {}
    for name in ("user.weight", "item.weight"):
        table = model.get_parameter(name).detach()
        scale = 0.3 * table.square().mean(1, keepdim=True).sqrt()
        noise[name] = scale * torch.randn(table.shape, generator=draw)
    here, there = Shifted(model), Shifted(model, noise)
    expected = plain(model)(here, batch) + 0.4 * plain(model)(there, batch)
    expected = expected + 0.7 * symmetric(here(batch).scores, there(batch).scores)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert_gradients(gradients(model, found), gradients(model, expected), rtol=1e-3, atol=1e-6)


def symmetric(one: Tensor, two: Tensor) -> Tensor:
    p, q = (torch.distributions.Categorical(logits=each) for each in (one, two))
    kl = torch.distributions.kl_divergence
    return (kl(p, q) + kl(q, p)).mean()


@pytest.mark.parametrize("name", ["bce", "softmax", "mse"])
def test_the_divergence_of_an_output_from_itself_is_zero_and_it_is_symmetric(name: str) -> None:
    from robustbench_rec.batch import Output

    one, two, users = Output(torch.randn(4, 5)), Output(torch.randn(4, 5)), torch.arange(4)
    batch = Batch(users, torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 5))
    assert not divergence(one, one, batch, loss(name)).any()
    torch.testing.assert_close(divergence(one, two, batch, loss(name)), divergence(two, one, batch, loss(name)))
    assert bool((divergence(one, two, batch, loss(name)) > 0).all())


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("neftune", "mf", "model 'mf' has no embedded tokens or events, which neftune adds noise to; see"),
        ("neftune", "text_tower", "neftune adds noise to: its frozen encoder read the texts once, .*model.lora.rank"),
        ("vat", "ease", "has no embedding surface"),
        ("rdrop", "mf", "model 'mf' has no dropout here"),
        ("gaussian", "deepfm", None),
        ("gaussian", "ease", "has no embedding surface"),
    ],
)
def test_a_model_that_lacks_what_it_needs_is_refused_in_one_line(name: str, model: str, message: str | None) -> None:
    if message is None:
        defended(name, build(model))
        return
    if not buildable(model):
        pytest.skip("needs the extra `text`")
    with pytest.raises(RrecError, match=message) as caught:
        defended(name, build(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "model", "changes"),
    [
        ("gaussian", "mf", {"sigma": -1.0}),
        ("gaussian", "mf", {"noisy": -1.0}),
        ("neftune", "sasrec", {"alpha": -1.0}),
        ("rdrop", "sasrec", {"weight": -1.0}),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(name: str, model: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="negative"):
        defended(name, build(model), **changes)
