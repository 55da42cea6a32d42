"""Section about defended models beside the same model without a defence, user by user."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan
from pathlib import Path

import torch
from torch import Tensor

from robustbench_rec.checkpoint import uncleaned
from robustbench_rec.evaluation.by_user import ByUser, read
from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.page import Cell, Section, Table
from robustbench_rec.reports.reading import LOCAL, Book, Found, without_seeds
from robustbench_rec.reports.sections.grouping import NAN, PREFERRED, Attacked, judged_again, place_of, worded
from robustbench_rec.significance import (
    LEVEL,
    Comparison,
    Spread,
    enough,
    holm,
    over_seeds,
    paired,
    within_noise,
    worth,
)

JUDGING = ("protocol", "seen", "n_negatives")
NOTE = (
    "Means over the seeds of each side, of which one may have more. Compared by users: 95 % interval and two-sided p "
    "of a paired bootstrap over users, p after Holm over all rows; dz: the mean difference over the standard "
    "deviation of the users' differences. A difference is better or worse only if p < 0.05 and if it is larger than "
    "seed noise, √(sd² + sd²). Compared by seeds: values of the same users are not there, as in runs of earlier "
    "versions, on several splits, or of metrics that are no means over users; seed noise alone decides."
)


@dataclass(frozen=True)
class Pair:
    """A defended model and an undefended one, judged alike on the same data.

    model, beside: their labels. on: what. metric: its name, in the metrics of `side`. runs: of both, on data that both
    have. paired: None where values of users are missing. p: after Holm over all pairs.
    """

    model: str
    beside: str
    on: str
    side: str
    metric: str
    runs: tuple[Sequence[Found], Sequence[Found]]
    paired: Comparison | None = None
    p: float = NAN

    @property
    def key(self) -> str:
        """Of the metric, in what the runs tell."""
        return f"{self.side}/{self.metric}"

    @property
    def spreads(self) -> list[Spread]:
        """Of both, over seeds."""
        return [over_seeds([(run.metrics or {}).get(self.key, NAN) for run in runs]) for runs in self.runs]

    @property
    def difference(self) -> float:
        ours, theirs = self.spreads
        return ours.mean - theirs.mean

    @property
    def gain(self) -> float:
        """The difference, the more the better; as it is where neither way is."""
        return (sign(self.metric) or 1) * self.difference

    @property
    def noise(self) -> bool | None:
        """Whether the difference is within seed noise; None where there is one seed."""
        return within_noise(*self.spreads)

    @property
    def sure(self) -> bool:
        """Whether the difference is more than chance."""
        return self.verdict.partition(",")[0] in ("better", "worse", "higher", "lower")

    @property
    def verdict(self) -> str:
        """What the difference is worth, in words."""
        better, worse = ("better", "worse") if sign(self.metric) else ("higher", "lower")
        chance = None if self.paired is None else isnan(self.p) or self.p >= LEVEL
        return worth(self.difference, better if self.gain > 0 else worse, noise=self.noise, chance=chance)


def pairs(
    trained: Mapping[str, Sequence[Found]], attacks: Sequence[Attacked], done: Sequence[Found], book: Book, main: str
) -> list[Pair]:
    """Every defended model beside the undefended one that is most like it: on test, under attacks, judged again."""
    beside = _undefended(trained, book)
    found = list(_pairs(beside, trained, attacks, done, book, main))
    judged = _judged(found)
    adjusted = holm([NAN if each is None else each.difference.p for each in judged])
    return [replace(each, paired=one, p=p) for each, one, p in zip(found, judged, adjusted, strict=True)]


def compared(found: Sequence[Pair], done: Sequence[Found]) -> Section | None:
    """A table of pairs for each metric."""
    blocks = []
    for number, metric in enumerate(dict.fromkeys(each.metric for each in found)):
        rows = []
        for each in (each for each in found if each.metric == metric):
            between = [NAN] * 4
            if each.paired is not None:
                between = [each.paired.difference.low, each.paired.difference.high, each.p, each.paired.dz]
            words = [Cell(each.model), Cell(each.beside), Cell(each.on), Cell(each.spreads[1]), Cell(each.difference)]
            rows.append([*words, *map(Cell, between), Cell("users" if each.paired else "seeds"), Cell(each.verdict)])
        columns = ["model", "beside", "on", "no defence", "difference", "95 % from", "to", "p (Holm)", "dz", "by"]
        name = "compared" if not number else f"compared_{number + 1}"
        blocks.append(
            Table(name, f"{metric}, the defended model less the undefended one", [*columns, "verdict"], rows, NOTE)
        )
    told = "Clean quality and what is left under attack are traded for one another. "
    if any(each.config.get("frontier") is not None for each in done):
        told += "What a defence leaves at equal clean quality stands under “Early-stopping frontier”."
    else:
        told += "No run here tells what a defence leaves at equal clean quality: rrec attack frontier=… does."
    return Section("compared", "Compared with no defence", told, blocks) if blocks else None


def _undefended(trained: Mapping[str, Sequence[Found]], book: Book) -> dict[str, str]:
    """The label of the undefended model for each defended one: its own start, or else the most alike in settings."""
    plain = {label: _told(runs[0]) for label, runs in trained.items() if _is_plain(runs[0])}
    found = {}
    for label, runs in trained.items():
        root = _root(runs[0], book)
        hardened = runs[0].verb != "train" or runs[0].named("defense") != "none" or runs[0].named("clean") != "none"
        if root is None or not hardened:
            continue
        own = _told(root)
        alike = [
            each
            for each, other in plain.items()
            if all(own.get(key) == other.get(key) for key in ("model", *JUDGING)) and _data(runs) & _data(trained[each])
        ]
        if book.label(root) in alike:
            found[label] = book.label(root)
        elif alike:
            found[label] = min(alike, key=lambda each: sum(own.get(k) != plain[each].get(k) for k in own | plain[each]))
    return found


def _data(runs: Sequence[Found]) -> set[str]:
    """Fingerprints of what they were judged on, cleaning aside."""
    return {str(told) for run in runs if (told := uncleaned(run.record)) is not None}


def _is_plain(run: Found) -> bool:
    kinds = ("defense", "clean", "noise")
    return run.verb == "train" and run.config.get("start") is None and all(run.named(k) == "none" for k in kinds)


def _told(run: Found) -> dict[str, object]:
    return without_seeds(run.config, LOCAL)


def _root(run: Found, book: Book) -> Found | None:
    """The run that a fine-tuned model started from, through all fine-tunings."""
    at: Found | None = run
    for _ in range(5):
        if at is None or at.verb != "finetune":
            return at
        at = book.source(at)
    return None


def _pairs(
    beside: Mapping[str, str],
    trained: Mapping[str, Sequence[Found]],
    attacks: Sequence[Attacked],
    done: Sequence[Found],
    book: Book,
    main: str,
) -> Iterator[Pair]:
    for model, other in beside.items():
        if each := _alike(model, other, "test", "test", trained[model], trained[other], main):
            yield each
    for attack in attacks:
        other = beside.get(attack.victim, "")
        for their in attacks:
            same = (their.victim, their.kind, their.eps) == (other, attack.kind, attack.eps)
            if same and (
                each := _alike(attack.victim, other, worded(attack), "attacked", attack.runs, their.runs, main)
            ):
                yield each
    again = judged_again(done, book)
    for (model, where), runs in again.items():
        theirs = again.get((beside.get(model, ""), where), ())
        part = str(runs[0].config.get("part"))
        if model in trained and _as_trained(runs[0], trained[model][0], book):
            continue
        if each := _alike(model, beside.get(model, ""), where, part, runs, theirs, main):
            yield each


def _as_trained(run: Found, made: Found, book: Book) -> bool:
    """Whether a model was judged again as its training judged it."""
    same = place_of([run], book) == place_of([made], book) and run.config.get("precision") == made.config.get(
        "precision"
    )
    return same and run.config.get("part") == "test" and run.named("noise") == "none"


def _alike(
    model: str, beside: str, on: str, side: str, ours: Sequence[Found], theirs: Sequence[Found], main: str
) -> Pair | None:
    """None where no data or no metric is on both sides."""
    data = _data(ours) & _data(theirs)
    one, two = ([each for each in runs if _data([each]) & data] for runs in (ours, theirs))
    for metric in (main, *PREFERRED):
        if one and two and all(f"{side}/{metric}" in (each.metrics or {}) for each in (*one, *two)):
            return Pair(model, beside, on, side, metric, (one, two))
    return None


def _judged(pairs: Sequence[Pair]) -> list[Comparison | None]:
    """Paired over users, those of the same users in the same bootstrap samples, enough for the family of all pairs."""
    files = {run.path: read(run.path) for each in pairs for runs in each.runs for run in runs}
    kept = {at: values for at, each in enumerate(pairs) if (values := _by_user(each, files)) is not None}
    found: list[Comparison | None] = [None] * len(pairs)
    for who in dict.fromkeys(who for who, _ in kept.values()):
        here = {at: values for at, (one, values) in kept.items() if one == who}
        ours, theirs = torch.stack(list(here.values()), 1)
        for at, each in zip(here, paired(ours, theirs, size=enough(len(kept))), strict=True):
            found[at] = each
    return found


def _by_user(pair: Pair, files: Mapping[Path, ByUser | None]) -> tuple[tuple[str, int], Tensor] | None:
    """Who they are and how many, and their means over the seeds of both `[2, n_users]`.

    None where some are missing, or where the runs are on several splits, which judge other users.
    """
    kept = [[each for run in runs if (each := files[run.path]) and pair.key in each.values] for runs in pair.runs]
    who = {(each.who, len(each.values[pair.key])) for runs in kept for each in runs}
    if len(who) != 1 or len(_data(list(chain(*pair.runs)))) != 1 or list(map(len, kept)) != list(map(len, pair.runs)):
        return None
    means = [torch.stack([each.values[pair.key].double() for each in runs]).mean(0) for runs in kept]
    return who.pop(), torch.stack(means)
