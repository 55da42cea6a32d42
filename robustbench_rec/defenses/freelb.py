from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.ascent import climb, zeros
from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.defenses._inputs import kept, read
from robustbench_rec.defenses._masks import Masks
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.objective import Objective, known
from robustbench_rec.shifted import Delta, Shifted


@defenses.register
class FreeLB(Objective):
    """Free large-batch training: the mean of L(θ + δ) over an ascent in the embeddings (Zhu et al., ICLR 2020).

    Every step's pass serves twice, for the next δ and for the gradient in θ. δ is on each token or event as it is read,
    where a model reads such, and never on padding; else on the rows of the embedding tables. eps: l2 radius of each
    row, of its own norm with relative=own, absolute with no; the paper's ball is around a whole sentence. start: size
    of the random start in radii, 0 to begin at θ itself, which makes the first pass a clean one. steps: passes, K.
    step_size: in radii. All passes over a batch have the same dropout masks, as in the paper.
    """

    @dataclass
    class Config:
        eps: float
        relative: str
        start: float
        steps: int
        step_size: float

    def __init__(self, config: Config, inner: Objective, model: RecModel) -> None:
        if config.steps < 1 or config.step_size <= 0 or not 0 <= config.start <= 1:
            raise RrecError(
                f"defense.steps={config.steps}, step_size={config.step_size}, start={config.start}: steps >= 1, "
                "step_size > 0 and start in [0, 1] are needed"
            )
        super().__init__()
        self.config, self.inner = config, inner
        self.noise = read(model, Ball(eps=config.eps, norm="l2", per="row", relative=config.relative))

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.generator = generator

    @torch.enable_grad()
    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        ball, base, masks = self.noise.ball, self.noise.base(at, batch), Masks(at, batch)
        radii = self.noise.radii(base)
        delta = self._start(at, batch, base, radii)
        weights = [each for each in (*at.model.parameters(), *at.delta.values()) if each.requires_grad]
        sums: dict[int, Tensor] = {}
        total = torch.zeros((), device=batch.users.device)
        for _ in range(self.config.steps):
            leaves = {name: each.detach().requires_grad_() for name, each in delta.items()}
            masks.again()
            value = self.inner(at.shift(leaves), batch)
            found = torch.autograd.grad(value, [*leaves.values(), *weights], allow_unused=True)
            for place, each in enumerate(found[len(leaves) :]):
                if each is not None:
                    sums[place] = sums[place] + each if place in sums else each
            total = total + value.detach()
            for (name, before), gradient in zip(leaves.items(), found, strict=False):
                if gradient is not None:
                    step = ball.steepest(gradient, self.config.step_size * radii[name])
                    delta[name] = kept(ball.project(before.detach() + step, radii[name]), gradient)
        steps = self.config.steps
        return known(total / steps, [weights[place] for place in sums], [each / steps for each in sums.values()])

    def _start(self, at: Shifted, batch: Batch, base: Delta, radii: Delta) -> dict[str, Tensor]:
        delta = zeros(base)
        if self.config.start:
            _, found = climb(at, batch, self.inner, delta)
            for name, gradient in found.items():
                if gradient is not None:
                    drawn = self.config.start * radii[name] * self.noise.ball.inside(base[name], self.generator)
                    delta[name] = kept(drawn, gradient)
        return delta
