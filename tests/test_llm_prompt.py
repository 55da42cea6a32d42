"""Prompts put together as arrays, read by a language model or a classifier, answered yes or no."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA, WORDS, batch_for, build, buildable, configured, gradients, judge, pretrained, question
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_rec.adapters import LoRA
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch, History
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.losses import loss
from robustbench_rec.models import llm_prompt
from robustbench_rec.models.llm_prompt import LLMPrompt, _Asked
from robustbench_rec.objective import Plain
from robustbench_rec.pretrained import texts
from robustbench_rec.shifted import Shifted, surface

pytestmark = pytest.mark.skipif(not buildable("llm_prompt"), reason="needs the extra `text`")

USERS = torch.arange(DATA.n_users)
KINDS = ["causal", "classifier"]
TEMPLATE = "The liked : {history} . Will like {item} ?"
PLAIN = {"rank": 2, "alpha": 4.0, "dropout": 0.0}


def model_of(kind: str = "causal", **changes: Any) -> LLMPrompt:
    model = build("llm_prompt", **{"encoder": pretrained(kind), "template": TEMPLATE, "lora": PLAIN, **changes})
    assert isinstance(model, LLMPrompt)
    return model


def asked(lengths: list[int], width: int, items: Tensor) -> Batch:
    """Histories of these lengths, 0, 1, 2, … in each, padded to `width`."""
    places = torch.arange(width).expand(len(lengths), -1)
    history = places.masked_fill(places >= torch.tensor(lengths)[:, None], DATA.n_items)
    users = torch.arange(len(lengths))
    return Batch.unlabelled(users, items, history=History(history, torch.tensor(lengths)))


def scores(model: LLMPrompt, batch: Batch) -> Tensor:
    with torch.no_grad():
        return Shifted(model.eval())(batch).scores


def fresh(model: nn.Module) -> None:
    """LoRA as it starts."""
    for each in model.modules():
        if isinstance(each, LoRA):
            nn.init.zeros_(each.up)


def one_by_one(kind: str, folder: str, prompts: list[str]) -> Tensor:
    """Every prompt by itself, unpadded, through the model of transformers as it is."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yes, no = (tokenizer(each, add_special_tokens=False)["input_ids"][0] for each in ("yes", "no"))
    found = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            if kind == "causal":
                model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
                logits = model(**tokens).logits[0, -1]
                found.append(logits[yes] - logits[no])
            else:
                model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
                found.append(model(**tokens).logits[0, 0])
    return torch.stack(found)


def as_it_is(kind: str, folder: str) -> tuple[Tensor, Tensor]:
    """Scores of a few prompts, and those of the model of transformers as it is."""
    model, titles = model_of(kind, encoder=folder), texts(DATA, None)
    fresh(model)
    batch = asked([3, 1, 0], 3, torch.tensor([[4, 9], [2, 2], [7, 0]]))
    assert batch.items is not None
    prompts = [
        TEMPLATE.format(history=" , ".join(titles[:length]), item=titles[item])
        for length, row in zip([3, 1, 0], batch.items.tolist(), strict=True)
        for item in row
    ]
    return scores(model, batch), one_by_one(kind, folder, prompts).view(3, 2)


