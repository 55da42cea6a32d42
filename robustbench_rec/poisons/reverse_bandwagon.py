from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.poison import Shill, Shilling, View, sample
from robustbench_rec.poisons import poisons

POPULAR = 0.2  # share of the items with an event


@poisons.register
class ReverseBandwagon(Shilling):
    """Targets beside widely disliked items, all with the lowest rating: a nuke attack (Mobasher et al., TOIT 2007).

    disliked: number of these items, those with the lowest mean rating among the fifth of the items with the most
    events. Fillers are drawn uniformly, with ratings like those of all items. With feedback=clicks nothing can be
    disliked: fake users click the rivals of the targets, as every nuke then does, beside the same items.
    """

    @dataclass
    class Config(Shill):
        disliked: int

    rates = ("lowest", "overall")

    def __init__(self, config: Config) -> None:
        if config.direction != "nuke" or config.disliked < 1:
            raise RrecError(
                f"poison=reverse_bandwagon with direction={config.direction}, disliked={config.disliked}: it is for "
                "direction=nuke, disliked >= 1"
            )
        super().__init__(config)
        self.disliked = config.disliked

    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        train = view.data.train
        events = torch.bincount(train.items, minlength=view.data.n_items).float()  # the disliked ones too
        counts = events.masked_fill(~view.open, -1)
        size = max(min(self.disliked, view.room), round(POPULAR * int((counts > 0).sum())))
        among = counts.topk(size).indices
        sums = torch.zeros_like(counts).index_add_(0, train.items, train.values)
        means = (sums / events.clamp_min(1))[among]
        selected = among[means.argsort(stable=True)[: min(self.disliked, view.room)]]
        weights = torch.where(view.open, 1.0, -1.0).index_fill(0, selected, -1.0)
        return selected, sample(weights, view.n, view.room - len(selected), draw)
