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
    """Genuine profiles that a generator patches, against a discriminator (Lin et al., CIKM 2020).

    A fake user takes a random part of the events of a known user, the template, who is drawn from those with as many
    as there is room for (from those with the most where nobody has), and those of the `selected` most popular items
    that the generator gives with a score above 1/2. Generator and discriminator are networks with one and two hidden
    layers of `dim`; both read the template, the latter with the patch. The generator's loss is −log D of what it makes,
    the squared error to the template's own clicks on the selected items, where those without a click count `zeros`,
    and the squared distance of its scores from 1. `steps` rounds of `inner` steps of Adam each, on as many templates as
    there are fake users, 16 at least. Differences: the patch of the paper is ratings, here it is clicks, and ratings
    are drawn as for other fillers; zeros are weighted, not drawn; not segments of users, but all are attacked.
    """

    @dataclass
    class Config(Shill):
        selected: int
        dim: int
        zeros: float
        steps: int
        inner: int
        lr: float

    config: Config
    rates = ("highest", "item")

    def __init__(self, config: Config) -> None:
        least = {"selected": 1, "dim": 1, "steps": 1, "inner": 1}
        if any(getattr(config, name) < each for name, each in least.items()) or config.zeros < 0 or config.lr <= 0:
            told = ", ".join(f"{name}={getattr(config, name)}" for name in (*least, "zeros", "lr"))
            raise RrecError(f"poison=aush with {told}: zeros >= 0, lr > 0 and the others >= 1 are needed")
        super().__init__(config)
        self.config = config

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        c, device = self.config, view.device
        if not view.room:
            return view.pushed[:0], view.pushed.new_empty(view.n, 0)
        selected = view.counts.masked_fill(~view.open, -1).topk(min(c.selected, view.room)).indices  # [S]
        room = view.room - len(selected)
        others = view.clicks.masked_fill(~view.open.index_fill(0, selected, False), 0)
        sizes = others.sum(1)
        among = (sizes >= sizes.max().clamp_max(room)).nonzero()[:, 0]
        generator = _layers([view.data.n_items, c.dim, len(selected)], draw).to(device)
        discriminator = _layers([view.data.n_items, c.dim, c.dim, 1], draw).to(device)
        optimizers = [torch.optim.Adam(each.parameters(), lr=c.lr) for each in (discriminator, generator)]

        def templates(count: int) -> tuple[Tensor, Tensor, Tensor]:
            """Items `[count, room]`, -1 for none, the same as 0/1 `[count, n_items]`, and the clicks on selected."""
            users = among[torch.randint(len(among), (count,), generator=draw).to(device)]
            there = others[users]
            items = sample(torch.where(there > 0, 1.0, -1.0), count, room, draw)
            taken = there.gather(1, items)
            kept = torch.zeros_like(there).scatter_(1, items, taken)
            return torch.where(taken > 0, items, -1), kept, view.clicks[users][:, selected]

        parts: dict[str, Part] = {"generator": generator, "discriminator": discriminator, "draw": draw}
        parts |= {f"optimizer/{number}": each for number, each in enumerate(optimizers)}
        begun = self.savepoint.load(parts, device)
        with Bar("aush", total=c.steps, steps=2 * c.inner) as bar:
            for step in range(begun, c.steps):
                for index in bar.each(step, range(2 * c.inner)):
                    _, kept, own = templates(max(view.n, 16))
                    patch = generator(kept).sigmoid()  # [N, S]
                    shown = discriminator(kept.index_copy(1, selected, patch))
                    if index < c.inner:
                        real = discriminator(kept.index_copy(1, selected, own))
                        loss = F.softplus(-real).mean() + F.softplus(shown).mean()
                    else:
                        loss = F.softplus(-shown).mean() + patched(patch, own, c.zeros)
                    optimizer = optimizers[index >= c.inner]
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                self.savepoint.save(step + 1, parts)
                bar.note(step, f"loss {loss.item():.4f}")
            with torch.no_grad():
                items, kept, _ = templates(view.n)
                given = torch.where(generator(kept) > 0, selected, -1)
        return view.pushed[:0], torch.cat([items, given], 1)


def patched(patch: Tensor, own: Tensor, zeros: float) -> Tensor:
    """Squared errors of scores `[N, S]`: to the template's clicks, times `zeros` where it has none, and to 1."""
    weight = torch.where(own > 0, 1.0, zeros)
    return (weight * (patch - own).square() + (1 - patch).square()).mean()


def _layers(sizes: list[int], draw: torch.Generator) -> nn.Sequential:
    """Linear maps with ReLU between them, drawn from a stream."""
    layers: list[nn.Module] = []
    for first, last in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, first, last)
        for each in layer.parameters():
            nn.init.uniform_(each, -(first**-0.5), first**-0.5, generator=draw)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
