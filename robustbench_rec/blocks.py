"""Frozen transformers as maps from tokens to states: blocks with sites, that take any number of texts in pieces."""

from inspect import BoundArguments, signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from robustbench_rec.adapters import ADAPTERS
from robustbench_rec.errors import RrecError
from robustbench_rec.shifted import Embedded, Site

BY_ROW = frozenset(
    {"alibi", "attention_mask", "band_mask", "blocked_encoder_mask", "from_mask", "is_index_global_attn"}
    | {"is_index_masked", "lang_ids", "mamba_attention_mask", "per_layer_input", "position_bias"}
    | {"position_embeddings", "position_ids", "relative_pos", "to_mask"}
)
"""What blocks read beside the states that has a row for each text, or one for all of them."""
SHARED = frozenset({"cache_position", "rel_embeddings"})
"""What blocks read that is for all texts, whatever its size."""
TOKENS = 2**12
"""Tokens that go through a block at once."""


class Block(nn.Module):
    """A transformer block with sites, that takes any number of rows in pieces of `TOKENS`.

    The inner states of pieces are computed again in the backward pass, so that memory grows with what passes between
    blocks only. entry: a site before the block too, for what comes out of the embeddings.
    """

    def __init__(self, layer: nn.Module, *, entry: bool) -> None:
        super().__init__()
        self.layer, self.site = layer, Site(places=True)
        self.entry = Embedded() if entry else None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)  # what transformers asks its blocks

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.entry is not None:
            hidden = self.entry(hidden)
        rows, size = len(hidden), max(1, TOKENS // hidden.shape[1])
        if rows <= size:
            found = self.layer(hidden, *args, **kwargs)
            return self.site(found) if isinstance(found, Tensor) else (self.site(found[0]), *found[1:])
        call, pieces, bare = signature(self.layer.forward).bind(hidden, *args, **kwargs), [], True
        for start in range(0, rows, size):
            part = self._part(call, rows, slice(start, start + size))
            found = recomputed(self.layer, *part.args, **part.kwargs)
            bare = isinstance(found, Tensor)
            pieces.append((found,) if bare else found)
        state, *more = (None if each[0] is None else torch.cat(each) for each in zip(*pieces, strict=True))
        return self.site(state) if bare else (self.site(state), *more)

    def _part(self, call: BoundArguments, count: int, part: slice) -> BoundArguments:
        """A call of the layer with some of its `count` texts alone; RrecError where it is not known what these read."""
        states, *_ = call.arguments

        def cut(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: cut(key, each) for key, each in value.items()}
            if isinstance(value, (tuple, list)):
                return type(value)(cut(name, each) for each in value)
            if value is None or isinstance(value, (bool, int, float, str)):
                return value
            told = type(value).__name__
            if isinstance(value, Tensor):
                told = str(list(value.shape))
                of_heads = name == "position_bias" and value.ndim == 3  # MPT
                if name in SHARED or of_heads or value.ndim == 0 or len(value) == 1:
                    return value
                if len(value) == count and (name in BY_ROW or (name == states and value.ndim == 3)):
                    return value[part]
                if name == "alibi" and not len(value) % count:  # Bloom: texts and heads as one
                    return value.unflatten(0, (count, -1))[part].flatten(0, 1)
            raise RrecError(
                f"model.encoder: a {type(self.layer).__name__} reads '{name}' ({told}) of {count} texts; what of it "
                "belongs to which text is not known, take an encoder of another kind"
            )

        found = {name: cut(name, each) for name, each in call.arguments.items()}
        return BoundArguments(call.signature, found)


class Backbone(nn.Module):
    """A pretrained transformer, frozen, as a map from tokens to states."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        hold(model, name)
        self.model = model

    def forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """States `[n, T, H]` of tokens `[n, T]`, padded on the right where `real` is False."""
        states: Tensor = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return states

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        settle(self.model, mode)
        return self


def hold(model: Any, name: str) -> None:
    """Freeze a pretrained transformer and give its blocks sites: nothing in it but adapters is ever trained.

    Its own weights become buffers, which no optimiser and no checkpoint has; rows of its word embeddings still are an
    embedding surface.
    """
    model.config.use_cache = False  # of keys and values: what one piece of texts leaves there is not for the next
    freeze(model)
    stacks = _stacks(model)
    if not stacks:
        raise RrecError(f"model.encoder={name}: no stack of attention blocks in it, which LoRA and sites need")
    for stack in stacks:
        for number, layer in enumerate(stack):
            stack[number] = Block(layer, entry=number == 0)


def projections(root: nn.Module, name: str) -> list[str]:
    """Names of the linear maps in the attention of a transformer inside `root`, which is called `name`."""
    blocks = [(path, each) for path, each in root.named_modules() if isinstance(each, Block)]
    return [f"{name}.{path}.layer.{each}" for path, block in blocks for each in _projections(block.layer)]


def widths(root: nn.Module, name: str, size: int) -> dict[str, int]:
    """Names of the sites behind its blocks, with the size of the states."""
    return {f"{name}.{path}.site": size for path, each in root.named_modules() if isinstance(each, Block)}


def settle(model: nn.Module, mode: bool) -> None:
    """Evaluation mode for a transformer, so that it has no dropout but that of adapters, which goes by `mode`."""
    model.train(False)
    for each in model.modules():
        if isinstance(each, ADAPTERS):
            each.train(mode)


def freeze(model: nn.Module) -> None:
    """Make every parameter a buffer that is not stored; what was tied stays tied."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, moved.setdefault(id(each), each.detach()), persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)


def recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`module(*args)`, its inner states computed again for the backward pass: at this point, wherever that runs."""
    if not torch.is_grad_enabled():
        return module(*args, **kwargs)
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    return checkpoint(lambda: functional_call(module, tensors, args, kwargs), use_reentrant=False)


def _projections(layer: nn.Module) -> list[str]:
    """Names of the linear maps inside the attention of a block."""
    return [
        name
        for name, each in layer.named_modules()
        if "att" in name.lower() and (isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D")
    ]


def _stacks(model: nn.Module) -> list[nn.ModuleList]:
    """The outermost lists of blocks with attention."""
    found: dict[str, nn.ModuleList] = {}
    for name, each in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(each, nn.ModuleList) and not inside and len(each) and all(_projections(one) for one in each):
            found[name] = each
    return list(found.values())
