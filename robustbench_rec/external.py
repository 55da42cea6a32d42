"""Recommenders that are not ours, behind one function, so that attacks which see scores can judge them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.model import Encoded, RecModel
from robustbench_rec.shifted import Site

Score = Callable[[NDArray[Any], NDArray[Any] | None], NDArray[Any]]
"""(rows that describe users `[B, D]`, items `[B, C]` or None for all) -> scores `[B, C]`, larger is better."""


class External(RecModel):
    """Any recommender as a model: judged, and attacked through what describes its users, without gradients.

    score: see `Score`; it is called with float32 rows and int64 items. users: `[n_users, D]`, what the recommender
    reads of each user: a row of clicks, features, a vector. The rows of a batch are the activation surface `rows`, so
    each user has a perturbation of its own. RrecError where the scores have another shape.
    """

    def __init__(self, score: Score, users: Tensor) -> None:
        super().__init__()
        self.score = score
        self.rows = Site()
        self.register_buffer("feature_user", users.float())

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        rows = self.rows(self.get_buffer("feature_user")[batch.users])  # [B, D]
        items = None if batch.items is None else batch.items.cpu().numpy()
        found = np.asarray(self.score(rows.detach().cpu().numpy(), items))
        width = found.shape[-1] if items is None else items.shape[1]
        if found.shape != (len(rows), width):
            raise RrecError(f"score(users, items) gave {found.shape} for {len(rows)} users and {width} items each")
        return Output(torch.from_numpy(found.astype(np.float32)).to(rows.device))
