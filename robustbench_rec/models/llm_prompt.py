from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.models import models
from robustbench_rec.pretrained import (
    Adaptation,
    Backbone,
    Origin,
    Pretrained,
    adapt,
    freeze,
    recomputed,
    settle,
    texts,
)
from robustbench_rec.shifted import Site

TOKENS = 2**15  # of prompts that are read at once
CAUSAL = ("ForCausalLM", "LMHeadModel")
CLASSIFIER = "ForSequenceClassification"


@models.register
class LLMPrompt(RecModel):
    """A language model answers yes or no to history and candidate in a prompt (Bao et al., RecSys 2023: TALLRec).

    encoder: a folder or a name on the Hugging Face hub, of which safetensors alone are read; a causal language model,
    whose score is logit(yes) − logit(no) of the next token, or a sequence classifier with one logit or with two, no and
    yes. columns: of the item table that make a title, null for all that hold text. template: the prompt, with {history}
    and then {item}. window: latest items in it. title_tokens: of a title, the rest is cut off. separator: between
    titles. answers: yes and no, of each the first token counts. lora: on the attention projections; the head of a
    classifier is trained too, nothing else is.

    The pieces of a prompt become tokens once, one by one, and are put together as arrays; so a title begins a token of
    its own, whatever stands before it. Every candidate is a prompt, so a full ranking reads n_items prompts a user:
    protocol=sampled is meant for all but small catalogues. Prompts beyond 32,768 tokens go through in parts, whose
    activations cannot be shifted. [R] The loss is on the two answers only, not on the whole vocabulary as in TALLRec.
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

    runs: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__()
        if min(config.window, config.title_tokens) < 1:
            raise RrecError(
                f"llm_prompt with window={config.window}, title_tokens={config.title_tokens}: both are at least 1"
            )
        self.window, self.n_items = config.window, data.n_items
        pretrained = Pretrained.find(config.encoder)
        tokenizer = pretrained.tokenizer()
        self._cut(config, pretrained, tokenizer, data)
        self.origin = Origin(pretrained)
        self.reader = self._reader(config, pretrained, tokenizer)

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        history = batch.history
        assert history is not None
        width = self.n_items if batch.items is None else batch.items.shape[1]
        prompts = len(batch) * width
        size = max(1, TOKENS // self.longest)
        if prompts > size and any(each.shift.ndim for each in self.modules() if isinstance(each, Site)):
            raise RrecError(
                f"the activations of {prompts:,} prompts cannot be shifted at once, those of {size:,} can: "
                "ask for fewer candidates, or attack another surface"
            )
        scores = []
        for part in torch.arange(prompts, device=history.items.device).split(size):
            row, column = part // width, part % width
            items = column if batch.items is None else batch.items[row, column]
            ids, lengths = self._prompts(history.items[row], history.lengths[row], items)
            scores.append(recomputed(self.reader, ids, lengths) if prompts > size else self.reader(ids, lengths))
        return Output(torch.cat(scores).view(len(batch), width))

    def _reader(self, config: Config, pretrained: Pretrained, tokenizer: Any) -> nn.Module:
        settings, device = pretrained.settings(), self.runs.device
        kind = next(iter(settings.architectures or ()), "of an unknown kind")
        settings.use_cache = False
        if kind.endswith(CLASSIFIER):
            if settings.num_labels not in (1, 2):
                raise RrecError(f"model.encoder={config.encoder} has {settings.num_labels} labels; 1, or 2 (no, yes)")
            settings.pad_token_id = self.padding
            model = pretrained.model("AutoModelForSequenceClassification", device, settings)
            return _Classified(model, config.lora, config.encoder)
        if not kind.endswith(CAUSAL):
            raise RrecError(
                f"model.encoder={config.encoder} is a {kind}; llm_prompt reads causal language models (…ForCausalLM) "
                f"and classifiers (…{CLASSIFIER})"
            )
        first = [tokenizer(f" {each}", add_special_tokens=False)["input_ids"][:1] for each in config.answers]
        if len(first) != 2 or not all(first) or first[0] == first[1]:
            raise RrecError(
                f"model.answers={config.answers}: two that begin with different tokens are needed, yes and no"
            )
        model = pretrained.model("AutoModelForCausalLM", device, settings)
        return _Asked(model, (first[0][0], first[1][0]), config.lora, config.encoder)

    def _cut(self, config: Config, pretrained: Pretrained, tokenizer: Any, data: Data) -> None:
        """Tokens of all that prompts are made of: titles, nothing, and the parts of the template."""
        before, there, rest = config.template.partition("{history}")
        middle, too, after = rest.partition("{item}")
        if not (there and too) or "{history}" in rest or "{item}" in before + after:
            raise RrecError("model.template needs {history} and after it {item}, each once")
        begin, end = _special(tokenizer)

        def cut(pieces: list[str]) -> list[list[int]]:
            found: list[list[int]] = tokenizer(pieces, add_special_tokens=False)["input_ids"]
            return found

        titles = [f" {each}" if each else "" for each in texts(data, config.columns)]
        head, joint, bridge, tail = (
            cut([each])[0] if each else []
            for each in (before.rstrip(), config.separator.rstrip(), middle.rstrip(), after)
        )
        runs = [each[: config.title_tokens] for each in cut(titles)]
        runs += [[], [*begin, *head], joint, bridge, [*tail, *end]]
        device = data.train.users.device
        sizes = torch.tensor([len(each) for each in runs], device=device)
        flat = torch.tensor([*chain.from_iterable(runs)], device=device)
        used = set(flat.tolist())  # by another padding a classifier finds the last token
        self.padding = next((each for each in range(len(tokenizer)) if each not in used), 0)
        self.register_buffer("runs", flat, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", sizes.cumsum(0) - sizes, persistent=False)
        title = int(sizes[: self.n_items].max())
        fixed = int(sizes[self.n_items :].sum()) - len(joint)
        self.longest = fixed + title * (config.window + 1) + len(joint) * (config.window - 1)
        told = f"model.window={config.window} titles of up to model.title_tokens={config.title_tokens} tokens"
        pretrained.check_length(self.longest, told)

    def _prompts(self, history: Tensor, lengths: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[P, T]`, padded on the right, and lengths of the prompts of P histories and items."""
        nothing, head, joint, bridge, tail = range(self.n_items, self.n_items + 5)
        number, window = history.shape
        pieces = history.new_full((number, 2 * window + 3), nothing)  # head, title, joint, title, …, bridge, item, tail
        pieces[:, 0], pieces[:, -3], pieces[:, -2], pieces[:, -1] = head, bridge, items, tail
        pieces[:, 1:-3:2] = history  # padding is the item that says nothing
        between = torch.arange(1, window, device=history.device) < lengths[:, None]
        pieces[:, 2:-3:2] = torch.where(between, joint, nothing)
        sizes = self.sizes[pieces]
        ends = sizes.cumsum(1)
        total = ends[:, -1]
        at = torch.arange(int(total.max()), device=history.device).expand(number, -1).contiguous()  # [P, T]
        piece = torch.searchsorted(ends, at, right=True).clamp_max(pieces.shape[1] - 1)
        origin = self.starts[pieces] - (ends - sizes)
        tokens = self.runs[(origin.gather(1, piece) + at).clamp_max(len(self.runs) - 1)]
        return tokens.masked_fill(at >= total[:, None], self.padding), total


