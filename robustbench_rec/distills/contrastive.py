import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distills
from robustbench_rec.distills._vectors import KINDS, Entities, OverVectors, Sampled
from robustbench_rec.errors import RrecError

log = logging.getLogger(__name__)


@distills.register
class Contrastive(OverVectors):
    """InfoNCE between the student's and the teacher's vectors of the same user or item, both ways (van den Oord, 2018).

    The others of the batch are negatives. dim: of the space that linear heads map both into. temperature: τ. threshold:
    pairs whose teacher's vectors have a larger cosine, about the mean of all users or of all items, are no negatives of
    each other, since two users of one taste are no contrast; 1 masks nothing. [R] The mask is ours.
    """

    @dataclass
    class Config(Sampled):
        dim: int
        temperature: float
        threshold: float

    def __init__(self, config: Config, lesson: Lesson) -> None:
        super().__init__(config, lesson)
        if config.dim < 1 or config.temperature <= 0 or not -1 <= config.threshold <= 1:
            raise RrecError(
                f"distill with dim={config.dim}, temperature={config.temperature}, threshold={config.threshold}: "
                "dim >= 1, temperature > 0 and threshold in [-1, 1] are needed"
            )
        self.config, self.warned = config, False
        self.student = nn.ModuleDict({kind: nn.Linear(self.sizes[kind][0], config.dim) for kind in KINDS})
        self.teacher = nn.ModuleDict({kind: nn.Linear(self.sizes[kind][1], config.dim) for kind in KINDS})

    def prepare(self, epoch: int, generator: torch.Generator) -> None:
        super().prepare(epoch, generator)
        self.centres = {kind: each.mean(0) for kind, each in self.taught.items()}
        for kind, each in self.taught.items():
            some = each[: self.most] - self.centres[kind]
            share = int(alike(some, self.config.threshold).sum()) / max(1, len(some) * (len(some) - 1))
            if share > 0.5 and not self.warned:
                log.warning(
                    "distill 'contrastive': of pairs of %ss, %.0f %% are alike to the teacher and no contrast; "
                    "raise distill.threshold",
                    kind,
                    100 * share,
                )
                self.warned = True

    def compare(self, entities: list[Entities]) -> Tensor:
        found = []
        for each in entities:
            masked = alike(each.teacher - self.centres[each.kind], self.config.threshold)
            one, two = self.student[each.kind](each.student), self.teacher[each.kind](each.teacher)
            found.append(infonce(one, two, self.config.temperature, masked))
        return torch.stack(found).sum()


def alike(vectors: Tensor, threshold: float) -> Tensor:
    """Pairs of different rows that are no contrast, bool `[n, n]`."""
    unit = F.normalize(vectors, dim=1)
    found = unit @ unit.T > threshold if threshold < 1 else torch.zeros(len(unit), len(unit), dtype=torch.bool)
    return found.to(vectors.device).fill_diagonal_(False)


def infonce(one: Tensor, two: Tensor, temperature: float, masked: Tensor | None = None) -> Tensor:
    """Cross-entropy of row i of each `[n, D]` finding row i of the other by its cosine, averaged over both ways."""
    logits = F.normalize(one, dim=1) @ F.normalize(two, dim=1).T / temperature
    if masked is not None:
        logits = logits.masked_fill(masked, float("-inf"))
    own = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
