"""Few new parameters for a trained model whose body stays as it is: low-rank maps and bottlenecks."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustbench_rec.data import Data
from robustbench_rec.dropout import Dropout
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel

PRETRAINED = "backbone"
"""What a pretrained encoder is called in a model."""
PARAMETRIZED = re.compile(r"\bparametrizations\.(\w+)\.original\b")
"""How torch renames a matrix that has a parametrization."""


@dataclass
class Adaptation:
    """LoRA: rank 0 leaves the pretrained model as it is. dropout: of the input of A."""

    rank: int
    alpha: float
    dropout: float

    def check(self, key: str, least: int) -> None:
        """RrecError where the rank is below `least`, α is not positive, or the dropout is no share."""
        if self.rank < least or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise RrecError(
                f"{key}.rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}: rank >= {least}, alpha > 0 and "
                "dropout in [0, 1) are needed"
            )


class LowRank(nn.Module):
    """W + α/r · B A for a frozen W (Hu et al., ICLR 2022); B is zero at first, so it starts as W.

    As it stands a parametrization of a matrix that a layer reads itself, as a recurrent one does: numbers that are
    dropped of the input of A are then the same ones in all rows and steps (as Gal & Ghahramani, NeurIPS 2016).
    """

    def __init__(self, weight: Tensor, config: Adaptation) -> None:
        super().__init__()
        outer, inner = weight.shape
        self.scale = config.alpha / config.rank
        self.dropout = Dropout(config.dropout)
        self.down = nn.Parameter(weight.new_empty(config.rank, inner))
        self.up = nn.Parameter(weight.new_zeros(outer, config.rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        kept: Tensor = self.dropout(torch.ones_like(self.down[0]))
        return weight + self.scale * self.up @ (self.down * kept)

    @property
    def change(self) -> Tensor:
        """α/r · B A `[out, in]`."""
        return self.scale * self.up @ self.down


class LoRA(LowRank):
    """x ↦ W x + α/r · B A x in the place of a linear map, which is `nn.Linear` or transformers' transposed Conv1D."""

    def __init__(self, base: nn.Module, config: Adaptation) -> None:
        weight: Tensor = base.weight  # type: ignore[assignment]
        super().__init__(weight if isinstance(base, nn.Linear) else weight.T, config)
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = F.linear(F.linear(self.dropout(x), self.down), self.up)
        base: Tensor = self.base(x)
        return base + self.scale * added

    @property
    def weight(self) -> Tensor:
        """W + α/r · B A `[out, in]`, for who reads the weight of a linear map in the place of calling it."""
        assert isinstance(self.base, nn.Linear)
        return super().forward(self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """That of the map."""
        assert isinstance(self.base, nn.Linear)
        return self.base.bias


class Adapting(ABC):
    """A change of a model that leaves its body frozen and its scores as they were; constructed as `cls(config)`."""

    @abstractmethod
    def __call__(self, model: RecModel, data: Data) -> None:
        """Make it, in place, for a model that was built of these data; RrecError where it has nothing to adapt."""


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


class Probe(nn.Module):
    """x ↦ y + W y + b behind the last frozen layer y(x), for a model without a head; W and b are zero at first."""

    def __init__(self, base: nn.Module, width: int) -> None:
        super().__init__()
        self.base, self.map = base, nn.Linear(width, width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.base(x)
        added: Tensor = self.map(states)
        return states + added


ADAPTERS = (LowRank, Bottleneck, Probe)


def freeze_body(model: RecModel) -> None:
    """No gradients for the body, and no dropout in it; adapters that are added to it afterwards have both."""
    parts = _parts(model)
    if not parts:
        raise RrecError(f"model '{_name(model)}' has no body to leave frozen here; adaptation=none trains all of it")
    for part in parts.values():
        part.requires_grad_(False)
        for each in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(each, Dropout):
                each.p = 0.0


def matrices(model: RecModel) -> list[str]:
    """Names of the linear maps of the body, and of the matrices that other layers in it read themselves."""
    if model.projections:
        return list(model.projections)
    found = []
    for name, part in _parts(model).items():
        for path, each in part.named_modules() if isinstance(part, nn.Module) else ():
            inside = f"{name}.{path}" if path else name
            if isinstance(each, nn.Linear):
                found.append(inside)
            elif not isinstance(each, nn.Embedding):
                own = each.named_parameters(recurse=False)
                found += [f"{inside}.{leaf}" for leaf, tensor in own if tensor.ndim == 2]
    return found


def add_low_rank(model: RecModel, names: Iterable[str], config: Adaptation) -> None:
    """Low-rank maps beside the named linear maps and matrices."""
    for name in names:
        owner, leaf = _place(model, name)
        each = getattr(owner, leaf)
        if isinstance(each, nn.Module):
            setattr(owner, leaf, LoRA(each, config))
        else:
            parametrize.register_parametrization(owner, leaf, LowRank(each, config))


def put_behind(model: RecModel, widths: Mapping[str, int], make: Callable[[nn.Module, int], nn.Module]) -> None:
    """Put what `make` gives in the place of each named module, given it and the size of its states."""
    for name, width in widths.items():
        owner, leaf = _place(model, name)
        setattr(owner, leaf, make(getattr(owner, leaf), width))


def plain(name: str) -> str:
    """The name that a tensor has in the model without adapters."""
    return PARAMETRIZED.sub(r"\1", name).replace(".base.", ".")


def merged(model: RecModel) -> dict[str, Tensor]:
    """The tensors of a model by the names without adapters, what low-rank maps add being in their matrices.

    RrecError where a layer stands behind another, which no matrix holds, or what is adapted is pretrained and not kept.
    """
    found = {plain(name): each for name, each in model.state_dict().items()}
    for path, each in model.named_modules():
        if isinstance(each, (Bottleneck, Probe)):
            raise RrecError(f"its {path} has a layer behind it that this model has not")
        if not isinstance(each, LowRank):
            continue
        name = plain(f"{path}.base.weight" if isinstance(each, LoRA) else f"{path.rpartition('.')[0]}.original")
        if name not in found or PRETRAINED in name.split("."):
            raise RrecError(f"its {plain(path)} has low-rank maps that this model has not")
        alike = found[name].shape == each.change.shape
        found[name] = found[name] + (each.change if alike else each.change.T)
    return found


def adapted(model: RecModel) -> dict[str, torch.Size]:
    """Names and shapes of the tensors of adapters."""
    added = _added(model)
    return {name: each.shape for name, each in model.named_parameters() if id(each) in added}


def changes(model: nn.Module) -> list[Tensor]:
    """‖ΔW‖²_F of every low-rank map, and of what every bottleneck and every new head adds; computed in the rank."""
    found = []
    for each in model.modules():
        if isinstance(each, LowRank):
            found.append(each.scale**2 * ((each.up.T @ each.up) * (each.down @ each.down.T)).sum())
        elif isinstance(each, Bottleneck):
            up, down = each.up.weight, each.down.weight
            found.append(((up.T @ up) * (down @ down.T)).sum())
        elif isinstance(each, Probe):
            found.append(each.map.weight.square().sum())
    return found


def frozen(model: RecModel) -> bool:
    """Whether it has a body of which nothing but adapters is trained."""
    parts = _parts(model)
    added = _added(model)
    learnt = (each for _, each in _tensors(parts) if each.requires_grad)
    return bool(parts) and all(id(each) in added for each in learnt)


def sizes(model: RecModel) -> tuple[int, int]:
    """How many numbers are trained, of how many: parameters, what else the body is made of, and what was asked once."""
    parts = {name: each for name, each in _parts(model).items() if isinstance(each, nn.Module)}
    buffers = {
        id(each): each.numel()
        for name, each in _tensors(parts)
        if not isinstance(each, nn.Parameter)
        and each.is_floating_point()
        and not name.rpartition(".")[2].startswith(("shift", "feature_"))  # of sites, and side information
    }
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return trained, sum(each.numel() for each in model.parameters()) + sum(buffers.values()) + model.asked_once


def digest(model: RecModel) -> str:
    """sha256 of the tensors of the body without its adapters, stored or not; the same with adapters and without."""
    added, hashed = _added(model), sha256()
    own = {plain(name): each for name, each in _tensors(_parts(model)) if id(each) not in added}
    for name, each in sorted(own.items()):
        hashed.update(name.encode())
        hashed.update(each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _parts(model: RecModel) -> dict[str, nn.Module | Tensor]:
    """The body, and what a frozen encoder said once."""
    found: dict[str, nn.Module | Tensor] = {}
    for name in (*model.body, *model.given):
        owner, leaf = _place(model, name)
        each = getattr(owner, leaf, None)
        if each is not None:
            found[name] = each
    return found


def _tensors(parts: Mapping[str, nn.Module | Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers."""
    for name, part in parts.items():
        if isinstance(part, Tensor):
            yield name, part
        else:
            yield from ((f"{name}.{key}", each) for key, each in (*part.named_parameters(), *part.named_buffers()))


def _place(model: RecModel, name: str) -> tuple[nn.Module, str]:
    """The owner of what is named, and its name there."""
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _name(model: RecModel) -> str:
    return type(model).__module__.rpartition(".")[2]


def _added(model: RecModel) -> set[int]:
    """Which parameters, by their ids, are those of adapters."""
    return {
        id(each)
        for one in model.modules()
        if isinstance(one, ADAPTERS)
        for name, each in one.named_parameters()
        if not name.startswith("base.")
    }
