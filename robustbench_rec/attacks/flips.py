from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.ascent import Perturbation, chosen, higher, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted, label, surface
from robustbench_rec.threat import Threat

DIRECTIONS = ("add", "remove", "both")


@attacks.register
class Flips(Perturbation):
    """Random search over rows of zeros and ones, such as clicks, that sees scores alone: at most `edits` of each flip.

    Every query proposes one flip a row, and takes one back where the row has spent its edits; what raises the loss is
    kept. direction: add (0 becomes 1), remove, or both. queries: evaluations.
    """

    @dataclass
    class Config:
        surface: str
        modules: list[str] | None
        edits: int
        direction: str
        queries: int
        seed: int

    threat: ClassVar[Threat] = Threat(
        surface="feature | activation",
        knowledge="score",
        scope="all users at once; each user for activations of its own",
        budget="number of flipped entries of each row; queries",
    )

    def __init__(self, config: Config) -> None:
        if config.direction not in DIRECTIONS or config.edits < 0 or config.queries < 1:
            raise RrecError(
                f"flips with direction={config.direction}, edits={config.edits}, queries={config.queries}: "
                f"direction is one of {', '.join(DIRECTIONS)}, edits >= 0, queries >= 1"
            )
        modules = None if config.modules is None else tuple(config.modules)
        ball = Ball(eps=float(config.edits) ** 0.5, norm="l2", per="row", relative="no")
        super().__init__(surface=config.surface, modules=modules, ball=ball, seed=config.seed)
        self.edits, self.direction, self.queries = config.edits, config.direction, config.queries

    @property
    def declared(self) -> Threat:
        budget = f"{self.edits} flips ({self.direction}) of each row; {self.queries} queries"
        return replace(super().declared, budget=budget)

    @property
    def passes(self) -> int:
        return 1 + self.queries

    def check(self, model: RecModel) -> None:
        super().check(model)
        if self.surface != "activation":
            _binary(Shifted(model).tensors(surface(model, self.surface, self.modules)))

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base, generator = self.base(at, batch), self.stream(batch)
        _binary(base)
        best, best_value = zeros(base), objective(at, batch)
        for _ in range(self.queries if self.edits else 0):
            moved = {name: self._proposed(base[name], each, generator) for name, each in best.items()}
            value = objective(at.shift(moved), batch)
            best, best_value = chosen(higher(value, best_value), moved, best), torch.fmax(value, best_value)
        return at.shift(best), batch

    def spent(self, at: Shifted, worse: Shifted, batch: Batch, changed: Batch, objective: Scalar) -> dict[str, Tensor]:
        """Flips of each row."""
        delta = [worse.delta[name] - at.delta.get(name, 0) for name in self.base(at, batch)]
        return {"flips": torch.cat([each.abs().sum(-1).flatten() for each in delta])}

    def _proposed(self, base: Tensor, delta: Tensor, generator: torch.Generator) -> Tensor:
        """One more flip in each row; in a row that has spent its edits one of them is taken back for it."""
        flipped = delta != 0
        open_ = {"add": base == 0, "remove": base == 1, "both": torch.ones_like(flipped)}[self.direction] & ~flipped
        full = flipped.sum(-1, keepdim=True) >= self.edits
        back = self._one(flipped, generator) & full
        new = self._one(open_, generator)
        flipped = (flipped & ~back) | new
        return flipped * (1 - 2 * base)

    def _one(self, among: Tensor, generator: torch.Generator) -> Tensor:
        """One of the marked entries of each row, where there is one."""
        drawn = torch.rand(among.shape, generator=generator, device=generator.device).to(among.device)
        drawn = drawn.masked_fill(~among, -1.0)
        return (drawn == drawn.amax(-1, keepdim=True)) & among


def _binary(tensors: Delta) -> None:
    """RrecError where one of them holds other numbers than 0 and 1."""
    for name, each in tensors.items():
        if not bool(((each == 0) | (each == 1)).all()):
            raise RrecError(f"attack 'flips': {label(name)} holds other numbers than 0 and 1")
