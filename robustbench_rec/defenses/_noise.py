"""What the defences share that add random noise to embeddings as a model reads them."""

import torch
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted, inputs, surface


def embedded(model: RecModel) -> list[str]:
    """Sites of the events of histories as they are embedded; empty for a model that reads no histories."""
    kind, names = inputs(model)
    return names if model.window and kind == "activation" and "text" not in model.needs else []


def read(model: RecModel, at: Shifted, batch: Batch) -> dict[str, Tensor]:
    """What a model reads of a batch: its embedded events, each by itself, or else the rows of its embedding tables."""
    names = embedded(model)
    if names:
        return at.activations(names, batch)
    tables = at.tensors(surface(model, "embedding"))
    return {name: each.detach() for name, each in tables.items()}


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers in [−1, 1]."""
    return (torch.rand(like.shape, generator=generator) * 2 - 1).to(like)


def real(noise: Tensor, batch: Batch) -> Tensor:
    """Noise of events `[B, L, D]`, none where there is no event."""
    return noise if batch.history is None or noise.ndim < 3 else noise * batch.history.real[..., None]
