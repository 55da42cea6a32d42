"""Words of a text, and which of them an edit leaves alone."""

import re
from dataclasses import dataclass
from itertools import pairwise

WORD = re.compile(r"\w+")
LABELS = frozenset({"author", "brand", "category", "description", "genre", "name", "tags", "title", "year"})
"""Names of attributes, protected where a colon follows them."""
FUNCTION = """a about after all also am an and any are as at be because been before being between both but by can could
did do does for from had has have he her here him his how i if in into is it its just me my no nor not of off on once
only or other our out over own s same she should so some such t than that the their them then there these they this
those through to too under until up very was we were what when where which while who whom why will with would you
your"""
STOP = frozenset(FUNCTION.split())
"""Words of grammar, that every attack leaves alone."""
SUFFIXES = (
    ("adverb", ("ly",)),
    ("verb", ("ing", "ed", "ize", "ise", "ify")),
    ("adjective", ("able", "ible", "al", "ful", "ic", "ish", "ive", "less", "ous", "est")),
    ("noun", ("ness", "ment", "tion", "sion", "ity", "ship", "ism", "ist", "ance", "ence", "er", "or", "hood")),
    ("plural", ("s",)),
)

Span = tuple[int, int]


def spans(text: str) -> list[Span]:
    """Where the words stand."""
    return [each.span() for each in WORD.finditer(text)]


def editable(text: str) -> list[Span]:
    """Where the words stand that may be changed: neither stop-words nor labels of attributes nor numbers."""
    return [
        (start, end)
        for start, end in spans(text)
        if text[start:end].lower() not in STOP
        and not text[start:end].isdigit()
        and not (text[start:end].lower() in LABELS and text[end : end + 1] == ":")
    ]


@dataclass(frozen=True)
class Pieces:
    """A text in pieces, that words can be replaced in.

    parts: what is no word and what is, in turn. editable: places of the words that may be changed.
    """

    parts: tuple[str, ...]
    editable: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Pieces":
        found, free = spans(text), set(editable(text))
        edges = [0, *(edge for span in found for edge in span), len(text)]
        parts = tuple(text[start:end] for start, end in pairwise(edges))
        return cls(parts, tuple(2 * each + 1 for each, span in enumerate(found) if span in free))

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def n_words(self) -> int:
        return len(self.parts) // 2

    def start(self, place: int) -> int:
        """Where a part begins in the text."""
        return sum(map(len, self.parts[:place]))

    def putting(self, place: int, new: str) -> "Pieces":
        """Another word at a place, which then stays."""
        parts = (*self.parts[:place], new, *self.parts[place + 1 :])
        return Pieces(parts, tuple(each for each in self.editable if each != place))


def part_of_speech(word: str) -> str:
    """By the suffix of an English word, "other" where none tells."""
    for name, endings in SUFFIXES:
        if any(word.endswith(each) and len(word) > len(each) + 2 for each in endings):
            return name
    return "other"


def in_case_of(word: str, model: str) -> str:
    """`word` in capitals where `model` is."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word
