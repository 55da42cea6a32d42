"""Passes through a model that have their dropout in common."""

from dataclasses import replace

import torch
from torch import nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.dropout import Dropout
from robustbench_rec.shifted import Shifted


class Masks:
    """Scores a batch at several points with the same dropout masks, so that nothing but the points makes a difference.

    With masks of their own, how far two points are apart is mostly how far two draws are: that is `rdrop`.
    """

    def __init__(self, at: Shifted, batch: Batch) -> None:
        kinds = (Dropout, nn.Dropout)
        self.drops = at.model.training and any(isinstance(each, kinds) and each.p for each in at.model.modules())
        self.device, self.state = batch.users.device, torch.get_rng_state()
        self.on_device = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def __call__(self, at: Shifted, batch: Batch) -> Output:
        if not self.drops:
            return at(batch)
        self.again()
        return replace(at)(batch)  # with an `encode()` of its own, which draws masks too

    def again(self) -> None:
        """What is scored next at a point that has encoded nothing yet has these masks."""
        if not self.drops:
            return
        torch.set_rng_state(self.state)
        if self.on_device is not None:
            torch.cuda.set_rng_state(self.on_device, self.device)
