"""Objectives: scalars of (model at a point, batch) that wrap one another; trained down, attacked up."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.losses import Loss
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted

Scalar = Callable[[Shifted, Batch], Tensor]

CELLS = 2**14
"""Events or candidates that are asked about at once on a CPU: what a model holds of many more leaves its cache."""
TABLES = 64
"""Of each event or candidate: numbers of gradients of whole tables, so that these stay the smaller part of a piece."""


class Objective(nn.Module):
    """Base of defences and distillations: a scalar of `(at, batch)`, usually around an inner objective.

    Its buffers are training state: they are saved with a resumable run. alone: nothing may be added to it,
    and no training may have gone before it.
    """

    alone: ClassVar[bool] = False
    batches: int = 1
    """Of an epoch, known when it starts."""

    @property
    def waits(self) -> int:
        """Epochs of plain training before it does anything, as far as is known yet."""
        return 0

    def introduce(self, model: RecModel, data: Data) -> None:
        """Called once before a training, with the model and what the training may know of the data."""

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Called before the batches of an epoch, counted from 0; all its randomness comes from `generator`."""

    def start_batch(self) -> None:
        """Called before every batch of an epoch, which a defence around this one may ask about several times."""

    def show(self, data: Data) -> None:
        """Called before an epoch whose batches show other training events than those that were introduced."""

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        raise NotImplementedError

    def told(self) -> dict[str, float]:
        """What it says at the end of an epoch, by names with a `/`, for `history.csv`; the last in `metrics.json`."""
        return {}


class Adding(Objective):
    """An objective that adds something to the one inside, which a distillation can have as a term of its own.

    adds: whether it does so: not where all its weights are 0.
    """

    adds: bool = True

    def added(self, at: Shifted, batch: Batch) -> Tensor:
        """What it adds, with its own weights."""
        raise NotImplementedError


class Plain(Objective):
    """The mean loss of a batch."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        return self.loss(at(batch), batch).mean()


def innermost(objective: Objective) -> Plain:
    """The mean loss that all nested objectives are around."""
    return next(each for each in objective.modules() if isinstance(each, Plain))


def nested(objective: Objective) -> list[Objective]:
    """It and all that it is around, the outermost first."""
    return [each for each in objective.modules() if isinstance(each, Objective)]


def introduce(objective: Objective, model: RecModel, data: Data) -> None:
    """Tell every nested objective of the model and the data of its training, but of no more than that may know."""
    for each in nested(objective):
        each.introduce(model, data.known)


def start_epoch(objective: Objective, epoch: int, generator: torch.Generator, *, batches: int = 1) -> None:
    """Tell every nested objective that an epoch of so many batches begins, the outermost first."""
    for each in nested(objective):
        each.batches = batches
        each.start_epoch(epoch, generator)


def start_batch(objective: Objective) -> None:
    """Tell every nested objective that another batch begins."""
    for each in nested(objective):
        each.start_batch()


def show(objective: Objective, data: Data) -> None:
    """Tell every nested objective that an epoch shows the training events of these data."""
    for each in nested(objective):
        each.show(data.known)


def told(objective: Objective) -> dict[str, float]:
    """What every nested objective tells."""
    return {name: value for each in nested(objective) for name, value in each.told().items()}


def known(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`value` whose backward deposits `gradients` on `tensors`, so that what was computed once stays so.

    value: a scalar, or `[B]` of which the sum has these gradients and is what they are asked of.
    """
    result: Tensor = _Known.apply(value.detach(), len(tensors), *gradients, *tensors)  # type: ignore[no-untyped-call]
    return result


def streamed(at: Shifted, batches: Iterable[Batch], loss: Loss) -> Tensor:
    """Mean loss over many batches with the memory of one; differentiable in δ and the parameters that reach it.

    The gradient is accumulated batch by batch, the batch-independent part (`encode`) is computed once.
    """
    leaves = [each for each in (*at.delta.values(), *at.model.parameters()) if each.requires_grad]
    if not (torch.is_grad_enabled() and leaves):
        sums = [(loss(at(each), each).sum(), len(each)) for batch in batches for each in _pieces(at.model, batch, 0)]
        return torch.stack([each for each, _ in sums]).sum() / sum(size for _, size in sums)
    roots = [each for each in _tensors(at.encoded) if each.requires_grad]
    copies = [each.detach().requires_grad_() for each in roots]
    held = at.holding(_replaced(at.encoded, dict(zip(map(id, roots), copies, strict=True))))
    wanted = [*copies, *leaves]
    sums_: list[Tensor | None] = [None] * len(wanted)
    value, count = torch.zeros((), device=leaves[0].device), 0
    tables = sum(each.numel() for each in wanted)
    for piece in (each for batch in batches for each in _pieces(at.model, batch, tables)):
        total = loss(held(piece), piece).sum()
        if total.requires_grad:
            _add(sums_, wanted, torch.autograd.grad(total, wanted, allow_unused=True))
        value, count = value + total.detach(), count + len(piece)
    direct = sums_[len(copies) :]
    upstream = [(root, each) for root, each in zip(roots, sums_, strict=False) if each is not None]
    if upstream:
        ends, outer = zip(*upstream, strict=True)
        _add(direct, leaves, torch.autograd.grad(ends, leaves, grad_outputs=outer, allow_unused=True))
    reached = [(leaf, each / count) for leaf, each in zip(leaves, direct, strict=True) if each is not None]
    return known(value / count, [leaf for leaf, _ in reached], [each for _, each in reached])


def _pieces(model: RecModel, batch: Batch, tables: int) -> Iterator[Batch]:
    """The same rows, so many at a time that what they read or are asked about stays in a CPU's cache.

    tables: numbers in the gradients that each piece costs, whatever its rows.
    """
    read = 0 if batch.history is None else batch.history.items.shape[1]
    asked = 0 if batch.items is None or model.inner_product else batch.items.shape[1]
    stepwise = batch.history is not None and batch.history.steps is not None
    width = max(read, asked)
    rows = max(1, CELLS // max(width, 1), tables // max(TABLES * width, 1))
    if batch.users.device.type != "cpu" or stepwise or not width or len(batch) <= rows:
        yield batch
        return
    for start in range(0, len(batch), rows):
        yield batch.rows(slice(start, start + rows))


def _add(sums: list[Tensor | None], tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to the sums of their tensors, in place; None is the sum of what has none."""
    for place, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
        if gradient is not None:
            before = sums[place]
            sums[place] = (torch.zeros_like(tensor) if before is None else before).add_(gradient)


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, n: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:n])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> Any:
        kept = ctx.saved_tensors
        scale = outer[0].flatten()[0]
        assert bool((outer[0] == scale).all()), "only the gradient of the sum is known"
        return (None, None, *(None for _ in kept), *(kept if scale == 1 else [scale * each for each in kept]))


def _tensors(encoded: Any) -> Iterator[Tensor]:
    if isinstance(encoded, Tensor):
        yield encoded
    elif isinstance(encoded, (tuple, list)):
        for each in encoded:
            yield from _tensors(each)


def _replaced(encoded: Any, copies: dict[int, Tensor]) -> Any:
    if isinstance(encoded, Tensor):
        return copies.get(id(encoded), encoded)
    if isinstance(encoded, (tuple, list)):
        return type(encoded)(_replaced(each, copies) for each in encoded)
    return encoded