def saved(folder: Path, kind: str, **changes: Any) -> str:
    """A small language model of some kind, "Llama", with the tokenizer of `pretrained("causal")`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained("causal"))
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(
        **shape, vocab_size=len(tokenizer), initializer_range=0.3, **changes
    )
    lm = "LMHeadModel" if kind == "Bert" else "ForCausalLM"
    getattr(transformers, kind + lm)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.25}),
        ("Gemma2", {"final_logit_softcapping": 2.0, "head_dim": 4}),
    ],
    ids=str,
)
def test_logits_are_scaled_and_capped_as_the_config_says(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    found, expected = as_it_is("causal", saved(tmp_path, kind, num_key_value_heads=2, **changes))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_whose_logits_are_something_else_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "Bert", is_decoder=True)  # has a layer between the last state and the words
    with pytest.raises(RrecError, match="the logits of a BertLMHeadModel are not those of its last states"):
        model_of(encoder=folder)


@pytest.mark.parametrize("kind", KINDS)
class TestScores:
    def test_they_are_those_of_the_model_as_it_is_on_every_prompt_by_itself(self, kind: str) -> None:
        folder = pretrained(kind)
        assert folder is not None
        found, expected = as_it_is(kind, folder)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_padding_never_matters(self, kind: str) -> None:
        model, items = model_of(kind), torch.tensor([[4, 9], [2, 2]])
        narrow, wide = (scores(model, asked([2, 1], width, items)) for width in (2, 6))
        torch.testing.assert_close(narrow, wide)
        beside_longer = scores(model, asked([2, 1, 9], 9, torch.cat([items, items[:1]])))[:2]
        torch.testing.assert_close(narrow, beside_longer, rtol=1e-4, atol=1e-5)

    def test_no_candidates_means_the_whole_catalogue(self, kind: str) -> None:
        model = model_of(kind)
        every = torch.arange(DATA.n_items).expand(DATA.n_users, -1)
        torch.testing.assert_close(scores(model, question(model, USERS)), scores(model, question(model, USERS, every)))

    def test_parts_give_what_one_pass_gives_in_value_and_gradient(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = model_of(kind)
        batch = batch_for(model)
        names = [*surface(model, "weight"), *surface(model, "embedding")]
        delta = {name: 0.05 * torch.randn_like(each) for name, each in Shifted(model).tensors(names).items()}
        found = []
        for tokens in (2**15, 3 * model.longest):
            monkeypatch.setattr(llm_prompt, "TOKENS", tokens)
            value = Plain(loss("bce"))(Shifted(model, delta), batch)
            found.append((value, gradients(model, value)))
        (one, whole), (two, parts) = found
        torch.testing.assert_close(one, two)
        for name, each in whole.items():
            torch.testing.assert_close(each, parts[name], rtol=1e-3, atol=1e-6)

    def test_word_embeddings_and_lora_at_another_point_reach_the_scores(self, kind: str) -> None:
        model = model_of(kind)
        batch = asked([2, 1], 2, torch.tensor([[4], [2]]))
        for name in surface(model, "weight") + surface(model, "embedding")[:1]:
            (base,) = Shifted(model).tensors([name]).values()
            with torch.no_grad():
                moved = Shifted(model.eval(), {name: 0.3 * torch.randn_like(base)})(batch).scores
            assert not torch.allclose(moved, scores(model, batch), atol=1e-5), name

    def test_training_never_changes_the_backbone_and_a_checkpoint_does_not_hold_it(self, kind: str) -> None:
        model = model_of(kind)
        before = {name: each.clone() for name, each in model.named_buffers()}
        start = scores(model, question(model, USERS))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            Plain(loss("bce"))(Shifted(model.train()), batch_for(model)).backward()
            optimizer.step()
        assert not torch.equal(scores(model, question(model, USERS)), start)
        after = dict(model.named_buffers())
        assert before.keys() == after.keys()
        assert all(torch.equal(each, after[name]) for name, each in before.items())
        learnt = {name for name, _ in model.named_parameters()}
        assert set(model.state_dict()) == learnt | {"origin._extra_state"}
        heads = {name for name in learnt if not name.endswith((".up", ".down"))}
        assert heads == (
            set() if kind == "causal" else {"reader.model.classifier.weight", "reader.model.classifier.bias"}
        )

    def test_it_learns_what_a_history_tells(self, kind: str) -> None:
        """Whether the candidate is the item that was seen last."""
        model = model_of(kind, lora={**PLAIN, "rank": 8, "alpha": 16.0}, window=3).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        draw = torch.Generator().manual_seed(0)
        for _ in range(60):
            history = torch.randint(5, (32, 1), generator=draw)
            items = torch.cat([history, (history + torch.randint(1, 5, (32, 1), generator=draw)) % 5], 1)
            labels = torch.tensor([[1.0, 0.0]]).expand(32, 2)
            batch = Batch(torch.arange(32), items, labels, history=History(history, torch.ones(32, dtype=torch.long)))
            optimizer.zero_grad()
            value = F.softplus(-(Shifted(model)(batch).scores * (2 * labels - 1))).mean()
            value.backward()
            optimizer.step()
        found = scores(model, batch)
        assert (found[:, 0] > found[:, 1]).float().mean() > 0.8


class TestSurfaces:
    def test_tied_word_embeddings_are_moved_where_they_are_read_out_too(self) -> None:
        model = model_of("causal").eval()
        reader: Any = model.reader
        assert reader.head.weight is reader.backbone.model.wte.weight
        (name,) = [each for each in surface(model, "embedding") if "wte" in each]
        delta = torch.zeros_like(reader.head.weight)
        delta[reader.answers[0]] = torch.randn(delta.shape[1])  # the word yes, which no prompt here has
        batch = asked([2], 2, torch.tensor([[4]]))
        assert not torch.allclose(Shifted(model, {name: delta})(batch).scores, scores(model, batch))

    def test_activations_of_prompts_that_go_through_in_parts_cannot_be_shifted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = model_of().eval()
        batch = asked([2, 1], 2, torch.tensor([[4], [2]]))
        monkeypatch.setattr(llm_prompt, "TOKENS", model.longest)
        name = surface(model, "activation")[-1]
        with pytest.raises(RrecError, match="activations of 2 prompts cannot be .*attack.scope=user"):
            Shifted(model, {name: torch.ones(1)})(batch)

    def test_users_who_are_attacked_one_by_one_suffer_what_they_do_together(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, found = model_of().requires_grad_(False).eval(), []
        judged = judge(protocol="sampled", n_negatives=4)
        for scope in ("all", "user"):
            attack = attacks.build(configured("attack", "fgm", surface="activation", scope=scope, eps=0.1))
            judging = evaluator(DATA, judged, alone=scope == "user")
            moved, _ = judging.attack(Shifted(model), attack, "test", loss("bce"))
            with judging.judged(moved, "test") as scores:
                found.append(torch.cat(list(scores)))
            monkeypatch.setattr(llm_prompt, "TOKENS", 5 * model.longest)
        torch.testing.assert_close(*found)


class TestConfig:
    def test_titles_are_cut_and_the_longest_prompt_is_known(self) -> None:
        model = model_of(title_tokens=2, window=3)
        assert int(model.title_sizes.max()) == 2
        _, lengths = model._prompts(torch.tensor([[0, 1, 2]]), torch.tensor([3]), torch.tensor([5]))
        assert lengths.tolist() == [model.longest]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"template": "Will like {item}?"}, "needs {history} and after it {item}"),
            ({"template": "{item} after {history}"}, "needs {history} and after it {item}"),
            ({"template": "{history} {item} {item}"}, "each once"),
            ({"template": "{history} {item}", "separator": ","}, "a prompt of empty titles would be empty"),
            ({"answers": ["yes", "yes"]}, "different tokens"),
            ({"answers": ["yes"]}, "different tokens"),
            ({"answers": []}, "different tokens"),
            ({"window": 0}, "window=0"),
            ({"window": 60}, "window=60 .* come to .* tokens, .* 256 at most"),
            ({"kind": "encoder"}, "is a BertModel; llm_prompt reads"),
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(RrecError, match=message):
            model_of(**changes)

    def test_without_the_extra_one_line_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        folder = pretrained("causal")
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(RrecError, match=r"pip install 'robustbench_rec\[text\]'"):
            build("llm_prompt", encoder=folder)

    def test_a_llama_works_as_a_gpt_does(self, tmp_path: Path) -> None:
        model = model_of(encoder=saved(tmp_path, "Llama", num_key_value_heads=2))
        assert sum(isinstance(each, LoRA) for each in model.modules()) == 2 * 4
        items = torch.tensor([[4, 9], [2, 2]])
        narrow, wide = (scores(model, asked([2, 1], width, items)) for width in (2, 6))
        torch.testing.assert_close(narrow, wide)
        with torch.autocast("cpu", torch.bfloat16):
            value = Plain(loss("bce"))(Shifted(model), batch_for(model))
        assert all(each.isfinite().all() and each.any() for each in gradients(model, value).values())

    def test_a_tokenizer_may_put_a_space_before_a_text_by_itself(self, tmp_path: Path) -> None:
        import transformers
        from tokenizers import Tokenizer, models, normalizers

        words = ["▁", "▁yes", "▁no", "▁The", *(f"▁{each}" for each in WORDS)]
        pieces = models.Unigram([("<unk>", 0.0), *((each, -1.0) for each in words)], unk_id=0)
        tokenizer = Tokenizer(pieces)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
        shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 1}
        config = transformers.GPT2Config(**shape, vocab_size=len(words) + 1)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
        model = model_of(encoder=str(tmp_path), template="The {history} The {item}")
        assert isinstance(model.reader, _Asked)
        assert [tokenizer.id_to_token(each) for each in model.reader.answers] == ["▁yes", "▁no"]
        assert tokenizer.token_to_id("▁") not in model.titles

    def test_a_classifier_that_answers_at_the_last_token_is_asked_there(self, tmp_path: Path) -> None:
        import transformers

        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
        tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained("causal"))
        tokenizer.save_pretrained(tmp_path)
        config = transformers.GPT2Config(**shape, vocab_size=len(tokenizer), num_labels=2, initializer_range=0.3)
        theirs = transformers.GPT2ForSequenceClassification(config).eval()
        theirs.save_pretrained(tmp_path)
        model = model_of(encoder=str(tmp_path))
        fresh(model)
        batch = asked([3, 1], 5, torch.tensor([[4, 9], [2, 2]]))
        assert batch.history is not None
        found = scores(model, batch)
        for row in range(2):
            items = batch.history.items[row, : batch.history.lengths[row]]
            for column in range(2):
                chosen = batch.items[[row], column : column + 1]  # type: ignore[index]
                (ids,), (length,) = model._prompts(items[None], batch.history.lengths[[row]], chosen[0])
                with torch.no_grad():
                    last = theirs.transformer(ids[None]).last_hidden_state[0, length - 1]
                    no, yes = theirs.score(last)
                torch.testing.assert_close(found[row, column], yes - no)

    def test_titles_that_are_missing_are_empty(self) -> None:
        assert DATA.item_table is not None
        table = DATA.item_table.assign(title=None, genres=None)
        model = build("llm_prompt", replace(DATA, item_table=table), encoder=pretrained("causal"))
        found = scores(model, question(model, USERS))  # type: ignore[arg-type]
        assert torch.allclose(found, found[:, :1].expand_as(found))
