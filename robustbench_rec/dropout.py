"""Dropout that costs a CPU little: random bits for the masks instead of random numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.traced import traced

LEVELS = 2**16


class Dropout(nn.Module):
    """Drops each number with probability p in training and scales what stays, as `torch.nn.Dropout` does.

    On a CPU a mask takes 16 random bits for a number, four numbers a draw of torch's generator, so p is rounded to
    1/65,536, and what stays is scaled for the p that was rounded to.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu" or traced():
            return F.dropout(x, self.p, self.training)
        dropped = min(round(self.p * LEVELS), LEVELS - 1)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        return x * (kept * (LEVELS / (LEVELS - dropped))).to(x.dtype)
