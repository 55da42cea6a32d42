from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Detect, Detector
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import explicit, implicit, profiles
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError


@cleans.register
class IsolationForestDetector(Detector):
    """Isolation forest on the features that shilling leaves in profiles (Liu et al., ICDM 2008; extra `detect`).

    trees: of the forest. near: nearest users that similarity is measured with. form: clicks for length, popularity and
    its entropy, likelihood of pairs, Jaccard and burstiness; ratings for RDMA, WDMA, WDA, LengthVar, MeanVar, FMTD and
    DegSim; auto for both where there are ratings.
    """

    @dataclass
    class Config(Detect):
        trees: int
        near: int
        form: str

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not (config.trees >= 1 and config.near >= 1):
            raise RrecError(f"clean.trees={config.trees}, clean.near={config.near}: both are at least 1")

    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        try:
            from sklearn.ensemble import IsolationForest
        except ImportError:
            raise RrecError(
                "clean=isolation_forest needs the extra `detect`: pip install 'robustbench_rec[detect]'"
            ) from None
        forest = IsolationForest(n_estimators=self.config.trees, random_state=self.config.seed)
        features = self.features(data, users).numpy()
        return torch.from_numpy(-forest.fit(features).score_samples(features))

    def features(self, data: Data, users: Tensor) -> Tensor:
        """Of users `[n]`, `[n, F]`."""
        c = self.config
        there, values = profiles(data, users, c.form)
        found = {} if c.form == "ratings" else implicit(data, users, there, c.near)
        if values is not there:
            found |= explicit(there, values, c.near)
        return torch.stack([*found.values()], 1)
