"""What is said in words at the head of a report."""

from collections.abc import Mapping, Sequence

from robustbench_rec.evaluation.frontier import sentence
from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.page import Cell
from robustbench_rec.reports.reading import Book, Found
from robustbench_rec.reports.sections.compared import Pair
from robustbench_rec.reports.sections.grouping import NAN, Attacked, beyond, held_against, places, typical, worded
from robustbench_rec.significance import CHANCE, over_seeds, within_noise

OTHERS = 2
"""Attacks of which more is said than that there are such."""


def subtitle(asked: Sequence[Found], book: Book) -> str:
    """How many runs of what."""
    counts: dict[str, int] = {}
    for run in asked:
        counts[run.verb] = counts.get(run.verb, 0) + 1
    words = ", ".join(f"{n} {verb}" for verb, n in counts.items())
    names = dict.fromkeys(name for run in book.runs if (name := run.named("dataset")) != "none")
    return f"{len(asked)} run{'s' * (len(asked) != 1)} ({words}) on {', '.join(names) or 'unknown data'}"


def summary(
    asked: Sequence[Found],
    trained: Mapping[str, Sequence[Found]],
    attacks: Sequence[Attacked],
    beside: Sequence[Pair],
    done: Sequence[Found],
    book: Book,
    main: str,
) -> list[str]:
    """A sentence for each of the main findings."""
    told = []
    failed = sum(each.metrics is None for each in asked)
    way = sign(main)
    known = 0
    for place, models in places(trained, book).items():
        spreads = {
            label: over_seeds([(each.metrics or {}).get(f"test/{main}", NAN) for each in runs])
            for label, runs in models.items()
        }
        clean = {label: spread for label, spread in spreads.items() if spread.n}
        known = max([known, *(each.n for each in clean.values())])
        if len(clean) > 1 and way:
            best = max(clean, key=lambda each: way * clean[each].mean)
            near = [each for each in clean if each != best and within_noise(clean[each], clean[best])]
            words = f"On {place}, {best} has the best clean quality, {main} {Cell(clean[best]).text}"
            words += f"; {_and(near)} {'is' if len(near) == 1 else 'are'} as good within seed noise" if near else ""
            same = [e for e in clean if e != best and e not in near and clean[e].mean == clean[best].mean]
            told.append(f"{words}; so {'has' if len(same) == 1 else 'have'} {_and(same)}." if same else f"{words}.")
        elif clean and way:
            [(label, spread)] = clean.items()
            told.append(f"On {place}, {label} has {main} {Cell(spread).text} on test.")
    here = typical(attacks, main)
    if way and len(here) > 1 and len({Cell(each.spread(f"attacked/{main}")).text for each in here}) == 1:
        told.append(
            f"Under {worded(here[0])}, {_and([each.victim for each in here])} are left with the same, "
            f"{main} {Cell(here[0].spread(f'attacked/{main}')).text}."
        )
    elif way and len(here) > 1:
        most = max(here, key=lambda each: way * each.spread(f"attacked/{main}").mean)
        left = most.spread(f"attacked/{main}")
        drop = Cell(most.spread(f"drop/{main}"), share=True).text
        words = f"Under {worded(most)}, {most.victim} keeps the most: {main} {Cell(left).text}, a drop of {drop}"
        near = [e.victim for e in here if e is not most and within_noise(e.spread(f"attacked/{main}"), left)]
        words += f"; {_and(near)} {'is' if len(near) == 1 else 'are'} as good within seed noise" if near else ""
        told.append(f"{words}.")
        worst = min(here, key=lambda each: way * each.spread(f"attacked/{main}").mean)
        least, lost = Cell(worst.spread(f"attacked/{main}")), Cell(worst.spread(f"drop/{main}"), share=True)
        same = [e.victim for e in here if Cell(e.spread(f"attacked/{main}")).text == least.text]
        if len(same) > 1:
            told.append(f"{_and(same)} are left with the least, {least.text}.")
        elif worst is not most:
            others = [e for e in here if e is not worst]
            near = [e.victim for e in others if within_noise(*(x.spread(f"attacked/{main}") for x in (e, worst)))]
            words = f"{worst.victim} is left with the least, {least.text}, a drop of {lost.text}"
            words += (
                f"; {_and(near)} {'has' if len(near) == 1 else 'have'} no more than seed noise above it" if near else ""
            )
            told.append(f"{words}.")
    told += _attacked_beside(beside, worded(here[0]) if len(here) > 1 else "")
    told += _beside([each for each in beside if each.side == "test" and each.on == "test"], "")
    early = held_against(done, book)
    for (victim, attack), runs in early.items():
        gap, low, high = beyond(runs, "gap")
        if gap.n:
            several = sum(each == victim for each, _ in early) > 1
            told.append(f"{sentence(f'{victim} under {attack}' if several else victim, gap, low, high)}.")
    if known == 1 and len(trained) > 1:
        told.append("Every model was trained with one seed: how large seed noise is, is not known.")
    if failed:
        has = "has" if failed == 1 else "have"
        told.append(f"{failed} of {len(asked)} runs {has} no results; see the end of this page.")
    return told or ["No run has results yet."]


def _attacked_beside(beside: Sequence[Pair], first: str) -> list[str]:
    """The same under attacks: the one that the sentences before are about, then those where something is sure."""
    by_attack: dict[str, list[Pair]] = {first: []}
    for each in beside:
        if each.side == "attacked":
            by_attack.setdefault(each.on, []).append(each)
    sure = [on for on, found in by_attack.items() if on != first and any(each.sure for each in found)]
    told = [words for on in [first, *sure[:OTHERS]] for words in _beside(by_attack[on], on)]
    left = len(sure) - OTHERS
    if left > 0:
        more = (
            "1 more attack with a sure difference is"
            if left == 1
            else f"{left} more attacks with a sure difference are"
        )
        told.append(f"{more} in the table of comparisons.")
    return told


def _beside(found: Sequence[Pair], under: str) -> list[str]:
    """What defences are worth on one thing, best first."""
    words = []
    for each in sorted(found, key=lambda each: each.gain, reverse=True):
        between = each.paired.difference if each.paired else None
        told = f", 95 % {between.low:+.4f} to {between.high:+.4f}" if between else ""
        held = f", p {each.p:.2g} after Holm" if each.verdict == CHANCE and each.p == each.p else ""
        words.append(f"{each.model} {each.difference:+.4f}{told} ({each.verdict}{held})")
    where = f"under {under}" if under else "on clean data"
    return [f"Beside no defence, {where}: {_and(words)}."] if words else []


def _and(names: Sequence[str]) -> str:
    shown = [*names[:3], *([f"{len(names) - 3} more"] if len(names) > 3 else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
