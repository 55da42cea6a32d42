from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_rec.ascent import SCORED, Base, Budget, Perturbation, chosen, higher, zeros
from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.objective import Scalar
from robustbench_rec.shifted import Delta, Shifted
from robustbench_rec.threat import Threat

HALVED = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where the share of coordinates is halved


@attacks.register
class Square(Perturbation):
    """Square attack: random search on the edge of the ball that sees scores, not gradients (ECCV 2020).

    Andriushchenko et al., for vectors that are no images: in each unit a random block of the coordinates gets new signs
    (linf: ±eps; l2: its share of the norm and that of another block, which becomes 0, spread evenly over it); what
    raises the loss is kept, for all users or row by row. queries: evaluations. share: of the coordinates in the first
    block, halved on the published schedule.
    """

    @dataclass
    class Config(Budget):
        queries: int
        share: float

    threat: ClassVar[Threat] = SCORED

    def __init__(self, config: Config) -> None:
        if config.queries < 1 or not 0 < config.share <= 1:
            told = f"queries={config.queries}, share={config.share}"
            raise RrecError(f"square with {told}: queries >= 1 and share in (0, 1] are needed")
        super().__init__(**config.ascent())
        self.queries, self.share = config.queries, config.share

    @property
    def declared(self) -> Threat:
        return replace(super().declared, budget=f"{self.ball}; {self.queries} queries")

    @property
    def passes(self) -> int:
        return 2 + self.queries

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        base, generator = self.base(at, batch), self.stream(batch)
        radii = self.radii(base)
        best, best_value = zeros(base), objective(at, batch)
        for query in range(1 + self.queries):
            share = self.share * 0.5 ** sum(query > mark * self.queries / 10_000 for mark in HALVED) if query else 1.0
            delta = self._proposed(best, base, radii, share, generator)
            value = objective(at.shift(delta), batch)
            best, best_value = chosen(higher(value, best_value), delta, best), torch.fmax(value, best_value)
        return at.shift(best), batch

    def _proposed(
        self, best: Delta, base: Base, radii: Delta, share: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        found = {}
        for name, each in best.items():
            drawn = torch.rand(each.shape, generator=generator, device=generator.device).to(each.device)
            real = base.real.get(name)
            block = self._block(drawn, share, real)
            other = self._block(drawn.masked_fill(block, 2.0), share, real) & ~block
            new = self._new(each, radii[name], block, other, generator)
            found[name] = self.ball.project(new, radii[name])  # rounding may have left it
        return found

    def _block(self, drawn: Tensor, share: float, real: Tensor | None) -> Tensor:
        """The ⌈share · d⌉ coordinates of each unit with the smallest of the drawn numbers; d: those of real places."""
        dims = self.ball.dims(drawn)
        flat = drawn.flatten(dims[0] % drawn.ndim) if len(dims) < drawn.ndim else drawn.flatten()
        if real is not None and len(dims) > 1:
            there = real.expand(drawn.shape).reshape(flat.shape)
            counts = (share * there.sum(-1, keepdim=True)).ceil().clamp_min(1)
            place = flat.masked_fill(~there, 3.0).argsort(-1).argsort(-1)
            return ((place < counts) & there).view(drawn.shape)
        count = max(1, -(-int(share * 1000 * flat.shape[-1]) // 1000))
        edge = flat.kthvalue(min(count, flat.shape[-1]), dim=-1, keepdim=True).values
        return (flat <= edge).view(drawn.shape)

    def _new(self, delta: Tensor, radius: Tensor, block: Tensor, other: Tensor, generator: torch.Generator) -> Tensor:
        """δ with a block drawn anew, on the edge of the ball; in l2 at the cost of another one."""
        signs = torch.rand(delta.shape, generator=generator, device=generator.device).to(delta.device).sub(0.5).sign()
        if self.ball.norm == "linf" or self.ball.per == "element":
            return torch.where(block, radius * signs, delta)
        dims = self.ball.dims(delta)
        within = (delta * (block | other)).square().sum(dims, keepdim=True)
        free = (radius.square() - delta.square().sum(dims, keepdim=True)).clamp_min(0)
        height = ((within + free) / block.sum(dims, keepdim=True).clamp_min(1)).sqrt()
        return torch.where(block, height * signs, delta.masked_fill(other, 0.0))
