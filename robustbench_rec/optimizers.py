"""Optimisers by name."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rec.config import Fit
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.lookup import ROWS_ONLY, rows_only
from robustbench_rec.model import RecModel


class LazyAdam(torch.optim.Optimizer):
    """Adam whose step costs what the batch touched: rows without a gradient keep their value and their moments.

    lr, weight_decay (added to the gradient of what is touched): as of Adam. A table (`lookup.rows_only`) rests row by
    row, those of its rows too that have zeros in a gradient that came dense, as under a perturbation, in reduced
    precision or on a GPU; for all other parameters it is Adam. As torch.optim.SparseAdam, which takes no dense gradient
    and does not correct ε; unlike Adam it does not go on moving a row by its momentum.
    """

    def __init__(self, weights: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is not None:
                    self._update(each, each.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["moments"] = torch.stack([torch.zeros_like(weight)] * 2, min(weight.ndim, 1))  # row by row, together
        state["step"] += 1
        named, values = _named(weight, gradient)
        moments = state["moments"] if named is None else state["moments"].index_select(0, named)
        moved = weight if named is None else weight.index_select(0, named)
        if group["weight_decay"]:
            values = values + group["weight_decay"] * moved
        (low, high), step = group["betas"], state["step"].item()
        mean, square = moments.unbind(min(weight.ndim, 1))
        mean.lerp_(values, 1 - low)
        square.mul_(high).addcmul_(values, values, value=1 - high)
        scale = (1 - high**step) ** 0.5
        moved.addcdiv_(mean, square.sqrt().add_(group["eps"] * scale), value=-group["lr"] * scale / (1 - low**step))
        if named is not None:
            state["moments"].index_copy_(0, named, moments)
            weight.index_copy_(0, named, moved)


def _named(weight: Tensor, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """Rows that a gradient is of, each once, and their values; None for all rows."""
    if not gradient.is_sparse:
        if not getattr(weight, ROWS_ONLY, False):
            return None, gradient
        there = gradient.flatten(1).any(1)
        return (None, gradient) if bool(there.all()) else (there.nonzero().squeeze(1), gradient[there])
    index = gradient._indices()[0]
    if bool((index[1:] <= index[:-1]).any()):  # torch forgets that a gradient is in order
        gradient = gradient.coalesce()
    return gradient._indices()[0], gradient._values()


OPTIMIZERS = ("adagrad", "adam", "adamw", "lazy_adam", "sgd")


def check(fit: Fit) -> None:
    """RrecError for an unknown optimiser, or settings that it does not take."""
    if fit.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", fit.optimizer, OPTIMIZERS)
    if fit.optimizer == "lazy_adam" and fit.clip_norm is not None:
        raise RrecError("clip_norm needs the whole gradient, which optimizer=lazy_adam never makes; use adam")


def optimizer(model: RecModel, fit: Fit, beside: Sequence[Tensor] = ()) -> torch.optim.Optimizer:
    """Over the parameters that are trained, and those beside the model that are trained with it."""
    weights = [*(each for each in model.parameters() if each.requires_grad), *beside]
    lr, decay = fit.lr, fit.weight_decay
    if fit.optimizer == "lazy_adam":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                rows_only(module.weight)
        return LazyAdam(weights, lr=lr, weight_decay=decay)
    if fit.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=lr, weight_decay=decay, momentum=fit.momentum, fused=True)
    if fit.optimizer == "adagrad":
        return torch.optim.Adagrad(weights, lr=lr, weight_decay=decay)  # fused on a CPU alone
    kind = torch.optim.AdamW if fit.optimizer == "adamw" else torch.optim.Adam
    return kind(weights, lr=lr, weight_decay=decay, fused=True)
