"""What a report says about runs; every number is one of theirs, or a mean, spread or difference of them."""

from collections.abc import Sequence
from itertools import chain

from robustbench_rec.reports.page import Before, Page, Section
from robustbench_rec.reports.reading import Book
from robustbench_rec.reports.sections.attacks import curves, robust, threats
from robustbench_rec.reports.sections.compared import compared, pairs
from robustbench_rec.reports.sections.defences import finetuned, frontiers
from robustbench_rec.reports.sections.grouping import attacked, grouped, main_metric, once
from robustbench_rec.reports.sections.quality import certified, clean, gates, judged, poisoned
from robustbench_rec.reports.sections.runs import cost, failed, ran
from robustbench_rec.reports.sections.summary import subtitle, summary
from robustbench_rec.reports.sections.users import lists, slices


def page(book: Book, shown: Sequence[Before], notes: Sequence[str]) -> Page:
    """Everything that the files of the runs have something to say about."""
    asked = [each for each in book.runs if each.asked]
    finished = [each for each in book.runs if each.metrics is not None]
    done = once(finished, book)
    if left := len(finished) - len(done):
        words = (
            "1 run is left out: a later one repeats it"
            if left == 1
            else f"{left} runs are left out: later ones repeat them"
        )
        notes = [*notes, f"{words}, settings and seeds included."]
    trained = grouped(done, book)
    attacks = attacked(done, book)
    main = main_metric(chain.from_iterable(each.metrics or () for each in done))
    beside = pairs(trained, attacks, done, book, main)
    made: list[Section | None] = [
        threats(done, book),
        curves(attacks, book, main),
        clean(trained, book, main),
        robust(attacks, main),
        compared(beside, done),
        finetuned(done, book),
        frontiers(done, book, main),
        slices(done, book),
        poisoned(done, book, main),
        judged(done, book, main),
        certified(done, book),
        gates(done, book),
        lists(shown),
        ran(asked, book),
        cost(done, book),
        failed(asked),
    ]
    return Page(
        title="What was trained, attacked and found",
        subtitle=subtitle(asked, book),
        summary=summary(asked, trained, attacks, beside, done, book, main),
        sections=[each for each in made if each is not None],
        notes=notes,
    )
