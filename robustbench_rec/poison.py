"""What every attack on the training data is, what it may know, and how fake users come to be."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from robustbench_rec.data import Data, Interactions, Profiles
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.factors import Factorisation, alternate, start
from robustbench_rec.graph import clicked
from robustbench_rec.profiles import inject
from robustbench_rec.savepoint import Savepoint
from robustbench_rec.targets import targets
from robustbench_rec.threat import Threat

DIRECTIONS, FEEDBACK = ("push", "nuke"), ("clicks", "ratings")
RIVALS = 2  # items pushed for each that is to be demoted, where a fake user can only click
CELLS = 2**28  # numbers in a matrix of users and items: 1 GiB
Rate = Literal["highest", "lowest", "overall", "item"]


class Poison(ABC):
    """Fake users in the training data, constructed as `cls(config)`."""

    threat: ClassVar[Threat]

    @abstractmethod
    def __call__(self, data: Data) -> Data:
        """The data with them."""


@dataclass
class Shill:
    """The part of a config that all who make fake users share.

    items, stratum, count: the targets, by original ids, or drawn as `targets` does. size: fake users as a share of the
    genuine ones, at least one user. length: events of a fake user, targets included (null: the mean of the genuine
    users that are known). direction: push or nuke. feedback: whether the victim reads clicks or ratings. knowledge:
    share of the genuine users whose training events the attacker has. seed: of the targets and of all that is drawn.
    """

    items: list[str] | None
    stratum: str
    count: int
    size: float
    length: int | None
    direction: str
    feedback: str
    knowledge: float
    seed: int


@dataclass(frozen=True)
class View:
    """What the attacker has.

    data: training events of the users that are known, with users counted anew; no validation, no test, no truth.
    pushed: items that every fake user has `[P]`. spared: those that none may have `[Q]`, the targets of fake users who
    demote by clicks. n: fake users. length: events of each, at most.
    """

    data: Data
    pushed: Tensor
    spared: Tensor
    n: int
    length: int

    @property
    def device(self) -> torch.device:
        return self.pushed.device

    @property
    def room(self) -> int:
        """Events of a fake user beside those with pushed items."""
        return self.length - len(self.pushed)

    @cached_property
    def counts(self) -> Tensor:
        """Known users of each item, float `[n_items]`."""
        return torch.bincount(clicked(self.data)[1], minlength=self.data.n_items).float()

    @cached_property
    def clicks(self) -> Tensor:
        """0/1 of known users and items `[U, n_items]`; RrecError where that is too much to hold."""
        cells = self.data.n_users * self.data.n_items
        if cells > CELLS:
            raise RrecError(
                f"a matrix of {self.data.n_users} users and {self.data.n_items} items is too large for this poison "
                "or for direction=nuke by clicks; lower poison.knowledge, or push with random, average, aop, bandwagon"
            )
        empty = torch.zeros(self.data.n_users, self.data.n_items, device=self.device)
        return empty.index_put_(clicked(self.data), torch.ones((), device=self.device))

    @cached_property
    def waiting(self) -> Tensor:
        """Whether a known user has not all pushed items yet, float `[U]`: those whom the attack is for."""
        return (self.clicks[:, self.pushed].sum(1) < len(self.pushed)).float()

    @property
    def open(self) -> Tensor:
        """Items that are neither pushed nor spared, bool `[n_items]`."""
        taken = torch.cat([self.pushed, self.spared])
        return torch.ones(self.data.n_items, dtype=torch.bool, device=self.device).index_fill(0, taken, False)


class Shilling(Poison):
    """Makes fake users from what an attacker may know.

    rates: how the selected and the filler items are rated; selected items are the same for all fake users. Pushed
    items get the highest rating, targets that are to be demoted by ratings the lowest. Values are drawn from a normal
    distribution where they are said to be like those of all items ("overall") or of the same item ("item"), and moved
    to the nearest rating that occurs; where the data has no ratings all are 1. savepoint: where a search that takes
    long keeps how far it is; nowhere unless told.
    """

    threat: ClassVar[Threat] = Threat(
        surface="training data", knowledge="none", scope="all users at once", budget="fake users, events of each"
    )
    rates: ClassVar[tuple[Rate, Rate]] = ("highest", "overall")

    def __init__(self, config: Shill) -> None:
        self.shill, self.savepoint = config, Savepoint(None)
        if config.direction not in DIRECTIONS:
            raise unknown("direction of a poison", config.direction, DIRECTIONS)
        if config.feedback not in FEEDBACK:
            raise unknown("feedback of a poison", config.feedback, FEEDBACK)
        if self.threat.knowledge == "transfer" and (config.direction, config.feedback) == ("nuke", "ratings"):
            raise RrecError(
                f"poison={self.settings['name']} with direction=nuke, feedback=ratings: its surrogate reads clicks, to "
                "which low ratings say nothing; use feedback=clicks, or a poison without a surrogate"
            )
        if not (0 < config.size <= 1 and 0 < config.knowledge <= 1 and config.seed >= 0):
            raise RrecError(
                f"poison with size={config.size}, knowledge={config.knowledge}, seed={config.seed}: size and knowledge "
                "in (0, 1] and seed >= 0 are needed"
            )

    def __call__(self, data: Data) -> Data:
        return inject(data, self.profiles(data))

    @property
    def settings(self) -> dict[str, Any]:
        """Its config with its name, as a file of fake users has it."""
        return {"name": type(self).__module__.rpartition(".")[2], **asdict(self.shill)}

    def profiles(self, data: Data) -> Profiles:
        """The fake users; made from the training part alone, whatever else the data has."""
        aims = self.aims(data)
        view = self.view(data, aims)
        draw = torch.Generator().manual_seed(self.shill.seed)
        selected, fillers = self.choose(view, draw)
        events = self._events(view, selected, fillers, draw)
        size = f"{view.n} fake users ({view.n / data.n_users:.1%})"
        goal = f"{self.shill.direction} {', '.join(data.item_ids[each] for each in aims.tolist())}"
        budget = f"{size}, {view.length} events each"
        budget += f"; sees the events of {view.data.n_users} users ({self.shill.knowledge:.1%})"
        threat = replace(self.threat, budget=budget, goal=goal)
        about = {
            "config": self.settings,
            "targets": [data.item_ids[each] for each in aims.tolist()],
            "length": view.length,
            "known_users": view.data.n_users,
            "dataset": data.name,
            "fingerprint": data.fingerprint,
            "threat": threat.words(),
        }
        return Profiles(events.to(torch.device("cpu")), view.n, aims.cpu(), about)

    @abstractmethod
    def choose(self, view: View, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Selected items `[S]`, which all fake users have, and fillers `[n, M]` of each, S + M ≤ `view.room`.

        No item twice in a row, none that is not `view.open`; -1 stands for none.
        """

    def aims(self, data: Data) -> Tensor:
        """The targets `[T]`."""
        c = self.shill
        return targets(data, c.items, stratum=c.stratum, count=c.count, seed=c.seed)

    def view(self, data: Data, aims: Tensor) -> View:
        """What of the data the attacker has; RrecError where there is no room for the targets."""
        c = self.shill
        if c.feedback == "ratings" and "rating" not in data.has:
            raise RrecError(f"poison.feedback=ratings: dataset '{data.name}' has none; use feedback=clicks")
        if (c.direction, c.feedback) == ("nuke", "ratings") and not bool((data.train.values > 1).any()):
            raise RrecError(
                f"poison.direction=nuke, feedback=ratings: dataset '{data.name}' has clicks, and none of them is low; "
                "use feedback=clicks"
            )
        known = _known(data, c.knowledge, c.seed)
        if not (events := len(clicked(known)[0])):
            raise RrecError(
                f"poison.knowledge={c.knowledge}, poison.seed={c.seed}: the {known.n_users} users who are known of "
                f"dataset '{data.name}' have no training event to learn from; know more, or draw others"
            )
        mean = round(events / known.n_users)
        n, length = max(1, round(c.size * data.n_users)), mean if c.length is None else c.length
        view = View(known, aims, aims[:0], n, length)
        if c.direction == "nuke" and c.feedback == "clicks":
            view = replace(view, pushed=rivals(view), spared=aims)
        most = data.n_items - max(1, len(view.spared))  # an item that the user does not have is left to compare with
        if not len(view.pushed) <= view.length <= most:
            told = "the mean of the genuine users" if c.length is None else f"poison.length={c.length}"
            raise RrecError(
                f"{told}, {view.length} events of a fake user, must lie between {len(view.pushed)}, the items that are "
                f"pushed, and {most}; set poison.length or poison.count"
            )
        return view

    def _events(self, view: View, selected: Tensor, fillers: Tensor, draw: torch.Generator) -> Interactions:
        n = view.n
        pushed = view.pushed.expand(n, -1)
        lowered = self.shill.direction == "nuke" and self.shill.feedback == "ratings"
        blocks: list[tuple[Tensor, Rate]] = [(pushed, "lowest" if lowered else "highest")]
        blocks += zip((selected.expand(n, -1), fillers), self.rates, strict=True)
        items = torch.cat([each for each, _ in blocks], 1)  # [n, L]
        values = torch.cat([_rated(view.data, each, rate, draw) for each, rate in blocks], 1)
        order = torch.rand(items.shape, generator=draw).to(view.device).argsort(1)  # targets anywhere in a history
        items, values = items.gather(1, order), values.gather(1, order)
        there = items >= 0
        users = there.nonzero()[:, 0]
        times, context = view.data.train.times, view.data.train.context
        if times is not None:
            first, last = int(times.min()), int(times.max())
            drawn = torch.randint(first, last + 1, items.shape, generator=draw).to(view.device).sort(1).values
            times = drawn[there]
        if context is not None:  # the circumstances of genuine events
            context = context[torch.randint(len(context), (len(users),), generator=draw).to(view.device)]
        return Interactions(users, items[there], values[there], times, context)


