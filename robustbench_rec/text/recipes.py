"""Published ways of finding an edit that a model falls for: what may replace a word, what may be added, and limits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustbench_rec.text.edits import (
    HOMOGLYPHS,
    POSITIVE,
    PROMPTS,
    PUNCTUATION,
    SENTENCES,
    delete,
    homoglyph,
    insert,
    substitute,
    swap,
)
from robustbench_rec.text.neighbours import Neighbours
from robustbench_rec.text.words import in_case_of

PHRASES = 50  # words of popular titles that are tried


@dataclass(frozen=True)
class Limits:
    """similarity: at least, of what the model reads. words: share of the words that may change, at least one may.

    characters: Levenshtein distance at most. added: words at most. None: no limit.
    """

    similarity: float | None = None
    words: float | None = None
    characters: int | None = None
    added: int | None = None

    def most(self, n_words: int) -> int:
        """Words of so many that may be replaced."""
        return n_words if self.words is None else max(1, int(self.words * n_words + 1e-9))


RECIPES = {
    "textfooler": Limits(similarity=0.8, words=0.2),
    "textbugger": Limits(similarity=0.8, words=0.2),
    "deepwordbug": Limits(characters=30),
    "punctuation": Limits(similarity=0.8),
    "stuffing": Limits(added=3),
    "insertion": Limits(added=7),
}
NEAR = {"textfooler": 50, "textbugger": 5}
"""Nearest words that a recipe tries."""


def substitutes(
    recipe: str, word: str, rng: np.random.Generator, near: Neighbours | None, *, cosine: float, same_part: bool
) -> list[str]:
    """What a recipe puts in the place of a word, each once."""
    found: list[str] = []
    if recipe == "deepwordbug":
        found = [edit(word, rng, 1) for edit in (swap, substitute, delete, insert)]
    if recipe == "punctuation":
        found = [word[:at] + mark + word[at:] for at in range(1, len(word)) for mark in PUNCTUATION]
    if recipe == "textbugger":
        at = int(rng.integers(1, max(2, len(word))))
        found = [f"{word[:at]} {word[at:]}" if len(word) > 1 else word, delete(word, rng, 1), swap(word, rng, 1)]
        found += [homoglyph(word, rng, 1)] if any(each in HOMOGLYPHS for each in word) else []
    if near is not None:
        words = near.nearest(word, NEAR[recipe], cosine=cosine, same_part=same_part and recipe == "textfooler")
        found += [in_case_of(each, word) for each in words]
    return [each for each in dict.fromkeys(found) if each != word]


def phrases(recipe: str, popular: Sequence[str]) -> list[str]:
    """What a recipe adds to a text."""
    return list(popular[:PHRASES]) if recipe == "stuffing" else [*POSITIVE, *SENTENCES, *PROMPTS]
