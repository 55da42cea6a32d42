import logging
from dataclasses import dataclass, replace

import torch

from robustbench_rec.data import Data
from robustbench_rec.noise import Level, Noise, drawn
from robustbench_rec.noises import noises
from robustbench_rec.noises._events import added, inserted, spared, with_train

log = logging.getLogger(__name__)


@noises.register
class LabelFlip(Noise):
    """Wrong labels of training events; in data of positives alone, false positives in the place of true ones.

    level: share of the events. Where clicks have labels, 1 becomes 0 and 0 becomes 1. Else so many events are dropped,
    and as many are added: copies of random events, which stand where these do, with an item, uniform, that the user has
    in no part. A warning says where fewer can be. Valid and test stay. What was flipped or added is marked in
    `train/noise` of the ground truth.
    """

    @dataclass
    class Config(Level):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def change(self, data: Data, generator: torch.Generator) -> Data:
        train, count = data.train, self.count(len(data.train))
        free = (~spared(data, generator)).float()
        gone = drawn(free, count, generator)
        if len(gone) < count:
            log.warning("noise label_flip: %d of %d events are wrong, every user keeps one", len(gone), count)
        noise = torch.zeros(len(train), dtype=torch.bool)
        noise[gone] = True
        if len(train.liked()) < len(train):
            values = torch.where(noise, 1 - train.values, train.values)
            return with_train(data, replace(train, values=values), torch.arange(len(train)), noise)
        kept = (~noise).nonzero().squeeze(1)
        base = torch.randint(len(train), (len(gone),), generator=generator)
        false, origin = added(data, base, torch.ones(data.n_items), generator)
        return inserted(data, kept, false, origin)
