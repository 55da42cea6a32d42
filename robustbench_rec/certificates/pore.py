from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.certificates import certificates
from robustbench_rec.certificates._elections import Elected, Elections, chosen, histories, neighbours
from robustbench_rec.certified import CELLS, Ballot, barriers, candidates, clopper_pearson
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Full


@certificates.register
class PORE(Elected):
    """PORE: an ensemble over sub-samples of the users, robust to fake users (Jia et al., USENIX Security 2023).

    samples: T, sub-samples of `size` s users without replacement; in each, every sampled user gets `votes` N' items by
    item-kNN. alpha: the whole curve is wrong with probability alpha at most, α divided by users times items for each
    Clopper–Pearson bound. seed: of the sub-samples. The list has the items with the most votes.

    A sub-sample has no fake with probability ρ = C(n, s) / C(n + e, s); the votes of the others may be anything. So p ≥
    ρ·p̲ for an item, and Σ p ≤ ρ·Σ p̄ + min(N', c)·(s/(n + e) − ρ·s/n) for c items. The published condition compares
    with c = 1 and one larger c; here c is the best of all up to N − r + 1, which proves no less. Trains models itself:
    the checkpoint only names the data. Few sub-samples give weak bounds: T stands beside the results.
    """

    @dataclass
    class Config(Elections):
        samples: int
        size: int
        alpha: float
        seed: int

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not (config.samples >= 1 and config.size >= 1 and 0 < config.alpha < 1 and config.seed >= 0):
            raise RrecError(
                f"certify.samples={config.samples}, certify.size={config.size}, certify.alpha={config.alpha}, "
                f"certify.seed={config.seed}: samples, size >= 1, 0 < alpha < 1 and seed >= 0 are needed"
            )
        self.config = config

    def elect(self, data: Data, judging: Full, part: str) -> Ballot:
        size, owned = self.config.size, histories(data)
        if size > data.n_users:
            raise RrecError(f"certify.size={size}: dataset '{data.name}' has {data.n_users} users to sample")
        users, open_ = candidates(judging, part)
        place = torch.full((data.n_users,), -1, device=users.device).index_put_(
            (users,), torch.arange(len(users), device=users.device)
        )
        counts = torch.zeros(open_.shape, dtype=torch.int32, device=users.device)
        draw = torch.Generator().manual_seed(self.config.seed)
        for some in torch.arange(self.config.samples).split(max(1, CELLS // (size * data.n_items))):
            drawn = torch.rand(len(some), data.n_users, generator=draw).topk(size, 1).indices.to(users.device)  # [b, s]
            rows = place[drawn]
            items, voted = chosen(
                neighbours(owned[drawn], owned[drawn]), open_[rows.clamp_min(0)], self.votes
            )  # [b, s, N']
            voted &= (rows >= 0)[..., None]
            cells = (rows[..., None] * data.n_items + items)[voted]
            counts.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
        return Ballot(counts, self.config.samples, self.votes)

    def bounds(self, ballot: Ballot, n_bounds: int) -> tuple[Tensor, Tensor]:
        return clopper_pearson(ballot.n, self.config.alpha / n_bounds)

    def after(self, lower: Tensor, upper: Tensor, fakes: int, data: Data) -> tuple[Tensor, Tensor]:
        n, s = data.n_users, self.config.size
        rho = clean_share(n, s, fakes)
        room = s / (n + fakes) - rho * s / n  # the user and a fake are in the sub-sample
        return rho * lower, barriers(upper, lambda total, c: rho * total + room * c.clamp_max(self.votes))


def clean_share(n: int, s: int, fakes: int) -> float:
    """ρ: how likely a sub-sample of s among n + e users is without fakes, as a product in log space."""
    grown = torch.arange(n + 1, n + fakes + 1, dtype=torch.float64)
    return ((grown - s).log() - grown.log()).sum().exp().item()
