import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distills
from robustbench_rec.distills._vectors import KINDS, Entities, OverVectors, Sampled
from robustbench_rec.errors import RrecError

EPS = 1e-7


@distills.register
class CRD(OverVectors):
    """Contrastive representation distillation with a memory of both nets' vectors (Tian et al., ICLR 2020).

    −log e⁺/(e⁺ + N/n) − Σ log (N/n)/(e⁻ + N/n), e = exp(cos/τ)/Z, of each net's vector against the other's memory and
    back, summed; n users, or items, are the instances. dim: of linear heads. temperature: τ. momentum: what a memory
    keeps when its owner is seen. negatives: N, drawn among the other instances for every one of a batch. Z is fixed
    from the first batch. As the released code, with instances in the place of images, of which none is of another's
    class.
    """

    @dataclass
    class Config(Sampled):
        dim: int
        temperature: float
        momentum: float
        negatives: int

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.dim < 1 or config.temperature <= 0 or not 0 <= config.momentum < 1 or config.negatives < 1:
            raise RrecError(
                f"distill with dim={config.dim}, temperature={config.temperature}, momentum={config.momentum}, "
                f"negatives={config.negatives}: dim, negatives >= 1, temperature > 0, momentum in [0, 1) are needed"
            )
        self.config = config
        counts = (lesson.data.n_users, lesson.data.n_items)
        if min(counts) < 2:
            raise RrecError(
                f"distill 'crd' with {counts[0]} users and {counts[1]} items: at least two of each are needed"
            )
        self.contrasts = nn.ModuleDict(
            {kind: Contrast(*self.sizes[kind], n, config.dim) for kind, n in zip(KINDS, counts, strict=True)}
        )

    def compare(self, entities: list[Entities]) -> Tensor:
        found = []
        for each in entities:
            contrast = self.contrasts[each.kind]
            assert isinstance(contrast, Contrast)
            others = besides(each.index, contrast.n, self.config.negatives, self.generator)
            found.append(contrast(each, others, self.config.temperature, self.config.momentum))
        return torch.stack(found).sum()


class Contrast(nn.Module):
    """Heads, memories and normalisers of n instances of one kind."""

    log_scales: Tensor

    def __init__(self, student: int, teacher: int, n: int, dim: int) -> None:
        super().__init__()
        self.n = n
        self.heads = nn.ModuleList(nn.Linear(size, dim) for size in (student, teacher))
        for side in ("student", "teacher"):
            self.register_buffer(side, F.normalize(torch.randn(n, dim), dim=1))
        self.register_buffer("log_scales", torch.full((2,), math.nan))

    def forward(self, each: Entities, others: Tensor, temperature: float, momentum: float) -> Tensor:
        index = torch.cat([each.index[:, None], others], 1)  # [B, 1 + N], the first its own
        raw = (each.student, each.teacher)
        vectors = [F.normalize(head(one), dim=1) for head, one in zip(self.heads, raw, strict=True)]
        total = []
        for number, other in enumerate(("teacher", "student")):
            memory = self.get_buffer(other)[index].clone()
            logits = torch.einsum("bd,bnd->bn", vectors[number], memory) / temperature
            if bool(self.log_scales[number].isnan()):
                self.log_scales[number] = logits.detach().logsumexp((0, 1)) + math.log(self.n / logits.numel())
            total.append(nce(logits - self.log_scales[number].clone(), self.n))
        with torch.no_grad():
            for side, vector in zip(("student", "teacher"), vectors, strict=True):
                kept = self.get_buffer(side)
                moved = momentum * kept[each.index] + (1 - momentum) * vector.detach()
                kept[each.index] = F.normalize(moved, dim=1)
        return torch.stack(total).sum()


def besides(index: Tensor, n: int, count: int, generator: torch.Generator) -> Tensor:
    """Of n instances, so many others for each of `index` `[B]`, with replacement: `[B, count]`."""
    drawn = torch.randint(n - 1, (len(index), count), generator=generator).to(index.device)
    return drawn + (drawn >= index[:, None])


def nce(log_e: Tensor, n: int) -> Tensor:
    """Noise-contrastive loss of log scores `[B, 1 + N]`, the first its own, among n instances; mean over the rows."""
    noise = (log_e.shape[1] - 1) / n
    apart = log_e - math.log(noise + EPS)  # of e⁺/(e⁺ + noise) the logit, of noise/(e⁻ + noise) its negative
    kept = math.log1p(EPS / noise) * (log_e.shape[1] - 1)
    return (F.softplus(-apart[:, 0]) + F.softplus(apart[:, 1:]).sum(1)).mean() + kept
