"""How far an edited text is from what it was."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
UNITS = ("characters", "words")
N = 3  # characters of an n-gram


def levenshtein(old: Sequence[str], new: Sequence[str], unit: str = "characters") -> Array:
    """Fewest insertions, deletions and substitutions from each text to its partner, int64 `[n]`; unit: of `UNITS`."""
    pairs = [(a, b) if unit == "characters" else (a.split(), b.split()) for a, b in zip(old, new, strict=True)]
    codes = {each: number for number, each in enumerate(dict.fromkeys(part for a, b in pairs for part in (*a, *b)))}
    first, second = (_padded([[codes[part] for part in pair[side]] for pair in pairs]) for side in (0, 1))
    ends = np.array([[len(a), len(b)] for a, b in pairs], dtype=np.int64).reshape(-1, 2)
    across = np.arange(second.shape[1] + 1)
    row = np.repeat(across[None], len(pairs), 0)  # [n, L + 1]: of the empty beginning
    found = np.where(ends[:, 0] == 0, ends[:, 1], 0)
    for place in range(first.shape[1]):
        differs = first[:, [place]] != second
        best = np.minimum(row[:, :-1] + differs, row[:, 1:] + 1)
        best = np.concatenate([np.full((len(pairs), 1), place + 1), best], axis=1)
        row = np.minimum.accumulate(best - across, axis=1) + across  # insertions
        here = ends[:, 0] == place + 1
        found[here] = row[here, ends[here, 1]]
    return found


class Similarity:
    """Cosine of the TF-IDF of character trigrams, in lower case; 1 for equal texts.

    As scikit-learn's TfidfVectorizer(analyzer="char", ngram_range=(3, 3)) with a space at either end, fitted on the
    given texts; a trigram that these do not have is as rare as can be.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        for each in texts:
            self.counts.update(set(_grams(each)))
        self.n = len(texts)

    def __call__(self, old: str, new: str) -> float:
        a, b = self._weights(old), self._weights(new)
        product = sum(value * b.get(gram, 0.0) for gram, value in a.items())
        norm = (sum(each**2 for each in a.values()) * sum(each**2 for each in b.values())) ** 0.5
        return product / norm if norm else float(old == new)

    def _weights(self, text: str) -> dict[str, float]:
        return {
            gram: count * (1 + float(np.log((1 + self.n) / (1 + self.counts[gram]))))
            for gram, count in Counter(_grams(text)).items()
        }


def overlap(old: str, new: str) -> float:
    """Words in common as a share of all words of both, in lower case (Jaccard); 1 for no words at all."""
    a, b = set(old.lower().split()), set(new.lower().split())
    return len(a & b) / len(a | b) if a | b else 1.0


def _grams(text: str) -> list[str]:
    text = f" {text.lower()} "
    return [text[at : at + N] for at in range(len(text) - N + 1)]


def _padded(rows: list[list[int]]) -> Array:
    found = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
