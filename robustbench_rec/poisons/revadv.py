from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.poison import View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import Search, Searching, trained


@poisons.register
class RevAdv(Searching):
    """Bi-level poisoning through the unrolled last sweeps of a surrogate's training (Tang, Wen & Wang, RecSys 2020).

    The surrogate is the paper's WMF-ALS, trained anew in every outer step. The loss is the cross-entropy of the
    targets among all items, over the known users who lack one. The released code binarises the profiles by a threshold
    and goes on from there, keeps the best profiles by a measure of the step before, and begins every surrogate from
    one seed; here z goes on, the measure is that of the same profiles, and every outer step has a start of its own.
    """

    @dataclass
    class Config(Search):
        pass

    def loss(self, view: View, fakes: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.shill.seed + 1_000_003 * step)
        users, items = trained(view, fakes, self.config, generator)
        scores = users @ items.T  # [U, n_items]
        wanted = 1 - view.clicks[:, view.pushed]
        told = scores[:, view.pushed] - scores.logsumexp(1, keepdim=True)
        return -(told * wanted).sum() / wanted.sum().clamp_min(1)
