from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.factors import Factorisation, misfit, start
from robustbench_rec.poison import Shill, Shilling, View
from robustbench_rec.poisons import poisons
from robustbench_rec.poisons._search import TRANSFER, profile, reach
from robustbench_rec.progress import Bar
from robustbench_rec.savepoint import Part


@poisons.register
class DLAttack(Shilling):
    """Fake users one by one, filled by a model that is trained to spread the targets (Huang et al., NDSS 2021).

    The poison model is weighted matrix factorisation whose loss has weight times the gap that `reach` measures added.
    A fake user begins with the pushed items alone; after `steps` more steps of Adam with rate surrogate_lr its fillers
    are the items with the largest score times p_i, and p_i of those is multiplied by decay, p starting again at 1 once
    all are below. Differences: `warm` steps before the first fake user and the model goes on from one to the next,
    where the paper trains anew; scores are moved to begin at 0 before they are multiplied.
    """

    @dataclass
    class Config(Shill, Factorisation):
        surrogate_lr: float
        warm: int
        steps: int
        weight: float
        decay: float
        k: int

    config: Config
    threat = TRANSFER
    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        counts = min(config.steps, config.warm, config.k) >= 1
        if not (counts and 0 < config.decay <= 1 and config.surrogate_lr > 0 and config.weight >= 0 and config.sound):
            named = ("steps", "warm", "k", "decay", "surrogate_lr", "weight", "dim", "alpha", "l2")
            told = ", ".join(f"{name}={getattr(config, name)}" for name in named)
            raise RrecError(
                f"poison=dlattack with {told}: steps, warm, k, dim >= 1, decay in (0, 1], surrogate_lr, l2 > 0 and "
                "weight, alpha >= 0 are needed"
            )
        super().__init__(config)
        self.config = config

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        c, data = self.config, view.data
        users, items = start(data.n_users + view.n, data.n_items, c, draw, view.device)
        optimizer = torch.optim.Adam([users.requires_grad_(), items.requires_grad_()], lr=c.surrogate_lr)
        chosen, likely = view.pushed.new_zeros(view.n, view.room), torch.ones(data.n_items, device=view.device)
        parts: dict[str, Part] = {"users": users, "items": items, "optimizer": optimizer}
        parts |= {"chosen": chosen, "likely": likely}
        begun = self.savepoint.load(parts, view.device)
        clicks = torch.cat([view.clicks, profile(view, chosen[:begun]), profile(view, chosen[begun:, :0])])
        with Bar("dlattack", total=view.n, steps=c.steps) as bar:
            for row in range(begun, view.n):
                known = clicks[: data.n_users + row + 1]
                for _ in bar.each(row, range(c.steps if row else c.warm)):
                    rows = users[: len(known)]
                    gap = reach(view, rows[: data.n_users], items, c.k, least=0.0)
                    optimizer.zero_grad()
                    (misfit(known, (rows, items), c) + c.weight * gap).backward()
                    optimizer.step()
                scores = (users[data.n_users + row] @ items.T).detach()
                scores = (scores - scores.min()) * likely
                chosen[row] = scores.masked_fill(~view.open, float("-inf")).topk(view.room).indices
                clicks[data.n_users + row, chosen[row]] = 1
                likely[chosen[row]] *= c.decay
                if bool((likely[view.open] < 1).all()):
                    likely.fill_(1)
                self.savepoint.save(row + 1, parts)
                bar.note(row, f"{row + 1} fake users")
        return view.pushed[:0], chosen
