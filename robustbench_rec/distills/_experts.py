"""Experts that rebuild a teacher's vectors from a student's, chosen by a gate that sees the teacher's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Experts(nn.Module):
    """M maps of vectors `[n, D]` to `[n, D_teacher]`: two layers with ReLU between, (D + D_teacher) / 2 wide."""

    def __init__(self, count: int, student: int, teacher: int) -> None:
        super().__init__()
        hidden = (student + teacher) // 2
        self.gate = nn.Linear(teacher, count)
        self.first, self.last = (
            nn.Parameter(torch.empty(count, a, b)) for a, b in ((student, hidden), (hidden, teacher))
        )
        self.first_bias, self.last_bias = (nn.Parameter(torch.zeros(count, 1, size)) for size in (hidden, teacher))
        for each in (*self.first, *self.last):
            nn.init.xavier_uniform_(each.data)

    def choose(self, teacher: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Shares of the experts `[n, M]`, near to one expert each where the temperature is low (Gumbel-softmax)."""
        logits = self.gate(teacher).log_softmax(1)
        drawn = torch.rand(logits.shape, generator=generator).clamp(1e-10, 1 - 1e-7).to(logits.device)
        shares: Tensor = ((logits - (-drawn.log()).log()) / temperature).softmax(1)
        return shares

    def forward(self, student: Tensor, shares: Tensor) -> Tensor:
        """Σ_m share_m E_m(student), `[n, D_teacher]`."""
        hidden = F.relu(student @ self.first + self.first_bias)  # [M, n, H]
        rebuilt: Tensor = torch.einsum("nm,mnd->nd", shares, hidden @ self.last + self.last_bias)
        return rebuilt
