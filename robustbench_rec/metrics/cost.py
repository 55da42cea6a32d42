"""What a training takes, counted rather than timed."""

from dataclasses import replace
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from robustbench_rec.batch import Output
from robustbench_rec.catalogue import Products

BACKWARD = 2
"""Forward passes that a backward pass is worth."""


def parameters(model: nn.Module) -> int:
    """Numbers that gradient descent changes."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


class Passes:
    """Context that counts the passes of a model in training mode: a backward one as `BACKWARD` forward ones.

    A backward pass is counted where it reaches the scores, or the vectors that they are products of, whoever asks for
    the gradient. What is computed before, once for all batches (`encode`), belongs to the pass that it is computed for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.forward, self.backward = model, 0, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passes":
        """Itself: the passes of a copy of the model, such as one with more edges, count too."""
        return self

    @property
    def equivalents(self) -> int:
        """In forward passes."""
        return self.forward + BACKWARD * self.backward

    def __enter__(self) -> "Passes":
        self._handle = self.model.register_forward_hook(self._seen)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._handle.remove()

    def _seen(self, module: nn.Module, args: Any, output: Output) -> Output:
        if not module.training:
            return output
        self.forward += 1
        given = output.given
        if isinstance(given, Products):
            given = replace(given, right=given.right.view_as(given.right))  # a parameter would keep the hook
            output = replace(output, given=given)
        reached = given if isinstance(given, Tensor) else given.left if given.left.requires_grad else given.right
        if reached.requires_grad:
            reached.register_hook(self._returned)
        return output

    def _returned(self, gradient: Tensor) -> None:
        self.backward += 1
