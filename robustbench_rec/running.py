"""Running sums."""

import torch
from torch import Tensor


def running(values: Tensor, dim: int) -> Tensor:
    """Sums of real numbers up to each place; on the CPU where CUDA must be deterministic, which it is not in these."""
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(dim).to(values.device)
    return values.cumsum(dim)