def sample(weights: Tensor, n: int, size: int, draw: torch.Generator) -> Tensor:
    """`[n, size]` different items a row, drawn by weights `[n_items]` or `[n, n_items]`, 0 at last, below 0 never."""
    uniform = torch.rand(n, weights.shape[-1], generator=draw).to(weights.device).clamp(1e-20, 1 - 1e-7)
    keys = weights.clamp_min(0).log().clamp_min(-1e3) - (-uniform.log()).log()  # Gumbel: the largest keys are the draw
    return keys.masked_fill(weights < 0, float("-inf")).topk(size, 1).indices


def nearest(view: View, items: Tensor) -> Tensor:
    """How near every item is to given ones: the sum of cosines over known users `[n_items]`."""
    users = view.clicks
    norm = view.counts.sqrt().clamp_min(1)
    cosines = users.T @ users[:, items] / (norm[:, None] * norm[items])  # [n_items, P]
    total: Tensor = cosines.sum(1)
    return total


def rivals(view: View) -> Tensor:
    """Items that stand just below given ones in the lists of known users, two for each.

    Lists are those of a small factorisation of the known clicks. The ten next items of a list count by the reciprocal
    rank of the given one, so that those lists matter that it is to be driven from. Items without an event are none.
    """
    config = Factorisation(dim=8, alpha=10.0, l2=1.0)
    generator = torch.Generator().manual_seed(0)
    factors = start(view.data.n_users, view.data.n_items, config, generator, view.device)
    users, items = alternate(view.clicks, factors, config, 3)
    found = torch.zeros(view.data.n_items, device=view.device)
    for part in torch.arange(view.data.n_users, device=view.device).split(1024):
        scores = (users[part] @ items.T).masked_fill(view.clicks[part].bool() | (view.counts == 0), float("-inf"))
        order = scores.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)[:, view.pushed]  # [b, P], from 0
        there = scores[:, view.pushed].isfinite()
        below = rank[:, :, None] + torch.arange(1, 11, device=view.device)  # [b, P, 10]
        inside = (below < scores.shape[1]) & there[:, :, None]
        after = order[:, None].expand(-1, rank.shape[1], -1).gather(2, below.clamp_max(scores.shape[1] - 1))
        inside &= scores[:, None].expand(-1, rank.shape[1], -1).gather(2, after).isfinite()
        found.index_add_(0, after.flatten(), (inside / (1.0 + rank[:, :, None])).flatten())
    there, wanted = view.open & (view.counts > 0), RIVALS * len(view.pushed)
    if int(there.sum()) < wanted:
        raise RrecError(
            f"direction=nuke of {len(view.pushed)} targets by clicks needs {wanted} other items with an event, "
            f"the data has {int(there.sum())}: name fewer targets"
        )
    return found.masked_fill(~there, -1).topk(wanted).indices