class _Asked(nn.Module):
    """How much more a causal language model expects yes than no as the next token."""

    def __init__(self, model: Any, answers: tuple[int, int], lora: Adaptation, name: str) -> None:
        super().__init__()
        freeze(model)  # as one, so that tied weights stay tied
        self.backbone, self.head = Backbone(model.base_model, lora, name), model.get_output_embeddings()
        self.answers = answers
        self.last = Site()

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        states = self.backbone(ids, real)  # [P, T, H]
        last = self.last(states[torch.arange(len(ids), device=ids.device), lengths - 1])
        yes, no = self.answers
        score: Tensor = last @ (self.head.weight[yes] - self.head.weight[no])
        return score if self.head.bias is None else score + self.head.bias[yes] - self.head.bias[no]


class _Classified(nn.Module):
    """The logit of a sequence classifier, or by how much that of yes is above that of no."""

    def __init__(self, model: Any, lora: Adaptation, name: str) -> None:
        super().__init__()
        adapt(model.base_model, lora, name)
        self.model = model

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits: Tensor = self.model(input_ids=ids, attention_mask=real.long()).logits  # [P, 1 or 2]
        return logits[:, -1] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def train(self, mode: bool = True) -> "_Classified":
        super().train(mode)
        settle(self.model.base_model, mode)
        return self


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that stand before and after every text."""
    bare, dressed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    before = next(place for place in range(len(dressed)) if dressed[place : place + len(bare)] == bare)
    return dressed[:before], dressed[before + len(bare) :]
