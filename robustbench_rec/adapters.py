"""Few new parameters for a trained model whose body stays as it is: low-rank maps and bottlenecks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel


@dataclass
class Adaptation:
    """LoRA on the attention projections; rank 0 leaves the pretrained model as it is. dropout: of the input of A."""

    rank: int
    alpha: float
    dropout: float


class LoRA(nn.Module):
    """x ↦ W x + α/r · B A x with W frozen (Hu et al., ICLR 2022); B is zero at first, so it starts as W."""

    def __init__(self, base: nn.Module, config: Adaptation) -> None:
        super().__init__()
        weight: Tensor = base.weight  # type: ignore[assignment]
        outer, inner = weight.shape if isinstance(base, nn.Linear) else weight.shape[::-1]  # else Conv1D, transposed
        self.base, self.scale = base, config.alpha / config.rank
        self.dropout = Dropout(config.dropout)
        self.down = nn.Parameter(weight.new_empty(config.rank, inner))
        self.up = nn.Parameter(weight.new_zeros(outer, config.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = F.linear(F.linear(self.dropout(x), self.down), self.up)
        base: Tensor = self.base(x)
        return base + self.scale * added


class Adapting(ABC):
    """A change of a model that leaves its body frozen and its scores as they were; constructed as `cls(config)`."""

    @abstractmethod
    def __call__(self, model: RecModel) -> None:
        """Make it, in place; RrecError where the model has nothing to adapt."""


class Bottleneck(nn.Module):
    """x ↦ y + U GELU(D y) behind a frozen layer y(x) (Houlsby et al., ICML 2019); U is zero at first."""

    def __init__(self, base: nn.Module, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.base, self.dropout = base, Dropout(dropout)
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.base(x)
        added: Tensor = self.up(F.gelu(self.down(self.dropout(states))))
        return states + added


ADAPTERS = (LoRA, Bottleneck)


def body(model: RecModel) -> list[str]:
    """Names of the modules that stay frozen; RrecError where the model has none."""
    found = [name for name in model.body if getattr(model, name, None) is not None]
    if not found:
        name = type(model).__module__.rpartition(".")[2]
        raise RrecError(f"model '{name}' has no body to leave frozen here; adaptation=none trains all of it")
    return found


def freeze_body(model: RecModel) -> None:
    """No gradients for the body, and no dropout in it; adapters that are added to it afterwards have both."""
    for name in body(model):
        part = model.get_submodule(name)
        part.requires_grad_(False)
        for each in part.modules():
            if isinstance(each, Dropout):
                each.p = 0.0


def layers(model: RecModel) -> Iterator[tuple[nn.Module, str]]:
    """Linear maps inside the body, each as its owner and its name there."""
    for name in body(model):
        for owner in list(model.get_submodule(name).modules()):
            yield from ((owner, leaf) for leaf, each in owner.named_children() if isinstance(each, nn.Linear))


def blocks(model: RecModel) -> Iterator[tuple[nn.ModuleList, int]]:
    """The layers of the stacks in the body, each as its stack and its number."""
    for name in body(model):
        stack = model.get_submodule(name)
        if isinstance(stack, nn.ModuleList):
            yield from ((stack, number) for number in range(len(stack)))


def plain(name: str) -> str:
    """The name that a tensor has in the model without adapters."""
    return name.replace(".base.", ".")


def changes(model: nn.Module) -> list[Tensor]:
    """‖ΔW‖²_F of every low-rank map, and of what every bottleneck adds; computed in the rank."""
    found = []
    for each in model.modules():
        if isinstance(each, LoRA):
            found.append(each.scale**2 * ((each.up.T @ each.up) * (each.down @ each.down.T)).sum())
        elif isinstance(each, Bottleneck):
            up, down = each.up.weight, each.down.weight
            found.append(((up.T @ up) * (down @ down.T)).sum())
    return found


def frozen(model: RecModel) -> bool:
    """Whether it has a body of which nothing but adapters is trained."""
    parts = [model.get_submodule(name) for name in model.body if getattr(model, name, None) is not None]
    added = _added(model)
    learnt = (each for part in parts for each in part.parameters() if each.requires_grad)
    return bool(parts) and all(id(each) in added for each in learnt)


def sizes(model: RecModel) -> tuple[int, int]:
    """How many numbers are trained, of how many: parameters, what else the body is made of, and what was asked once."""
    parts = [model.get_submodule(name) for name in model.body if getattr(model, name, None) is not None]
    buffers = {id(each): each.numel() for part in parts for each in part.buffers() if each.is_floating_point()}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return trained, sum(each.numel() for each in model.parameters()) + sum(buffers.values()) + model.asked_once


def digest(model: RecModel) -> str:
    """sha256 of the tensors of the body without its adapters, stored or not."""
    added, hashed = _added(model), sha256()
    for name in body(model):
        part = model.get_submodule(name)
        for key, each in sorted([*part.named_parameters(), *part.named_buffers()]):
            if id(each) not in added:
                hashed.update(key.encode())
                hashed.update(each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _added(model: RecModel) -> set[int]:
    """Which parameters, by their ids, are those of adapters."""
    return {
        id(each)
        for one in model.modules()
        if isinstance(one, ADAPTERS)
        for name, each in one.named_parameters()
        if not name.startswith("base.")
    }
