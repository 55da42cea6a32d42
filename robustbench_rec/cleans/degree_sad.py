from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Detect, Detector, robust
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data


@cleans.register
class DegreeSAD(Detector):
    """Users whose items are unusually popular or unpopular: mean, range, upper quartile (W. Li et al., IEICE 2016).

    Suspicion is the mean of the three features' distances from the median user, in robust standard deviations. The
    paper trains a classifier on these features with labelled users; here nobody has labels. Who likes nothing has 0.
    """

    @dataclass
    class Config(Detect):
        pass

    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        train = data.train.liked()  # a refusal is no click
        owner, popularity = train.users, torch.bincount(train.items).double()[train.items]
        order = popularity.argsort(stable=True)
        order = order[owner[order].argsort(stable=True)]
        counts = torch.bincount(owner, minlength=data.n_users)[users]
        ends = counts.cumsum(0)
        line, some = popularity[order], counts > 0
        if not some.any():
            return torch.zeros(len(users), dtype=torch.double)
        first, last, counts = (ends - counts)[some], ends[some] - 1, counts[some]
        mean = torch.zeros(data.n_users, dtype=torch.double).index_add(0, owner, popularity)[users[some]] / counts
        quartile = line[first + (0.75 * counts).ceil().long() - 1]
        features = torch.stack([mean, line[last] - line[first], quartile], 1)
        return torch.zeros(len(users), dtype=torch.double).masked_scatter(some, robust(features).abs().mean(1))
