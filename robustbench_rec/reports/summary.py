"""What the jobs of a sweep say together: means over seeds, the best, what noise and injections cost."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from robustbench_rec.metrics.direction import sign
from robustbench_rec.metrics.robustness import area, selection_gap
from robustbench_rec.significance import Spread, over_seeds, within_noise

SIDES = ("test", "attacked", "poisoned", "valid", "clean")
"""Prefixes of qualities, what a sweep is about first."""
JUDGED = {
    *("dataset", "prepare", "split", "noise", "poison", "protocol", "n_negatives", "seen", "part"),
    *("attack", "eps"),
}
"""Keys, or what their names begin with, that decide what the test is."""
ATTACKED = {"goal", "labels", "loss"}
"""The same of `rrec attack`."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep. metrics: None when it failed; a value is None where it is no number. error: one line.

    nuke: whether its poison demotes the targets. data: the fingerprint of what it is judged on, None where nothing
    tells it.
    """

    name: str
    overrides: Mapping[str, str]
    metrics: Mapping[str, float | None] | None
    error: str | None = None
    nuke: bool = False
    data: str | None = None

    def value(self, metric: str) -> float:
        """NaN where there is none."""
        found = (self.metrics or {}).get(metric)
        return math.nan if found is None else found


@dataclass(frozen=True)
class Group:
    """Jobs that differ in their seeds alone. settings: the other swept keys."""

    settings: Mapping[str, str]
    jobs: Sequence[Job]

    @property
    def done(self) -> int:
        """How many of them ended well."""
        return sum(job.metrics is not None for job in self.jobs)

    @property
    def data(self) -> frozenset[str | None]:
        """What they were judged on; values of others are no better or worse."""
        return frozenset(job.data for job in self.jobs if job.metrics is not None)

    def spread(self, metric: str) -> Spread:
        """Mean and standard deviation over the seeds."""
        return over_seeds([job.value(metric) for job in self.jobs])


@dataclass(frozen=True)
class Curve:
    """Quality over a swept level. clean: the same without what the level is of; None for the quality at level 0."""

    level: str
    quality: str
    clean: str | None


@dataclass(frozen=True)
class Selection:
    """What comes of choosing on validation. metric: of test or under an attack. chosen, best: its mean of either.

    gap: how much worse the chosen one is.
    """

    metric: str
    settings: Mapping[str, str]
    chosen: float
    best: float
    gap: float


@dataclass(frozen=True)
class Summary:
    """The jobs of a sweep in the order of their numbers.

    monitor: the metric that the models were chosen by, without its prefix. called: what tables and plots call values
    that are paths of runs.
    """

    jobs: Sequence[Job]
    verb: str
    monitor: str | None = None
    called: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def swept(self) -> list[str]:
        """The overrides that differ between the jobs, in the order in which they were given; all of them for one."""
        keys = list(dict.fromkeys(key for job in self.jobs for key in job.overrides))
        return [key for key in keys if len(self.jobs) == 1 or len({job.overrides.get(key) for job in self.jobs}) > 1]

    @property
    def seeds(self) -> list[str]:
        """The swept seeds."""
        return [key for key in self.swept if is_seed(key)]

    @property
    def settings(self) -> list[str]:
        """The swept keys that are no seeds."""
        return [key for key in self.swept if not is_seed(key)]

    @property
    def numeric(self) -> list[str]:
        """Those of them whose values are numbers, two at least."""
        values = {key: {job.overrides.get(key, "") for job in self.jobs} for key in self.settings}
        return [key for key in self.settings if len(values[key]) > 1 and all(map(_is_number, values[key]))]

    @cached_property
    def metrics(self) -> list[str]:
        """Every metric that a job has."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.metrics or ()))

    @cached_property
    def groups(self) -> list[Group]:
        """The jobs by their settings, in the order of the first of each."""
        return [Group(settings, jobs) for settings, jobs in self.by(self.settings)]

    def by(self, keys: Sequence[str], jobs: Iterable[Job] | None = None) -> list[tuple[dict[str, str], list[Job]]]:
        """Jobs (None: all) with equal values of some keys."""
        found: dict[tuple[str, ...], list[Job]] = defaultdict(list)
        for job in self.jobs if jobs is None else jobs:
            found[tuple(job.overrides.get(key, "") for key in keys)].append(job)
        return [(dict(zip(keys, values, strict=True)), each) for values, each in found.items()]

    @property
    def primary(self) -> str | None:
        """The metric that plots are about: the monitored one, of test, else attacked, where there are these."""
        wanted = [f"{side}/{self.monitor}" for side in SIDES] + [
            each for side in SIDES for each in self.metrics if each.startswith(f"{side}/")
        ]
        return next((each for each in wanted if each in self.metrics), self.metrics[0] if self.metrics else None)

    def sign(self, metric: str) -> int:
        """1 where more is better, -1 where less is, 0 where neither is."""
        side, _, name = metric.rpartition("/")
        if side not in (*SIDES, "agreement", "divergence", "drop"):
            return 0
        return -sign(name) if side == "drop" else sign(name)

    @property
    def judged(self) -> list[str]:
        """The swept settings that say what is measured; values of runs that differ in them cannot be compared."""
        kinds = JUDGED | (ATTACKED if self.verb == "attack" else set())
        return [key for key in self.settings if re.split(r"[.@/]", key.lstrip("+"))[0] in kinds]

    @property
    def mixed(self) -> bool:
        """Whether they were judged on several data."""
        return len({group.data for group in self.groups if group.done}) > 1

    def best(self, metric: str) -> tuple[set[int], set[int]]:
        """The groups with the best mean among those that are judged alike, and what differs from it as seeds do."""
        way, spreads = self.sign(metric), [group.spread(metric) for group in self.groups]
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for number, group in enumerate(self.groups):
            if spreads[number].n:
                alike[group.data, *(group.settings[key] for key in self.judged)].append(number)
        best, close = set(), set()
        for known in alike.values():
            if not way or len({spreads[number].mean for number in known}) < 2:
                continue
            first = max(known, key=lambda number: way * spreads[number].mean)
            same = {each for each in known if spreads[each].mean == spreads[first].mean}
            best |= same
            close |= {each for each in known if each not in same and within_noise(spreads[each], spreads[first])}
        return best, close

    @cached_property
    def selections(self) -> list[Selection]:
        """The settings that are best on validation, held against the best on test, and under the attack of a training.

        Nothing where less than two settings were judged alike, or none was validated.
        """
        by, name = f"valid/{self.monitor}", self.monitor
        groups = [group for group in self.groups if group.spread(by).n]
        if len(groups) < 2 or self.judged or self.mixed or not self.sign(by):
            return []
        valid = self.sign(by) * torch.tensor([group.spread(by).mean for group in groups], dtype=torch.double)
        first, found = int(valid.argmax()), []
        for metric in (f"test/{name}", f"attacked/{name}"):
            values = torch.tensor([group.spread(metric).mean for group in groups], dtype=torch.double)
            if not bool(values.isnan().any()):
                chosen, gap = values[first].item(), selection_gap(valid, self.sign(by) * values).item()
                best = chosen + self.sign(by) * gap
                found.append(Selection(metric, groups[first].settings, chosen, best, gap))
        return found

    @cached_property
    def resilience(self) -> list[tuple[dict[str, str], dict[str, Spread]]]:
        """What noise, attacks and injections leave, for each combination of the remaining settings.

        area of a quality: that under its curve over the swept levels, from 0 on, divided by their range: its mean.
        noise robustness: area under quality at a level ÷ quality at level 0 (of an attack: attacked ÷ clean), over the
        swept levels, divided by their range; the inverse ratio of a metric of which less is better. 1: nothing is lost.
        overall safety: 1 − the mean over the swept injections of the rise of the targets' exposure, T-HR@K, as a share
        of what it could rise, (poisoned − clean) ÷ (1 − clean), at least 0. 1: no target is shown to anybody new.
        Both once for each seed, then mean and standard deviation. They stand where a sweep has what they need: levels
        of noise with level 0, an attack over eps, poisons that promote; and no failed job among them.
        """
        found: dict[str, tuple[list[str], Callable[[list[Job]], float]]] = {}
        if (curve := self._curve()) is not None:
            found["noise robustness"] = ([curve.level], lambda jobs: self._area(jobs, curve, relative=True))
            found[f"area of {curve.quality}"] = ([curve.level], lambda jobs: self._area(jobs, curve, relative=False))
        exposure = next((each for each in self.metrics if each.startswith("poisoned/t_hr@")), None)
        if exposure is not None:
            injections = [key for key in self.settings if key.partition(".")[0] == "poison"]
            found["overall safety"] = (injections, lambda jobs: _safety(jobs, exposure))
        inner = {key for keys, _ in found.values() for key in keys}
        rest = [key for key in self.settings if key not in inner]
        rows = []
        for settings, jobs in self.by(rest):
            runs = self.by(self.seeds, jobs)
            values = {name: over_seeds([measure(run) for _, run in runs]) for name, (_, measure) in found.items()}
            if any(each.n for each in values.values()):
                rows.append((settings, values))
        return rows

    def _curve(self) -> Curve | None:
        """What noise robustness is of; None where nothing that it is about was swept."""
        if self.primary is None:
            return None
        name = self.primary.rpartition("/")[2]
        attacked, clean = f"attacked/{name}", f"{'clean' if self.verb == 'attack' else 'test'}/{name}"
        if "eps" in self.numeric and {attacked, clean} <= set(self.metrics):
            return Curve("eps", attacked, clean)
        return Curve("noise.level", self.primary, None) if "noise.level" in self.numeric else None

    def _area(self, jobs: list[Job], curve: Curve, *, relative: bool) -> float:
        """Area under the qualities, or under what is left of each, over the range of the levels."""
        points = []
        for job in jobs:
            before = math.nan if curve.clean is None else job.value(curve.clean)
            points.append((float(job.overrides[curve.level]), job.value(curve.quality), before))
        points.sort()
        if curve.clean is not None and points[0][0] > 0:
            points.insert(0, (0.0, points[0][2], points[0][2]))  # an attack within eps = 0 changes nothing
        if points[0][0] != 0 or len(points) < 2 or len({each[0] for each in points}) != len(points):
            return math.nan
        values = [value for _, value, _ in points]
        if relative:
            start = values[0]
            values = [_ratio(value, start if curve.clean is None else before) for _, value, before in points]
            if self.sign(curve.quality) < 0:
                values = [_ratio(1.0, each) for each in values]
        return area(torch.tensor([each[0] for each in points]), torch.tensor(values, dtype=torch.double)).item()


def is_seed(key: str) -> bool:
    """Whether a key is a seed, of whatever."""
    return key.rpartition(".")[2] == "seed"


def _safety(jobs: list[Job], exposure: str) -> float:
    before, after = exposure.replace("poisoned/", "clean/"), exposure
    if any(job.nuke for job in jobs):
        return math.nan
    rises = [_ratio(job.value(after) - job.value(before), 1 - job.value(before)) for job in jobs]
    return 1 - sum(max(0.0, each) if each == each else each for each in rises) / len(rises)


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
