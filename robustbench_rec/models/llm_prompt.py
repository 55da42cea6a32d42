from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.adapters import Adaptation, add_low_rank
from robustbench_rec.batch import Batch, Output, filled
from robustbench_rec.blocks import Backbone, freeze, hold, projections, recomputed, settle, widths
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models
from robustbench_rec.pretrained import Origin, Pretrained, joined, texts
from robustbench_rec.reader import Reader
from robustbench_rec.shifted import Site

if TYPE_CHECKING:
    import pandas as pd

TOKENS = 2**15  # of prompts that are read at once
CAUSAL = ("ForCausalLM", "LMHeadModel")
CLASSIFIER = "ForSequenceClassification"


@models.register
class LLMPrompt(RecModel):
    """A language model answers yes or no to history and candidate in a prompt (Bao et al., RecSys 2023: TALLRec).

    encoder: a folder or a name on the Hugging Face hub, of which safetensors alone are read; a causal language model,
    whose score is logit(yes) − logit(no) of the next token, scaled and capped as its config says, or a sequence
    classifier with one logit or with two, no and yes. columns: of the item table that make a title, null for all that
    hold text. template: the prompt, with {history} and then {item}. window: latest items in it. title_tokens: of a
    title, the rest is cut off. separator: between titles. answers: yes and no, of each the first token counts. lora: on
    the attention projections; the head of a classifier is trained too, nothing else is.

    The pieces of a prompt become tokens once, one by one, and are put together as arrays; so a title begins a token of
    its own, whatever stands before it. Every candidate is a prompt, so a full ranking reads n_items prompts a user:
    protocol=sampled is meant for all but small catalogues. Prompts beyond 32,768 tokens go through in parts, whose
    activations cannot be shifted; those of one user at a time can (attack.scope=user). [R] The loss is on the two
    answers only, not on the whole vocabulary as in TALLRec.
    """

    @dataclass
    class Config:
        encoder: str
        columns: list[str] | None
        template: str
        separator: str
        answers: list[str]
        window: int
        title_tokens: int
        lora: Adaptation

    needs: ClassVar[frozenset[str]] = frozenset({"order", "text"})
    loss: ClassVar[str] = "bce"
    negatives: ClassVar[int] = 1
    body: ClassVar[tuple[str, ...]] = ("reader.backbone", "reader.head")

    titles: Tensor
    title_sizes: Tensor
    fixed: Tensor
    fixed_sizes: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if min(config.window, config.title_tokens) < 1:
            raise RrecError(
                f"llm_prompt with window={config.window}, title_tokens={config.title_tokens}: both are at least 1"
            )
        config.lora.check("model.lora", 0)
        self.config, self.window, self.n_items = config, config.window, data.n_items
        pretrained = Pretrained.find(config.encoder)
        tokenizer = pretrained.tokenizer()
        self._cut(config, pretrained, tokenizer, data)
        self.origin = Origin(pretrained)
        self.reader = self._reader(config, pretrained, tokenizer)
        self.projections = projections(self.reader, "reader")
        self.widths = widths(self.reader, "reader", self.reader.width)
        if isinstance(self.reader, _Asked):
            self.ends = {"reader.last": self.reader.width}
        if config.lora.rank:
            add_low_rank(self, self.projections, config.lora)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        width = self.n_items if batch.items is None else batch.items.shape[1]
        prompts = len(batch) * width
        size = max(1, TOKENS // self.longest)
        if prompts > size and not all(each.idle for each in self.modules() if isinstance(each, Site)):
            raise RrecError(
                f"the activations of {prompts:,} prompts cannot be shifted at once, those of {size:,} can: "
                "ask for fewer candidates, train with a smaller batch_size, or attack each user by itself "
                "(attack.scope=user) or another surface"
            )
        scores = []
        for part in torch.arange(prompts, device=batch.users.device).split(size):
            ids, lengths = self._prompts(*self._asked(batch, part, width))
            scores.append(recomputed(self.reader, ids, lengths) if prompts > size else self.reader(ids, lengths))
        return Output(torch.cat(scores).view(len(batch), width))

    def read_lengths(self, batch: Batch, encoded: Encoded) -> Tensor:
        width = self.n_items if batch.items is None else batch.items.shape[1]
        every = torch.arange(len(batch) * width, device=batch.users.device)
        return self._prompts(*self._asked(batch, every, width))[1]

    def text_reader(self, data: Data) -> Reader:
        """Of the tokens of titles; what a tokenizer makes of words is nothing that an attack knows."""
        return _Titles(self, data)

    def _reader(self, config: Config, pretrained: Pretrained, tokenizer: Any) -> "_Asked | _Classified":
        settings, device = pretrained.settings(), self.titles.device
        kind = next(iter(settings.architectures or ()), "of an unknown kind")
        if kind.endswith(CLASSIFIER):
            if settings.num_labels not in (1, 2):
                raise RrecError(f"model.encoder={config.encoder} has {settings.num_labels} labels; 1, or 2 (no, yes)")
            settings.pad_token_id = self.padding
            model = pretrained.model("AutoModelForSequenceClassification", device, settings)
            return _Classified(model, config.encoder)
        if not kind.endswith(CAUSAL):
            raise RrecError(
                f"model.encoder={config.encoder} is a {kind}; llm_prompt reads causal language models (…ForCausalLM) "
                f"and classifiers (…{CLASSIFIER})"
            )
        space = _space(tokenizer)
        words = [f"{space}{each}" for each in config.answers]
        first = [each[:1] for each in _cut(words, tokenizer)] if words else []
        if len(first) != 2 or not all(first) or first[0] == first[1]:
            raise RrecError(
                f"model.answers={config.answers}: two that begin with different tokens are needed, yes and no"
            )
        model = pretrained.model("AutoModelForCausalLM", device, settings)
        return _Asked(model, (first[0][0], first[1][0]), config.encoder)

    def _cut(self, config: Config, pretrained: Pretrained, tokenizer: Any, data: Data) -> None:
        """Tokens of all that prompts are made of: titles, nothing, and the parts of the template."""
        before, there, rest = config.template.partition("{history}")
        middle, too, after = rest.partition("{item}")
        if not (there and too) or "{history}" in rest or "{item}" in before + after:
            raise RrecError("model.template needs {history} and after it {item}, each once")
        begin, end = _special(tokenizer)

        head, joint, bridge, tail = (
            _cut([each], tokenizer)[0] if each else []
            for each in (before.rstrip(), config.separator.rstrip(), middle.rstrip(), after)
        )
        fixed = [[], [*begin, *head], joint, bridge, [*tail, *end]]
        device = data.train.users.device
        if not [*begin, *head, *bridge, *tail, *end]:
            raise RrecError(
                f"model.template={config.template!r}: model.encoder={config.encoder} adds nothing to it: a prompt of "
                "empty titles would be empty; put a word into it"
            )
        flat = torch.tensor([*chain.from_iterable(fixed)], dtype=torch.long, device=device)
        titles, sizes = self._titles(texts(data, config.columns), tokenizer)
        used = set(flat.tolist()) | set(
            titles.unique().tolist()
        )  # by another padding a classifier finds the last token
        self.padding = next((each for each in range(len(tokenizer)) if each not in used), 0)
        self.register_buffer("titles", titles.to(device), persistent=False)
        self.register_buffer("title_sizes", sizes.to(device), persistent=False)
        self.register_buffer("fixed", flat, persistent=False)
        self.register_buffer(
            "fixed_sizes", torch.tensor([len(each) for each in fixed], device=device), persistent=False
        )
        self.longest = self._longest(sizes)
        self._check(pretrained, self.longest)

    def _titles(self, lines: list[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
        """Tokens of titles `[n, title_tokens]`, 0 where one has ended, and how many each has."""
        space = _space(tokenizer)
        found = _cut([f"{space}{each}" if each else "" for each in lines], tokenizer)
        found = [each[: self.config.title_tokens] for each in found]
        padded = [[*each, *[0] * (self.config.title_tokens - len(each))] for each in found]
        return torch.tensor(padded), torch.tensor([len(each) for each in found])

    def _longest(self, sizes: Tensor) -> int:
        """Tokens of the longest prompt of titles of these sizes."""
        joint = int(self.fixed_sizes[2])
        fixed = int(self.fixed_sizes.sum()) - joint
        return fixed + int(sizes.max()) * (self.window + 1) + joint * (self.window - 1)

    def _check(self, pretrained: Pretrained, longest: int) -> None:
        told = f"model.window={self.window} titles of up to model.title_tokens={self.config.title_tokens} tokens"
        pretrained.check_length(longest, told)

    def _asked(self, batch: Batch, part: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Histories, their lengths and items of prompts `[P]`, of which every example has `width`."""
        assert batch.history is not None
        row, column = part // width, part % width
        items = column if batch.items is None else batch.items[row, column]
        return batch.history.items[row], batch.history.lengths[row], items

    def _prompts(self, history: Tensor, lengths: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[P, T]`, padded on the right, and lengths of the prompts of P histories and items."""
        nothing, head, joint, bridge, tail = range(self.n_items, self.n_items + 5)
        number, window = history.shape
        pieces = history.new_full((number, 2 * window + 3), nothing)  # head, title, joint, title, …, bridge, item, tail
        pieces[:, 0], pieces[:, -3], pieces[:, -2], pieces[:, -1] = head, bridge, items, tail
        pieces[:, 1:-3:2] = history  # padding is the item that says nothing
        between = torch.arange(1, window, device=history.device) < lengths[:, None]
        pieces[:, 2:-3:2] = torch.where(between, joint, nothing)
        runs = torch.cat([self.titles.flatten(), self.fixed])
        starts = torch.cat(
            [
                torch.arange(self.n_items, device=runs.device) * self.titles.shape[1],
                self.titles.numel() + self.fixed_sizes.cumsum(0) - self.fixed_sizes,
            ]
        )
        sizes = torch.cat([self.title_sizes, self.fixed_sizes])[pieces]
        ends = sizes.cumsum(1)
        total = ends[:, -1]
        at = torch.arange(int(total.max()), device=history.device).expand(number, -1).contiguous()  # [P, T]
        piece = torch.searchsorted(ends, at, right=True).clamp_max(pieces.shape[1] - 1)
        origin = starts[pieces] - (ends - sizes)
        tokens = runs[(origin.gather(1, piece) + at).clamp_max(len(runs) - 1)]
        return tokens.masked_fill(at >= total[:, None], self.padding), total


class _Asked(nn.Module):
    """How much more a causal language model expects yes than no as the next token.

    RrecError where its logits are something else than a map of the last state, scaled and capped as its config says.
    """

    def __init__(self, model: Any, answers: tuple[int, int], name: str) -> None:
        super().__init__()
        probe, settings = torch.tensor([answers], device=model.device), model.config
        with torch.no_grad():
            yes, no = model(input_ids=probe).logits[0, -1, list(answers)].tolist()
        freeze(model)  # as one, so that tied weights stay tied
        self.backbone, self.head = Backbone(model.base_model, name), model.get_output_embeddings()
        self.answers, self.width = answers, model.config.hidden_size
        self.last = Site()
        self.scale = getattr(model, "logit_scale", 1.0) / getattr(settings, "logits_scaling", 1.0)  # Cohere; Granite
        self.cap: float | None = getattr(settings, "final_logit_softcapping", None)  # Gemma
        with torch.no_grad():
            found = self(probe, torch.tensor([2], device=probe.device)).item()
        if abs(found - (yes - no)) > 1e-3 * max(abs(yes), abs(no)):
            raise RrecError(
                f"model.encoder={name}: the logits of a {type(model).__name__} are not those of its last states as "
                "llm_prompt reads them; take another kind of language model"
            )

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        real = filled(lengths, ids.shape[1])
        states = self.backbone(ids, real)  # [P, T, H]
        last = self.last(states[torch.arange(len(ids), device=ids.device), lengths - 1])
        weight, bias, (yes, no) = self.head.weight, self.head.bias, self.answers
        score: Tensor = last @ (weight[yes] - weight[no])
        if bias is not None:
            score = score + bias[yes] - bias[no]
        score = score * self.scale
        if self.cap is None:
            return score
        both = F.linear(last, weight[[yes, no]], None if bias is None else bias[[yes, no]]) * self.scale  # [P, 2]
        # tanh a − tanh b = tanh(a − b) · (1 − tanh a · tanh b), which rounding does not take from the difference
        return self.cap * (score / self.cap).tanh() * (1 - (both / self.cap).tanh().prod(1))


class _Classified(nn.Module):
    """The logit of a sequence classifier, or by how much that of yes is above that of no."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        hold(model.base_model, name)
        self.model, self.width = model, model.config.hidden_size

    @property
    def backbone(self) -> nn.Module:
        """What is frozen; the classifier is not."""
        found: nn.Module = self.model.base_model
        return found

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        real = filled(lengths, ids.shape[1])
        logits: Tensor = self.model(input_ids=ids, attention_mask=real.long()).logits  # [P, 1 or 2]
        return logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def train(self, mode: bool = True) -> "_Classified":
        super().train(mode)
        settle(self.backbone, mode)
        return self


class _Titles(Reader):
    """Tokens of titles; RrecError where prompts with them are longer than the model reads."""

    def __init__(self, model: LLMPrompt, data: Data) -> None:
        self.model, self.tokenizer = model, model.origin.pretrained.tokenizer()
        self.columns = tuple(data.text_columns if model.config.columns is None else model.config.columns)

    def joined(self, table: "pd.DataFrame") -> list[str]:
        return joined(table, self.columns)

    def read(self, table: "pd.DataFrame", added: Tensor | None = None) -> dict[str, Tensor]:
        titles, sizes = self.model._titles(self.joined(table), self.tokenizer)
        self.model._check(self.model.origin.pretrained, self.model._longest(sizes))
        return {"titles": titles, "title_sizes": sizes}


def _cut(pieces: list[str], tokenizer: Any) -> list[list[int]]:
    found: list[list[int]] = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    return found


def _space(tokenizer: Any) -> str:
    """What stands before a word within a text: nothing where the tokenizer itself puts a space there."""
    alone, spaced = _cut(["a", " a"], tokenizer)
    return " " if len(spaced) == len(alone) else ""


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that stand before and after every text."""
    bare, dressed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    before = next(place for place in range(len(dressed)) if dressed[place : place + len(bare)] == bare)
    return dressed[:before], dressed[before + len(bare) :]
