"""The model at θ + δ, as a value; and the surfaces that δ may live on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robustbench_rec.batch import Batch, Output, filled
from robustbench_rec.errors import RrecError
from robustbench_rec.model import Encoded, RecModel

Delta = Mapping[str, Tensor]


class Site(nn.Module):
    """Names an activation, so that it can be shifted like any weight; free of cost until it is.

    listed: whether it belongs to the activation surface; one that does not is there for who knows its name. places:
    whether it has a state for each place of a history or a text, `[n, L, D]`, some of which are padding.
    """

    shift: Tensor

    def __init__(self, *, listed: bool = True, places: bool = False) -> None:
        super().__init__()
        self.listed, self.places = listed, places
        self.register_buffer("shift", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift if self.shift.ndim else x

    @property
    def idle(self) -> bool:
        """Neither shifted nor looked at, so that a model may compute the activation in pieces, or not at all."""
        return not self.shift.ndim and not self._forward_hooks


class Embedded(Site):
    """The site of the vectors of tokens or events `[…, L, D]` as they are looked up, before any layer."""

    def __init__(self, *, listed: bool = True) -> None:
        super().__init__(listed=listed, places=True)


@dataclass(frozen=True)
class Shifted:
    """A model at θ + δ; δ names parameters, `feature_*` buffers or sites.

    A value: nothing is written into the model, so there is nothing to restore. It holds for one point θ: after an
    optimiser step, or between training and evaluation mode, take a new one. sparing: a `piecewise` model computes for
    each batch what that needs and no more, instead of everything once: for a point at which few items are scored once.
    """

    model: RecModel
    delta: Delta = field(default_factory=dict)
    sparing: bool = False

    def __call__(self, batch: Batch) -> Output:
        if not self.delta:
            output: Output = self.model(batch, self.encoded)
            if self.model.training and torch.is_grad_enabled():
                self.__dict__["latest"] = batch, output
            return output
        shifted: Output = functional_call(self.model, self.tensors(self.delta), (batch, self.encoded))
        return shifted

    def said(self, batch: Batch) -> Output:
        """The output for a training batch; computed again only if another batch was the latest."""
        latest, output = self.__dict__.get("latest", (None, None))
        return output if latest is batch else self(batch)

    @property
    def encoded(self) -> Encoded:
        """`model.encode()` at this point, computed once for this value, with what a gradient needs if one is wanted.

        At the point of a training step one will be wanted, whoever asks first.
        """
        wanted = torch.is_grad_enabled() or (self.model.training and not self.delta)
        known: tuple[Encoded, bool] | None = self.__dict__.get("encoding")
        if known is None or (wanted and not known[1]):
            with torch.set_grad_enabled(wanted):
                known = self.__dict__["encoding"] = self._encoded(), wanted
        return known[0]

    def _encoded(self) -> Encoded:
        if self.sparing and self.model.piecewise:
            return None
        if not self.delta or type(self.model).encode is RecModel.encode:
            return self.model.encode()
        tensors = {f"model.{name}": each for name, each in self.tensors(self.delta).items()}
        return functional_call(_Method(self.model, "encode"), tensors, ())

    def user_states(self, batch: Batch) -> Tensor:
        """`model.user_states` at this point."""
        return self._states("user_states", batch)

    def item_states(self, items: Tensor) -> Tensor:
        """`model.item_states` at this point."""
        return self._states("item_states", items)

    def shift(self, delta: Delta) -> "Shifted":
        """The same model, further away: θ + δ + `delta`."""
        summed = {name: self.delta[name] + each if name in self.delta else each for name, each in delta.items()}
        return replace(self, delta={**self.delta, **summed})

    def weighed(self, weights: Tensor) -> "Shifted":
        """The model on its graph with weights for the edges `[n_edges]`."""
        found = self.model.weighed(weights)
        own = self.tensors(found)
        return self.shift({name: each - own[name] for name, each in found.items()})

    def holding(self, encoded: Encoded) -> "Shifted":
        """The same point, with `encoded` in the place of its own."""
        held = replace(self)
        held.__dict__["encoding"] = encoded, True
        return held

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Parameters and buffers at this point, by name."""
        found = {}
        for name in names:
            owner, _, leaf = name.rpartition(".")
            base = getattr(self.model.get_submodule(owner), leaf)
            found[name] = base + self.delta[name] if name in self.delta else base
        return found

    def _states(self, method: str, asked: Batch | Tensor) -> Tensor:
        tensors = {f"model.{name}": each for name, each in self.tensors(self.delta).items()}
        found: Tensor = functional_call(_Method(self.model, method), tensors, (asked, self.encoded))
        return found

    def activations(self, names: Iterable[str], batch: Batch) -> dict[str, Tensor]:
        """What passes through the named sites for this batch, without gradient; portions of its rows come joined."""
        sites = {name: _site(self.model, name) for name in names}
        seen: dict[str, list[Tensor]] = {name: [] for name in sites}
        hooks = [
            site.register_forward_hook(lambda _, args, out, name=name: seen[name].append(out.detach()))
            for name, site in sites.items()
        ]
        try:
            with torch.no_grad():
                fresh = replace(self)  # what is encoded passes through sites too
                fresh.holding(fresh._encoded())(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: each[0] if len(each) == 1 else torch.cat(each) for name, each in seen.items() if each}

    def real(self, activations: Delta, batch: Batch) -> dict[str, Tensor]:
        """Which places hold an event or a token, bool `[n, L, 1]`, of the activations for a batch that have places."""
        placed = {
            name: each
            for name, each in activations.items()
            if _site(self.model, name).places and each.ndim == 3 and each.shape[1] > 1  # the last state alone has one
        }
        if not placed:
            return {}
        lengths = self.model.read_lengths(batch, self.encoded)
        return {name: filled(lengths, each.shape[1])[:, :, None] for name, each in placed.items()}


