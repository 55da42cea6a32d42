from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons


@poisons.register
class LoveHate(Shilling):
    """Targets with the lowest rating beside random items with the highest: a nuke attack (Mobasher et al., TOIT 2007).

    With feedback=clicks fake users click the rivals of the targets, as every nuke then does.
    """

    @dataclass
    class Config(Shill):
        pass

    rates = ("highest", "highest")

    def __init__(self, config: Config) -> None:
        if config.direction != "nuke":
            raise RrecError(f"poison=love_hate with direction={config.direction}: it is for direction=nuke")
        super().__init__(config)

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        weights = torch.where(view.open, 1.0, -1.0)
        return view.pushed[:0], sample(weights, view.n, view.room, draw)
