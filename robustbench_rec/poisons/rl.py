from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.factors import Factorisation, Factors, alternate, start
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import TRANSFER, profile, reach
from robustbench_rec.progress import Bar
from robustbench_rec.savepoint import Part

SWEEPS, ROUNDS = 5, 10  # of the clean surrogate; of k-means


@poisons.register
class ClusterPolicy(Shilling):
    """A policy over clusters of items, learnt from what its fake users do to a surrogate (after PoisonRec, ICDE 2020).

    REINFORCE in the place of the paper's PPO, one distribution over `clusters` of items in the place of an LSTM with a
    tree of actions: a filler is a cluster drawn by the policy and an item of it. Clusters are k-means of the item
    vectors. In each of `steps` rounds `draws` sets of fake users are made, the surrogate takes them in by one sweep
    from its clean state, and the reward is how near the targets come to the k-th item of those who lack them. The set
    with the best reward is kept. lr: of the policy, whose rewards are standardised in each round.
    """

    @dataclass
    class Config(Shill, Factorisation):
        clusters: int
        steps: int
        draws: int
        lr: float
        k: int

    config: Config
    threat = TRANSFER
    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        least = {"clusters": 2, "steps": 1, "draws": 2, "k": 1}
        low = any(getattr(config, name) < each for name, each in least.items())
        if low or config.lr <= 0 or not config.sound:
            told = ", ".join(f"{name}={getattr(config, name)}" for name in (*least, "lr", "dim", "alpha", "l2"))
            raise RrecError(
                f"poison=rl with {told}: clusters, draws >= 2, steps, k, dim >= 1, lr, l2 > 0 and alpha >= 0 are needed"
            )
        super().__init__(config)
        self.config = config

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        c, data = self.config, view.data
        users, items = start(data.n_users, data.n_items, c, draw, view.device)
        clean = alternate(view.clicks, (users, items), c, SWEEPS)
        cluster = _clusters(clean[1], min(c.clusters, data.n_items), draw)
        sizes = torch.bincount(cluster[view.open], minlength=c.clusters).clamp_min(1)
        policy = torch.zeros(c.clusters, device=view.device)
        best = view.pushed.new_zeros(view.n, view.room)
        most = torch.full((), float("-inf"), dtype=torch.double)
        parts: dict[str, Part] = {"policy": policy, "best": best, "most": most, "draw": draw}
        begun = self.savepoint.load(parts, view.device)
        with Bar("rl", total=c.steps, steps=c.draws) as bar:
            for step in range(begun, c.steps):
                shares = policy.softmax(0)
                weights = (shares / sizes)[cluster].masked_fill(~view.open, -1)
                rewards, gradients = [], []
                for _ in bar.each(step, range(c.draws)):
                    chosen = sample(weights, view.n, view.room, draw)
                    rewards.append(self._reward(view, chosen, clean))
                    if rewards[-1] > most:
                        best.copy_(chosen)
                        most.fill_(rewards[-1])
                    drawn = torch.bincount(cluster[chosen.flatten()], minlength=c.clusters).float()
                    gradients.append(drawn / max(chosen.numel(), 1) - shares)  # of the log-probability, a filler
                gain = torch.tensor(rewards, device=view.device)
                gain = (gain - gain.mean()) / gain.std().clamp_min(1e-8)
                policy += c.lr * (gain[:, None] * torch.stack(gradients)).mean(0) * c.clusters
                self.savepoint.save(step + 1, parts)
                bar.note(step, f"reward {sum(rewards) / len(rewards):.4f}, best {most.item():.4f}")
        return view.pushed[:0], best

    def _reward(self, view: View, chosen: Tensor, clean: Factors) -> float:
        clicks = torch.cat([view.clicks, profile(view, chosen)])
        users, items = alternate(clicks, clean, self.config, 1)
        return -reach(view, users[: view.data.n_users], items, self.config.k, least=0.0).item()


def _clusters(vectors: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """k-means of the rows of `[n, D]`: the cluster of each `[n]`."""
    centres = vectors[torch.randperm(len(vectors), generator=draw)[:count].to(vectors.device)]
    for _ in range(ROUNDS):
        nearest = torch.cdist(vectors, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=count)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return nearest
