"""Adversarial training: an objective at the worst point that an attack finds."""

import torch
from torch import Tensor

from robustbench_rec.ascent import Ascent
from robustbench_rec.attack import Attack
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError
from robustbench_rec.norms import Ball, budget
from robustbench_rec.objective import Objective, Scalar
from robustbench_rec.shifted import Shifted


class Adversarial(Objective):
    """clean · L(θ) + robust · L(θ + δ), where δ climbs L, the inner objective, unless `climbed` says otherwise.

    δ is a constant for the outer gradient, as in all published methods built on this. With clean > 0 the gradient of
    the clean term is the first ascent direction too, so a one-step method costs two forward and backward passes, not
    three. worst: what is taken at θ + δ instead of L.
    """

    def __init__(
        self, inner: Objective, attack: Attack, *, clean: float, robust: float, worst: Objective | None = None
    ) -> None:
        super().__init__()
        self.inner, self.attack, self.clean, self.robust, self.worst = inner, attack, clean, robust, worst

    def start_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.attack = self.attack.drawing_from(generator)

    @torch.enable_grad()
    def forward(self, at: Shifted, batch: Batch) -> Tensor:
        """With its ascent also where only the value is asked for, as by an ascent around it."""
        there = self.inner if self.worst is None else self.worst
        if not self.robust:
            return self.clean * self.inner(at, batch)  # type: ignore[no-any-return]
        climbed = self.climbed(at, batch)
        if not self.clean:
            return self.robust * there(*self.attack(at, batch, climbed))  # type: ignore[no-any-return]
        if climbed is self.inner:
            value, worse, worse_batch = self.attack.beside(at, batch, climbed)
        else:
            value, (worse, worse_batch) = self.inner(at, batch), self.attack(at, batch, climbed)
        robust: Tensor = there(worse, worse_batch)
        return self.clean * value + self.robust * robust

    def climbed(self, at: Shifted, batch: Batch) -> Scalar:
        """What δ climbs at a point with a batch."""
        return self.inner


def shares(clean_weight: float) -> tuple[float, float]:
    """Of the clean and of the robust term; RrecError where they would not be shares."""
    if not 0 <= clean_weight <= 1:
        raise RrecError(f"defense.clean_weight={clean_weight}: a share between 0 and 1")
    return clean_weight, 1 - clean_weight


def check_steps(steps: int) -> None:
    """RrecError where an inner maximisation has none."""
    if steps < 1:
        raise RrecError(f"defense.steps={steps}: at least one, else nothing is perturbed")


def weight_ascent(gamma: float, per: str, steps: int) -> Ascent:
    """The inner maximisation of AWP: every matrix moves by γ times its own norm; RrecError without a step."""
    check_steps(steps)
    ball = Ball(eps=budget("gamma", gamma), norm="l2", per=per, relative="own")
    return Ascent(surface="weight", ball=ball, steps=steps, step_size=1.0 if steps == 1 else 2.5 / steps)


MOMENTS = ("first", "second")


class AdamProxy(torch.nn.Module):
    """Ascent directions as a persistent Adam proxy gives them: the preconditioned running gradient, not today's.

    The released RAWP code steps a proxy network with Adam whose moments outlive the proxy's weights; after
    normalisation its learning rate cancels and this direction remains. Rows without a current gradient keep moving. The
    moments of a layer that a mask leaves out rest; the released code updates them all. learning: whether they take in
    the gradients that they are asked about.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.index, self.learning = {name: str(number) for number, name in enumerate(tensors)}, True
        self.register_buffer("steps", torch.zeros(len(tensors)))
        for name, each in tensors.items():
            self.register_buffer(f"first_{self.index[name]}", torch.zeros_like(each))
            self.register_buffer(f"second_{self.index[name]}", torch.zeros_like(each))

    @torch.no_grad()
    def forward(self, name: str, gradient: Tensor) -> Tensor:
        index = self.index[name]
        kept = self.get_buffer("steps")[int(index)], *(self.get_buffer(f"{moment}_{index}") for moment in MOMENTS)
        steps, first, second = kept if self.learning else [each.clone() for each in kept]
        steps += 1
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        mean, size = first / (1 - 0.9**steps), (second / (1 - 0.999**steps)).sqrt()
        return mean / (size + 1e-8)
