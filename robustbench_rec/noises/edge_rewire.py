from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise, cycle, drawn, pairs, repeated
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import REDRAWS, checked, weights, with_train


@noises.register
class EdgeRewire(Noise):
    """Edges of the interaction graph that end at each other's items, so that no degree changes.

    level: share of the training events. bias: none, or degree for edges in proportion to the degrees of both ends,
    multiplied. Edges that would end at an item that their user has in some part are dealt again; the few for which that
    does not help stay what they were. Rewired edges are marked in `train/noise` of the ground truth. Valid and test
    stay.
    """

    @dataclass
    class Config(Level):
        bias: str

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        checked(config.bias)
        self.bias = config.bias

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train = data.train
        chosen = drawn(weights(data, self.bias), self.count(len(train)), generator)
        items, noise = train.items.clone(), torch.zeros(len(train), dtype=torch.bool)
        known = torch.cat([pairs(data.part(each), data) for each in ("train", "valid", "test")])
        users, dealt = train.users[chosen], train.items[chosen][cycle(len(chosen), generator)]
        for _ in range(REDRAWS):
            wrong = repeated(users * data.n_items + dealt, known).nonzero().squeeze(1)
            if not len(wrong):
                break
            again = torch.cat([wrong, torch.randint(len(chosen), (len(wrong),), generator=generator)]).unique()
            dealt[again] = dealt[again][cycle(len(again), generator)]
        dealt = _undone(train.items[chosen], dealt, users * data.n_items, known)
        items[chosen], noise[chosen] = dealt, dealt != train.items[chosen]
        return with_train(data, replace(train, items=items), torch.arange(len(train)), noise)


def _undone(before: Tensor, after: Tensor, base: Tensor, known: Tensor) -> Tensor:
    """Items as they were where they would repeat a pair."""
    return torch.where(repeated(base + after, known), before, after)