def _known(data: Data, share: float, seed: int) -> Data:
    """The training events of a share of the users, and what everybody may look up about items."""
    train, users = data.train, torch.arange(data.n_users, device=data.train.users.device)
    table = data.user_table
    if share < 1:
        count = max(1, round(share * data.n_users))
        chosen = torch.randperm(data.n_users, generator=torch.Generator().manual_seed(seed))[:count].sort().values
        users = chosen.to(users.device)
        code = torch.full((data.n_users,), -1, device=users.device)
        code[users] = torch.arange(count, device=users.device)
        kept = code[train.users] >= 0
        train = train.where(kept)
        train = replace(train, users=code[train.users])
        table = None if table is None else table.iloc[chosen.numpy()].reset_index(drop=True)
    nothing = train.where(torch.zeros_like(train.users, dtype=torch.bool))
    return replace(
        data,
        fingerprint="",
        train=train,
        valid=nothing,
        test=nothing,
        user_ids=[data.user_ids[each] for each in users.tolist()],
        user_table=table,
        report={},
        truth={},
        place=None,
    )


def _rated(data: Data, items: Tensor, rate: Rate, draw: torch.Generator) -> Tensor:
    """Ratings of items `[n, M]`, -1 for none."""
    train = data.train
    levels = torch.unique(train.values)
    if "rating" not in data.has or bool(((levels == 0) | (levels == 1)).all()):
        return torch.ones(items.shape, device=items.device)
    if rate in ("highest", "lowest"):
        extreme: Tensor = levels[-1 if rate == "highest" else 0]
        return extreme.expand(items.shape)
    mean, deviation = train.values.mean(), train.values.std(correction=0)
    if rate == "item":
        counts = torch.bincount(train.items, minlength=data.n_items).float()
        sums, squares = (
            torch.zeros_like(counts).index_add_(0, train.items, each) for each in (train.values, train.values.square())
        )
        means = sums / counts
        spread = (squares / counts - means.square()).clamp_min(0).sqrt()
        few = counts < 2
        mean = torch.where(counts > 0, means, mean)[items]
        deviation = torch.where(few, deviation, spread)[items]
    drawn = mean + deviation * torch.randn(items.shape, generator=draw).to(items.device)
    above = torch.searchsorted(levels, drawn.contiguous()).clamp(1, max(len(levels) - 1, 1))
    low, high = levels[(above - 1).clamp_max(len(levels) - 1)], levels[above.clamp_max(len(levels) - 1)]
    return torch.where(drawn - low <= high - drawn, low, high)