def _site(model: RecModel, name: str) -> Site:
    """The site whose shift has this name."""
    found = model.get_submodule(name.removesuffix(".shift"))
    assert isinstance(found, Site)
    return found


class _Method(nn.Module):
    """`functional_call` calls `forward`; this one is the method of that name."""

    def __init__(self, model: RecModel, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *args: Any) -> Any:
        return getattr(self.model, self.name)(*args)


def surface(model: RecModel, kind: str, modules: Iterable[str] | None = None) -> list[str]:
    """Names of the tensors of a surface, optionally of exactly the named modules.

    embedding: rows of `nn.Embedding` tables. weight: parameters with at least two dimensions (no biases, no norms).
    feature: buffers named `feature_*`. activation: sites. RrecError when the model has none, or lacks a named module.
    """
    if kind not in SURFACES:
        raise RrecError(f"unknown surface '{kind}' (choices: {', '.join(SURFACES)})")
    names = SURFACES[kind](model)
    if modules is not None:
        if not (wanted := list(dict.fromkeys(modules))):
            raise RrecError(f"{_name(model)}: of no module of the {kind} surface; name one, or null for all")
        labels = {label(name): name for name in names}
        missing = sorted(set(wanted) - labels.keys())
        if missing:
            has = ", ".join(sorted(labels)) or "none"
            raise RrecError(f"{_name(model)} has no module '{missing[0]}' on the {kind} surface (it has: {has})")
        names = [labels[each] for each in wanted]
    if not names:
        has = ", ".join(each for each, find in SURFACES.items() if find(model))
        told = f"it has: {has}" if has else "it has none: poison=… attacks what it is trained on"
        raise RrecError(f"{_name(model)} has no {kind} surface to attack ({told})")
    return names


def tunable(model: RecModel, modules: Iterable[str] | None = None) -> list[str]:
    """Names of the weight matrices that training changes, optionally of exactly the named modules.

    RrecError where there are none, as where an adaptation has frozen all, or where a named one is frozen.
    """
    names = surface(model, "weight", modules)
    learning = [name for name in names if model.get_parameter(name).requires_grad]
    if not learning or (modules is not None and len(learning) < len(names)):
        frozen = next(label(name) for name in names if name not in learning)
        which = "all its weight matrices are" if modules is None else f"its module '{frozen}' is"
        raise RrecError(f"{_name(model)}: {which} frozen (adaptation), no training changes that")
    return learning


def inputs(model: RecModel) -> tuple[str, list[str]]:
    """Where a model reads embeddings: the surface, and the tensors of it.

    The sites of tokens or events, each occurrence by itself, where it has such; else the rows of its embedding tables,
    or without any those that a frozen encoder gave. RrecError when it has none of them.
    """
    sites = embedded(model)
    if sites:
        return "activation", sites
    return "embedding", _embeddings(model) or tables(model) or surface(model, "embedding")


def embedded(model: RecModel) -> list[str]:
    """Sites of tokens or events as they are looked up, each occurrence by itself."""
    return [f"{name}.shift" for name, each in model.named_modules() if isinstance(each, Embedded)]


def tables(model: RecModel) -> list[str]:
    """Embeddings row by row: those of tables, and those that a frozen encoder gave."""
    return [*_embeddings(model), *(name for name, _ in model.named_buffers() if name in model.given)]


def label(name: str) -> str:
    """A tensor's name for people: that of its module, or its own where the module has several."""
    return name.removesuffix(".weight").removesuffix(".shift")


def _embeddings(model: RecModel) -> list[str]:
    return [f"{name}.weight" for name, each in model.named_modules() if isinstance(each, nn.Embedding)]


def _weights(model: RecModel) -> list[str]:
    return [name for name, each in model.named_parameters() if each.ndim >= 2]


def _features(model: RecModel) -> list[str]:
    return [name for name, _ in model.named_buffers() if name.rpartition(".")[2].startswith("feature_")]


def _sites(model: RecModel) -> list[str]:
    return [f"{name}.shift" for name, each in model.named_modules() if isinstance(each, Site) and each.listed]


SURFACES = {"embedding": _embeddings, "weight": _weights, "feature": _features, "activation": _sites}


def _name(model: RecModel) -> str:
    return f"model '{type(model).__module__.rpartition('.')[2]}'"
