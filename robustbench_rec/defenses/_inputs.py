"""What the defences share that perturb embeddings as a model reads them."""

from torch import Tensor

from robustbench_rec.ascent import Ascent
from robustbench_rec.batch import filled
from robustbench_rec.model import RecModel
from robustbench_rec.norms import Ball
from robustbench_rec.shifted import inputs


def read(model: RecModel, ball: Ball) -> Ascent:
    """The perturbation of the embeddings that a model reads, row by row."""
    kind, names = inputs(model)
    return Ascent(surface=kind, names=tuple(names), ball=ball, steps=0)


def kept(delta: Tensor, gradient: Tensor) -> Tensor:
    """δ of the rows that reach the scores: what no score reads, padding above all, has no gradient."""
    return delta * gradient.ne(0).any(-1, keepdim=True)


def real(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Vectors of tokens or events `[n, L, D]`, none behind the length of their row `[n]`."""
    return vectors * filled(lengths, vectors.shape[1])[..., None]
