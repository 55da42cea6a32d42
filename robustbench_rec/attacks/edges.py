from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.attack import Attack, Scope
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Shifted
from robustbench_rec.threat import Threat


@attacks.register
class EdgeAttack(Attack):
    """Drops edges of the graph by the slope of the objective in their weights (after Zügner & Günnemann, ICLR 2019).

    share: of the edges, clicks and triples alike, that may go. steps: rounds with equal parts of them and new slopes in
    each; 1 takes all at once. Edges go whose weight lowers the objective to first order; a round that does not raise it
    is undone, and the parts are halved. Normalisation and attention are those of the graph without the edges. The paper
    perturbs while the model is trained; here it has its parameters. No edge is added.
    """

    @dataclass
    class Config:
        share: float
        steps: int

    threat: ClassVar[Threat] = Threat(
        surface="graph",
        knowledge="white-box",
        scope="all users at once",
        budget="a share of the edges",
    )

    def __init__(self, config: Config) -> None:
        if not 0 <= config.share <= 1 or config.steps < 1:
            raise RrecError(f"attack.share={config.share}, attack.steps={config.steps}: a share, and at least one step")
        self.share, self.steps = config.share, config.steps

    @property
    def passes(self) -> int:
        return self.steps + 1

    @property
    def declared(self) -> Threat:
        return replace(self.threat, budget=f"drop {self.share:g} of the edges")

    def check(self, model: RecModel) -> None:
        if not model.n_edges:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' has no graph whose edges can be weighed: nothing to drop")

    def scope(self, at: Shifted, batch: Batch) -> Scope:
        return "all"

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        count = round(self.share * at.model.n_edges)
        weights, part = torch.ones(at.model.n_edges, device=batch.users.device), -(-count // self.steps)
        value, slope = _sloped(at, weights, batch, objective)
        for _ in range(self.steps):
            gain = (-slope).masked_fill(weights == 0, -torch.inf)
            left = count - int((weights == 0).sum())
            top = gain.topk(min(part, left, int((gain > 0).sum()))).indices
            trial = weights.index_fill(0, top, 0.0)
            found, along = _sloped(at, trial, batch, objective)
            if found > value:
                weights, value, slope = trial, found, along
            else:
                part = max(1, part // 2)
        return (at.weighed(weights) if bool((weights == 0).any()) else at), batch

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Edges that went, and their share."""
        names = [name for name in worse.delta if name not in at.delta]
        old, new = at.tensors(names), worse.tensors(names)
        gone = sum(int(((new[name] == 0) & (old[name] != 0)).sum()) for name in names) // 2  # in both directions
        edges = torch.tensor([float(gone)])
        return {"edges": edges, "share": edges / at.model.n_edges}


def _sloped(at: Shifted, weights: Tensor, batch: Batch, objective: Scalar) -> tuple[Tensor, Tensor]:
    """The objective on the graph with these weights, and its slope in them."""
    leaf = weights.clone().requires_grad_()
    with torch.enable_grad():
        value = objective(at.weighed(leaf), batch)
        (slope,) = torch.autograd.grad(value, leaf)
    return value.detach(), slope
