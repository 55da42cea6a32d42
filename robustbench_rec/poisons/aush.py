from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons
from robustbench_rec.progress import Bar
from robustbench_rec.savepoint import Part


@poisons.register
class AUSH(Shilling):
    """Fake profiles from a generator that rewrites genuine ones, against a discriminator (Lin et al., CIKM 2020).

    Templates are the profiles of known users within a set of items: the targets and a random share of the others. The
    generator, two layers and a sigmoid, maps a template to scores; its loss is log(1 − D) of what it makes, the
    squared error to the template and the squared distance of the targets from 1. The discriminator is logistic.
    `steps` rounds of `inner` steps of Adam each, on as many templates as there are fake users, 16 at least. Fillers
    are the items with the largest scores. As in public code, where the paper has ratings; there the number of fillers
    is not bounded.
    """

    @dataclass
    class Config(Shill):
        share: float
        steps: int
        inner: int
        lr: float

    config: Config
    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        if not 0 < config.share <= 1 or config.steps < 1 or config.inner < 1 or config.lr <= 0:
            raise RrecError(
                f"poison=aush with share={config.share}, steps={config.steps}, inner={config.inner}, lr={config.lr}: "
                "share in (0, 1], steps, inner >= 1 and lr > 0 are needed"
            )
        super().__init__(config)
        self.config = config

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        c, device = self.config, view.device
        size = max(view.room, round(c.share * int(view.open.sum())))
        among = sample(torch.where(view.open, 1.0, -1.0), 1, size, draw)[0]
        profiles = view.clicks[:, torch.cat([among, view.pushed])]  # [U, S]
        generator, discriminator = _layers([profiles.shape[1]] * 3, draw), _layers([profiles.shape[1], 1], draw)
        generator.to(device)
        discriminator.to(device)
        optimizers = [torch.optim.Adam(each.parameters(), lr=c.lr) for each in (discriminator, generator)]

        def templates(count: int) -> Tensor:
            return profiles[torch.randint(len(profiles), (count,), generator=draw).to(device)]

        parts: dict[str, Part] = {"generator": generator, "discriminator": discriminator, "draw": draw}
        parts |= {f"optimizer/{number}": each for number, each in enumerate(optimizers)}
        begun = self.savepoint.load(parts, device)
        with Bar("aush", total=c.steps, steps=2 * c.inner) as bar:
            for step in range(begun, c.steps):
                for index in bar.each(step, range(2 * c.inner)):
                    real = templates(max(view.n, 16))
                    made = generator(real).sigmoid()
                    shown = discriminator(made)
                    if index < c.inner:
                        loss = F.softplus(-discriminator(real)).mean() + F.softplus(shown).mean()
                    else:
                        loss = -F.softplus(shown).mean() + (made - real).square().mean() + away(made[:, size:])
                    optimizer = optimizers[index >= c.inner]
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                self.savepoint.save(step + 1, parts)
                bar.note(step, f"loss {loss.item():.4f}")
            with torch.no_grad():
                scores = generator(templates(view.n))[:, :size]
        return view.pushed[:0], among[scores.topk(view.room, 1).indices]


def away(targets: Tensor) -> Tensor:
    """Squared distance of the scores of the targets `[N, T]` from 1, the mean over the profiles."""
    return (1 - targets).square().sum(1).mean()


def _layers(sizes: list[int], draw: torch.Generator) -> nn.Sequential:
    """Linear maps with ReLU between them, drawn from a stream."""
    layers: list[nn.Module] = []
    for first, last in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, first, last)
        for each in layer.parameters():
            nn.init.uniform_(each, -(first**-0.5), first**-0.5, generator=draw)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
