from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.clean import Detect, Detector
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import nearest, profiles
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError


@cleans.register
class DenseBlock(Detector):
    """Groups who have more items in common than their lengths and the items' popularity explain.

    How much two users share is the cosine of the Pearson residuals √((1 − π)/π) of what they have, where π, the chance
    that a user has an item, is the number of the user's items times the item's share of all pairs. Suspicion is the
    `group`-1-th largest of a user's values: what somebody shares with a whole group of that size at least, not with one
    friend. window: seconds, only the same item in the same stretch of time counts (null: at any time). Own
    construction, for the co-rating rule of group detection. It is for fake users who copy each other: those with random
    fillers are less alike than people are.
    """

    @dataclass
    class Config(Detect):
        group: int
        window: int | None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.group < 2 or (config.window is not None and config.window < 1):
            raise RrecError(f"clean.group={config.group}, clean.window={config.window}: group >= 2, window >= 1 needed")

    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        there, _ = profiles(self._tokens(data), users, "clicks")
        there = there[:, there.sum(0) > 1]  # what one user has is shared with nobody
        lengths = profiles(data, users, "clicks")[0].sum(1)
        chance = lengths[:, None] * there.sum(0) / lengths.sum()
        chance = chance.clamp(1e-12, 1 - 1e-3)
        residual = there * ((1 - chance) / chance).sqrt()
        unit = F.normalize(residual, dim=1)
        return nearest(unit @ unit.T, self.config.group - 1)[:, -1]

    def _tokens(self, data: Data) -> Data:
        """The data with an item in a stretch of time in the place of the item."""
        if self.config.window is None:
            return data
        if data.train.times is None:
            raise RrecError(f"clean.window={self.config.window}: dataset '{data.name}' has no times; use window=null")
        slot = torch.div(data.train.times - data.train.times.min(), self.config.window, rounding_mode="floor")
        _, code = torch.unique(data.train.items * (int(slot.max()) + 1) + slot, return_inverse=True)
        shared = torch.bincount(code)[code] > 1
        _, kept = torch.unique(code[shared], return_inverse=True)
        train = replace(data.train.where(shared), items=kept)
        ids = [str(each) for each in range(int(kept.max()) + 1 if len(kept) else 1)]
        return replace(data, train=train, item_ids=ids)
