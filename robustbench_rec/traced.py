"""Whether the transforms of torch.func look on, which know the operators of torch and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_TRACED = ContextVar("traced", default=False)


@contextmanager
def tracing() -> Iterator[None]:
    """Within it the models use the operators of torch as they are, however slow."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def traced() -> bool:
    """Whether they do now."""
    return _TRACED.get()


def plain(table: Tensor) -> bool:
    """Whether the operators of torch are used as they are: they are fast on a GPU, and know reduced precision."""
    cpu = table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64)
    return not cpu or traced() or torch.is_autocast_enabled("cpu")
