"""Adapters: identity at first, few parameters, a body that stays, and what counts as one."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, build, buildable, configured, gradients, pretrained, question
from torch import Tensor, nn

from robustbench_rec import checkpoint
from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import (
    ADAPTERS,
    Adaptation,
    Bottleneck,
    LoRA,
    LowRank,
    Probe,
    changes,
    digest,
    frozen,
    plain,
    sizes,
)
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.shifted import Shifted, surface
from robustbench_rec.tasks.train import body_digest

NO_LORA = {"rank": 0, "alpha": 4.0, "dropout": 0.0}
TABLES = ("biased_mf", "lightgcn", "mf")  # their body is a table: neither maps nor layers
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in models if models[name].body},
    "deep_gru4rec": ("gru4rec", {"layers": 2}),
    "deep_stosa": ("stosa", {"layers": 2}),
    "short_intents": ("multi_intent_gaussian", {"fusion": "short"}),
    "linear_lstm_text": ("lstm_text", {"layers": []}),
    "concat_kgcn": ("kgcn", {"aggregator": "concat", "layers": 2}),
    "graphsage_kgat": ("kgat", {"aggregator": "graphsage"}),
    "weighted_kgat": ("structure_aware_kgat", {"readout": "weighted"}),
    "llm_prompt": ("llm_prompt", {"lora": NO_LORA}),
    "classifier": ("llm_prompt", {"lora": NO_LORA}),
    "pooled_tower": ("text_tower", {"user": "history"}),
}
SMALL = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "adapter": {"size": 3, "dropout": 0.0}, "head": {}}
ADAPTED = [
    (variant, adaptation)
    for variant, (name, _) in VARIANTS.items()
    if buildable(name)
    for adaptation in SMALL
    if adaptation == "head" or name not in TABLES
]
EVERY = [variant for variant, adaptation in ADAPTED if adaptation == "head"]
USERS = torch.arange(DATA.n_users)


def config_of(variant: str) -> tuple[str, dict[str, Any]]:
    name, changed = VARIANTS[variant]
    return name, {**changed, "encoder": pretrained("classifier")} if variant == "classifier" else changed


def plainly(variant: str) -> RecModel:
    name, changed = config_of(variant)
    return build(name, **changed)


def adapted(variant: str, adaptation: str, **changed: Any) -> RecModel:
    model = plainly(variant)
    config = configured("adaptation", adaptation, **{**SMALL[adaptation], **changed})
    adaptations.build(config)(model, DATA)
    return model


def scores(model: RecModel) -> Tensor:
    with torch.no_grad():
        return Shifted(model.eval())(question(model, USERS)).scores


def steps(model: RecModel, number: int = 3) -> None:
    batch = batch_for(model)
    optimizer = torch.optim.Adam((each for each in model.parameters() if each.requires_grad), lr=0.05)
    for _ in range(number):
        optimizer.zero_grad()
        loss(model.loss)(Shifted(model.train())(batch), batch).mean().backward()
        optimizer.step()
    model.refresh()


def tensors(model: RecModel) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in (*model.named_parameters(), *model.named_buffers())}


def of_body(model: RecModel, name: str) -> bool:
    return name.startswith(tuple(f"{each}." for each in model.body)) or name in model.body


@pytest.mark.parametrize(("variant", "adaptation"), ADAPTED)
class TestContract:
    def test_it_starts_as_the_identity(self, variant: str, adaptation: str) -> None:
        before, after = scores(plainly(variant)), scores(adapted(variant, adaptation))
        assert after.std() > 0
        if "tower" in variant:  # texts are encoded again, in the graph
            torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(before, after)

    def test_it_trains_adapters_and_head_and_leaves_the_body(self, variant: str, adaptation: str) -> None:
        whole, model = plainly(variant), adapted(variant, adaptation)
        start, before, hashed = scores(model), tensors(model), digest(model)
        if "tower" not in variant:
            assert hashed == digest(whole)
        steps(model)
        after = tensors(model)
        moved = {name for name, each in before.items() if not torch.equal(each, after[name])}
        learnt = {name for name, each in model.named_parameters() if each.requires_grad}
        derived = {"attention"}  # by `refresh`
        assert moved - derived <= learnt
        added = {
            f"{owner}.{name}"
            for owner, one in model.named_modules()
            if isinstance(one, ADAPTERS)
            for name, _ in one.named_parameters()
            if not name.startswith("base.")
        }
        outside = {name for name, _ in whole.named_parameters() if not of_body(whole, name)}
        if variant == "classifier":
            outside = {"reader.model.classifier.weight", "reader.model.classifier.bias"}
        assert learnt == added | outside
        assert added or adaptation == "head"
        assert added <= moved
        assert frozen(model)
        assert digest(model) == hashed == body_digest(model)
        assert not torch.equal(start, scores(model))

    def test_who_starts_from_it_without_it_has_its_scores_or_is_told_why_not(
        self, variant: str, adaptation: str
    ) -> None:
        whole, model = plainly(variant), adapted(variant, adaptation)
        steps(model)
        there: Any = SimpleNamespace(model=model)
        if any(isinstance(each, (Bottleneck, Probe)) for each in model.modules()):
            with pytest.raises(RrecError, match="a layer behind it that this model has not: take the same adaptation"):
                checkpoint.start(whole, there, "run")
        elif adaptation == "lora" and VARIANTS[variant][0] in ("llm_prompt", "text_tower"):
            with pytest.raises(RrecError, match="has low-rank maps that this model has not: take the same adaptation"):
                checkpoint.start(whole, there, "run")
        else:
            checkpoint.start(whole, there, "run")
            torch.testing.assert_close(scores(whole), scores(model), rtol=1e-4, atol=1e-5)
        again = adapted(variant, adaptation)
        checkpoint.start(again, there, "run")
        assert torch.equal(scores(again), scores(model))

    def test_the_trained_share_is_that_of_what_learns(self, variant: str, adaptation: str) -> None:
        whole, model = plainly(variant), adapted(variant, adaptation)
        trained, total = sizes(model)
        assert 0 < trained < total
        assert trained == sum(each.numel() for each in model.parameters() if each.requires_grad)
        had = {name for name, _ in whole.named_parameters()}
        new = sum(each.numel() for name, each in model.named_parameters() if plain(name) not in had)
        assert total == pytest.approx(weights(whole) + new, abs=0)

    def test_a_checkpoint_says_the_same_and_has_the_names_of_before(self, variant: str, adaptation: str) -> None:
        model = adapted(variant, adaptation)
        steps(model, 1)
        name, changed = config_of(variant)
        asked = configured("adaptation", adaptation, **SMALL[adaptation])
        torch.manual_seed(5)
        other = checkpoint.build({**configured("model", name, **changed), "adaptation": asked}, DATA)
        other.fit(DATA)
        state = model.state_dict()
        other.load_state_dict(state)
        other.refresh()
        assert torch.equal(scores(model), scores(other))
        assert set(plainly(variant).state_dict()) <= {plain(each) for each in state}

    def test_every_matrix_at_another_point_reaches_the_scores(self, variant: str, adaptation: str) -> None:
        model = adapted(variant, adaptation)
        steps(model, 1)  # from where half of an adapter is zero
        batch = batch_for(model)
        apart = {"projection", "relation.weight"} if models["kgat"] is type(model) else set()  # read by `refresh` alone
        before = Shifted(model.eval())(batch).scores
        for name in set(surface(model, "weight")) - apart:
            (base,) = Shifted(model).tensors([name]).values()
            moved = Shifted(model, {name: 0.3 * torch.randn_like(base)})(batch).scores
            assert not torch.equal(moved, before), name
        assert torch.equal(Shifted(model.twin())(batch).scores, before)

    def test_bf16_goes_through(self, variant: str, adaptation: str) -> None:
        model = adapted(variant, adaptation)
        batch = batch_for(model)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model.loss)(Shifted(model)(batch), batch).mean()
        assert all(each.isfinite().all() for each in gradients(model, value).values())


def weights(model: RecModel) -> int:
    """Numbers of a model, with those of a pretrained one as its library counts them."""
    own = sum(each.numel() for each in model.parameters())
    if not hasattr(model, "origin"):
        return own
    import transformers

    folder = model.config.encoder  # type: ignore[union-attr]
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    library = getattr(transformers, kind).from_pretrained(folder)
    stored = {each.data_ptr() for each in model.parameters()}
    assert stored.isdisjoint(each.data_ptr() for each in library.parameters())
    head = 0 if "Classification" not in kind else sum(each.numel() for each in library.classifier.parameters())
    return own + sum(each.numel() for each in library.parameters()) - head


@pytest.mark.parametrize("variant", EVERY)
def test_the_hash_of_a_body_sees_every_number_that_changes(variant: str) -> None:
    model = adapted(variant, "head")
    names = [name for name, each in tensors(model).items() if not name.endswith("shift") and each.is_floating_point()]
    learnt = {name for name, each in model.named_parameters() if each.requires_grad}
    held = {name for name in names if of_body(model, name) or name in model.given} - learnt
    if hasattr(model, "reader"):
        held |= {name for name in names if name.startswith("reader.")} - learnt
    before = digest(model)
    assert held
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in held:
        with torch.no_grad():
            kept = everything[name].flatten()[-1].clone()
            everything[name].view(-1)[-1] += 1
            assert digest(model) != before, name
            everything[name].view(-1)[-1] = kept
    assert digest(model) == before


@pytest.mark.parametrize("variant", ["llm_prompt", "classifier", "text_tower"])
def test_what_comes_pretrained_is_frozen_without_an_adaptation(variant: str) -> None:
    name, changed = config_of(variant)
    if not buildable(name):
        pytest.skip("needs the extra text")
    for rank in (0, 2):
        model = build(name, **{**changed, "lora": {**NO_LORA, "rank": rank}})
        assert frozen(model)
        trained, total = sizes(model)
        assert trained < total
        before = body_digest(model)
        assert before is not None
        if model.trainable:
            steps(model)
        assert body_digest(model) == before


def test_an_output_layer_with_weights_of_its_own_is_part_of_the_body(tmp_path: Path) -> None:
    if not buildable("llm_prompt"):
        pytest.skip("needs the extra text")
    import transformers

    folder = str(tmp_path / "untied")
    shutil.copytree(str(pretrained("causal")), folder)
    shape = transformers.AutoConfig.from_pretrained(folder)
    shape.tie_word_embeddings = False
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    model, tied = build("llm_prompt", encoder=folder), build("llm_prompt")
    before, head = digest(model), model.get_buffer("reader.head.weight")
    assert sizes(model)[1] == sizes(tied)[1] + head.numel()
    head[0, 0] += 1
    assert digest(model) != before


@pytest.mark.parametrize("name", ["text_tower", "llm_prompt"])
def test_lora_of_a_model_and_of_an_adaptation_is_the_same(name: str) -> None:
    if not buildable(name):
        pytest.skip("needs the extra text")
    one = build(name, lora={"rank": 2, "alpha": 4, "dropout": 0.0})
    two = build(name, lora=NO_LORA)
    adaptations.build(configured("adaptation", "lora", rank=2, alpha=4, dropout=0.0))(two, DATA)
    assert {key: each.shape for key, each in one.state_dict().items()} == {
        key: each.shape for key, each in two.state_dict().items()
    }
    two.load_state_dict(one.state_dict())
    assert torch.equal(scores(one), scores(two))
    assert sizes(one) == sizes(two)


@pytest.mark.parametrize("name", ["gru4rec", "lstm_text", "kgcn"])
def test_a_matrix_that_a_layer_reads_itself_is_adapted_as_a_map(name: str) -> None:
    """Scores of W with B A beside it are those of a plain model with W + α/r · B A."""
    model = adapted(name, "lora", rank=2, alpha=6)
    found = [
        (key, each) for key, each in model.named_modules() if isinstance(each, LowRank) and ".parametrizations." in key
    ]
    whole = build(name)
    state = {plain(key): each for key, each in model.state_dict().items()}
    for key, each in found:
        nn.init.normal_(each.up)
        at = plain(key.rpartition(".")[0] + ".original")
        state[at] = state[at] + 3 * each.up.detach() @ each.down.detach()
    whole.load_state_dict({key: each for key, each in state.items() if key in whole.state_dict()})
    assert found
    assert not torch.equal(scores(model), scores(build(name)))
    torch.testing.assert_close(scores(model), scores(whole))


def test_the_weight_of_an_adapted_map_is_what_it_computes() -> None:
    lora, x = LoRA(nn.Linear(5, 4), Adaptation(rank=2, alpha=6, dropout=0)), torch.randn(3, 5)
    nn.init.normal_(lora.up)
    torch.testing.assert_close(nn.functional.linear(x, lora.weight, lora.bias), lora(x))


def test_dropout_of_a_recurrent_matrix_drops_numbers_of_its_input() -> None:
    weight = torch.zeros(4, 50)
    adapter = LowRank(weight, Adaptation(rank=2, alpha=2, dropout=0.5))
    nn.init.normal_(adapter.up)
    whole, found = adapter.eval()(weight), adapter.train()(weight)
    kept = found.abs().sum(0) > 0
    assert 5 < kept.sum() < 45
    torch.testing.assert_close(found[:, kept], 2 * whole[:, kept])


def test_a_model_that_is_trained_as_a_whole_has_no_frozen_body() -> None:
    assert not frozen(build("sasrec"))
    assert not frozen(build("kgat"))
    assert not frozen(build("pop"))


def test_the_body_has_no_dropout_and_adapters_have_theirs() -> None:
    model = adapted("sasrec", "lora", dropout=0.3).train()
    found = {each.dropout.p for each in model.modules() if isinstance(each, LoRA)}
    assert found == {0.3}
    assert model.get_submodule("blocks.0").dropout.p == 0.0


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_nothing_random_is_left_in_front_of_a_head(name: str) -> None:
    model = build(name, dropout=0.5)
    adaptations.build(configured("adaptation", "head"))(model, DATA)
    at, batch = Shifted(model.train()), question(model, USERS)
    assert torch.equal(at(batch).scores, at(batch).scores)


def test_the_size_of_a_change_is_that_of_the_product() -> None:
    lora = LoRA(nn.Linear(5, 4), Adaptation(rank=2, alpha=6, dropout=0))
    bottleneck = Bottleneck(nn.Identity(), 5, 3, 0.0)
    nn.init.normal_(lora.up)
    nn.init.normal_(bottleneck.up.weight)
    probe = Probe(nn.Identity(), 5)
    nn.init.normal_(probe.map.weight)
    model = nn.ModuleList([lora, bottleneck, probe])
    expected = [
        (3 * lora.up @ lora.down).square().sum(),
        (bottleneck.up.weight @ bottleneck.down.weight).square().sum(),
        probe.map.weight.square().sum(),
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
    with pytest.raises(RrecError, match=r"has LoRA already: model\.lora\.rank=0, or adaptation=head"):
        adaptations.build(configured("adaptation", "lora"))(model, DATA)
