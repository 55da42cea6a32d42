from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import EDITS, ITEMS, edited


@noises.register
class PerturbationSimulation(Noise):
    """Small changes of the training events, others in every epoch, for a model to learn to bear (Oh et al., TKDD 2024).

    level: share of the events. ops: of which each epoch has one, drawn: delete, insert, replace. items: what is put in:
    unpopular, popular or uniform, as in `noise=history`. The batches, and the histories that a distillation reads, show
    the changed events; what a model is made of (a graph), validation and the finished model do not. As in FINEST's
    released code; there the item is the least popular one, always, and stands before the event, not behind it.
    """

    @dataclass
    class Config(Level):
        ops: list[str]
        items: str

    finished: ClassVar[bool] = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not config.ops:
            raise RrecError(f"noise.ops=[]: at least one is needed, of {', '.join(EDITS)}")
        for op in config.ops:
            if op not in EDITS:
                raise unknown("noise.ops", op, EDITS)
        if config.items not in ITEMS:
            raise unknown("noise.items", config.items, ITEMS)
        self.config = config

    def change(self, data: Data, generator: torch.Generator) -> Data:
        return data

    def shown(self, data: Data, generator: torch.Generator) -> Data:
        op = self.config.ops[int(torch.randint(len(self.config.ops), (), generator=generator))]
        places = drawn(torch.ones(len(data.train)), self.count(len(data.train)), generator)
        return edited(data, op, places, self.config.items, generator)
