from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Detect, Detector
from robustbench_rec.cleans import cleans
from robustbench_rec.cleans._profiles import profiles
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError


@cleans.register
class PCAVarSelect(Detector):
    """PCA-VarSelect: users who add least to the main components of the user covariance (Mehta & Nejdl, UMUAI 2009).

    components: number of eigenvectors of Z Zᵀ, where Z holds the z-scores of each user's row over all items, an item
    that the user does not have being 0 before. Suspicion is −Σ loading². form: clicks or ratings as values, auto for
    ratings where there are any. Profiles that correlate with nobody look the same to it as fake ones.
    """

    @dataclass
    class Config(Detect):
        components: int
        form: str

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.components < 1:
            raise RrecError(f"clean.components={config.components}: must be at least 1")

    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        if self.config.components >= len(users):
            raise RrecError(
                f"clean.components={self.config.components}: fewer than the {len(users)} users; with all, none differs"
            )
        _, values = profiles(data, users, self.config.form)
        centred = values - values.mean(1, keepdim=True)
        z = centred / values.std(1, correction=0, keepdim=True).clamp_min(1e-12)
        _, vectors = torch.linalg.eigh(z @ z.T)  # by rising eigenvalue
        loadings: Tensor = vectors[:, -self.config.components :].square().sum(1)
        return -loadings
