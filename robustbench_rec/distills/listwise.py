from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.distills import distills
from robustbench_rec.errors import RrecError
from robustbench_rec.histories import Histories
from robustbench_rec.objective import Objective
from robustbench_rec.shifted import Shifted

CELLS = 2**25


@distills.register
class Listwise(Objective):
    """Listwise distillation: (1 − w) · L + w · T² KL(teacher ‖ student) over a list for each user of the batch.

    The list is the teacher's `top` items that the user has no training event with (fewer where a user has fewer), and
    `uniform` random ones, drawn anew every epoch. weight: w. temperature: T. standardise: z-score each list of scores
    first, since the scale of dot products is arbitrary (logit standardisation). A standard form (ListNet with softmax
    lists), not one paper's method.
    """

    @dataclass
    class Config:
        weight: float
        temperature: float
        top: int
        uniform: int
        standardise: bool

    def __init__(self, config: Config, inner: Objective, teacher: Shifted, data: Data) -> None:
        if not 0 <= config.weight <= 1 or config.temperature <= 0 or config.top < 1 or config.uniform < 0:
            raise RrecError(
                f"distill.weight={config.weight}, temperature={config.temperature}, top={config.top}, uniform="
                f"{config.uniform}: weight in [0, 1], temperature > 0, top >= 1 and uniform >= 0 are needed"
            )
        if config.top + config.uniform < 2:
            raise RrecError("distill.top=1, uniform=0: a list has at least two items")
        super().__init__()
        self.config, self.inner, self.teacher, self.n_items = config, inner, teacher, data.n_items
        self.histories = Histories(data.train.liked(), n_users=data.n_users, n_items=data.n_items)
        self.top = _top(teacher, data, self.histories, config.top)  # [n_users, top]

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        drawn = torch.randint(self.n_items, (len(self.top), self.config.uniform), generator=generator)
        self.lists = torch.cat([self.top, drawn.to(self.top.device)], 1)
        with torch.no_grad():
            rows = torch.arange(len(self.lists), device=self.lists.device).split(max(1, CELLS // self.n_items))
            self.taught = torch.cat([self._ask(self.teacher, row).scores for row in rows])

    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        if not self.config.weight:
            return self.inner(at, batch)  # type: ignore[no-any-return]
        users = torch.unique(batch.users)
        student = self._ask(at, users).scores.float()
        divergence = F.kl_div(
            self._logits(student).log_softmax(1), self._logits(self.taught[users]).softmax(1), reduction="batchmean"
        )
        kept = (1 - self.config.weight) * self.inner(at, batch) if self.config.weight < 1 else 0.0
        return kept + self.config.weight * self.config.temperature**2 * divergence

    def _ask(self, at: Shifted, users: Tensor) -> Output:
        return at(self.histories.question(users, self.lists[users], at.model.window))

    def _logits(self, scores: Tensor) -> Tensor:
        if self.config.standardise:
            scores = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp_min(1e-6)
        return scores / self.config.temperature


@torch.no_grad()
def _top(teacher: Shifted, data: Data, histories: Histories, k: int) -> Tensor:
    """The teacher's best items for every user, without the training items."""
    device = data.train.users.device
    keys = torch.unique(data.train.users * data.n_items + data.train.items)
    owners, items = keys // data.n_items, keys % data.n_items
    free = data.n_items - int(torch.bincount(owners, minlength=data.n_users).max())
    best = []
    for users in torch.arange(data.n_users, device=device).split(max(1, CELLS // data.n_items)):
        scores = teacher(histories.question(users, None, teacher.model.window)).scores.float().clone()
        inside = (owners >= users[0]) & (owners <= users[-1])
        scores[owners[inside] - users[0], items[inside]] = float("-inf")
        best.append(scores.topk(min(k, free), 1).indices)
    return torch.cat(best)
