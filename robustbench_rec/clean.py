"""What every cleaning step is, what it may see, and how suspicion becomes a decision."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustbench_rec import cleanings
from robustbench_rec.data import Cleaning, Data
from robustbench_rec.errors import RrecError
from robustbench_rec.metrics import detection
from robustbench_rec.text.rules import TextRules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """What a step found in the data it was shown.

    removed: training events that go, bool `[N]`. counts: what each rule found. flagged: users that it takes for fake,
    bool `[U]`. scores: how suspicious each user is, NaN without training events `[U]`. told: users whose truth it was
    given, bool `[U]`. edges, texts: as in `Cleaning`. rules: that later texts of a column pass too.
    """

    removed: Tensor
    counts: Mapping[str, int] = field(default_factory=dict)
    flagged: Tensor | None = None
    scores: Tensor | None = None
    told: Tensor | None = None
    edges: Tensor | None = None
    texts: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    rules: Mapping[str, TextRules] = field(default_factory=dict)

    @property
    def totals(self) -> dict[str, int]:
        """The counts, and how many events go."""
        return {**self.counts, "events": int(self.removed.sum())}


class Clean(ABC):
    """One step of cleaning, the same for the same data; constructed as `cls(config)`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """Of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """Its config with its name."""
        return {"name": self.name, **asdict(self.config)}

    @abstractmethod
    def find(self, data: Data, fake: Tensor | None) -> Finding:
        """In training events, items and their texts, on the CPU; nothing else is there.

        fake: which users are fake, bool `[U]`, where the step asked for the truth.
        """

    @property
    def known(self) -> bool:
        """Whether the step asks for the truth, which nobody has outside an experiment."""
        return False


@dataclass
class Detect:
    """The part of a config that all detectors of fake users share.

    share: of the users with an event, at most so many are flagged, the most suspicious. threshold: only those whose
    suspicion is so many robust standard deviations above the median (null: no such demand). known: flag as many as
    there are fake users, which only an experiment can know; share does not count then, and a threshold is refused.
    seed: of all that is drawn, the order of ties included.
    """

    share: float
    threshold: float | None
    known: bool
    seed: int


class Detector(Clean):
    """A step that gives every user a suspicion and leaves out all training events of the most suspicious ones."""

    config: Detect

    def __init__(self, config: Detect) -> None:
        super().__init__(config)
        if not (0 <= config.share <= 1 and config.seed >= 0):
            raise RrecError(f"clean.share={config.share}, clean.seed={config.seed}: share in [0, 1], seed >= 0 needed")
        if config.known and config.threshold is not None:
            raise RrecError(
                f"clean={self.name} with known=true flags as many as there are fake users: leave out "
                f"clean.threshold={config.threshold}, or take known=false"
            )

    @property
    def known(self) -> bool:
        return self.config.known

    @abstractmethod
    def suspicion(self, data: Data, users: Tensor, told: Tensor | None) -> Tensor:
        """The suspicion `[n]` of users `[n]`, all who have a training event; larger is worse.

        told: users who are known to be fake, bool `[U]`, of a detector that asked for some.
        """

    def told(self, fake: Tensor) -> Tensor | None:
        """Fake users that the suspicion may start from, bool `[U]`; they do not count in what it is worth."""
        return None

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        c, train = self.config, data.train
        present = torch.bincount(train.users, minlength=data.n_users) > 0
        users = present.nonzero().squeeze(1)
        fake = None if fake is None else fake & present  # a step before may have found some
        told = None if fake is None else self.told(fake)
        found = self.suspicion(data, users, told).double()
        count = round(c.share * len(users)) if fake is None else int(fake.sum())
        if len(found.unique()) < 2:
            log.warning("clean=%s tells nobody apart, all users are equally suspicious: none is left out", self.name)
            count = 0
        draw = torch.Generator().manual_seed(c.seed)
        order = torch.randperm(len(users), generator=draw)  # ties must not tell where a user stands
        order = order[found[order].argsort(descending=True, stable=True)]
        worst = order[:count]
        if c.threshold is not None and fake is None:
            worst = worst[robust(found[:, None])[worst, 0] > c.threshold]
        flagged = torch.zeros(data.n_users, dtype=torch.bool).index_fill(0, users[worst], True)
        scores = torch.full((data.n_users,), float("nan"), dtype=torch.double).index_copy(0, users, found)
        removed = flagged[train.users]
        return Finding(removed, {"users": len(worst)}, flagged, scores, told)


def robust(columns: Tensor) -> Tensor:
    """Columns of `[n, F]` in robust standard deviations from their median; 0 in a column that does not vary."""
    centred = columns - columns.median(0).values
    scale = 1.4826 * centred.abs().median(0).values
    scale = torch.where(scale > 0, scale, columns.std(0, correction=0))  # more than half are equal
    return torch.where(scale > 0, centred / scale, torch.zeros_like(centred))


def visible(data: Data) -> Data:
    """What a cleaning step may see: training events and items; no truth, no other part, no names of users."""
    return replace(
        data.to(torch.device("cpu")).known,
        user_ids=[str(each) for each in range(data.n_users)],
        user_table=None,
        report={},
        cleaning=None,
    )


def cleaned(data: Data, steps: Sequence[Clean]) -> tuple[Data, list[tuple[Clean, Finding]]]:
    """The data after all steps, each shown what the one before left, and what each found.

    Data in which nothing was found, and which have the rules that stay already, are returned as they are. RrecError
    where a step follows one that made a graph.
    """
    current, found = data, list[tuple[Clean, Finding]]()
    made = Cleaning(torch.ones(len(data.train), dtype=torch.bool))
    standing = dict[str, tuple[TextRules, ...]]({} if data.cleaning is None else data.cleaning.rules)
    fake = None if data.fakes is None else torch.arange(data.n_users) >= data.n_genuine
    for step in steps:
        if made.edges is not None:
            raise RrecError(f"clean={step.name} follows a step that changes the graph: put it before")
        if step.known and fake is None:
            raise RrecError(f"clean={step.name} with known=true: dataset '{data.name}' has no fake users to know of")
        finding = step.find(visible(current), fake if step.known else None)
        kept = made.kept.clone()
        kept[made.kept] = ~finding.removed
        texts = dict(made.texts)
        for column, rows in finding.texts.items():
            texts[column] = dict(texts.get(column, {})) | dict(rows)
        rules = dict(made.rules)
        for column, each in finding.rules.items():
            rules[column] = (*rules.get(column, ()), each)
        told: dict[str, Any] = {"config": step.settings, "counts": finding.totals}
        if finding.flagged is not None:
            told["users"] = [data.user_ids[each] for each in finding.flagged.nonzero().squeeze(1).tolist()]
        steps_told = [*made.about.get("steps", ()), told]
        made = Cleaning(kept, finding.edges, texts, {"dataset": data.name, "steps": steps_told}, rules)
        found.append((step, finding))
        if bool(kept.all()) and made.edges is None and not texts and rules.items() <= standing.items():
            continue
        current = cleanings.apply(data, made)
    return current, found


def judged(finding: Finding, data: Data) -> dict[str, float]:
    """What was flagged against the truth: precision, recall, F1, AUROC, AP and genuine users lost; empty without truth.

    Only users with training events when the step saw them count, and none whose truth it was given.
    """
    if finding.flagged is None or finding.scores is None or data.fakes is None:
        return {}
    counted = ~finding.scores.isnan() if finding.told is None else ~(finding.scores.isnan() | finding.told)
    fake, scores = (torch.arange(data.n_users) >= data.n_genuine)[counted], finding.scores[counted]
    return {
        **detection.flags(finding.flagged[counted], fake),
        "auroc": detection.auroc(scores, fake),
        "ap": detection.average_precision(scores, fake),
    }
