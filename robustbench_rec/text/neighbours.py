"""Words that are near others: by the vectors of a model, or by the titles that they share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec.text.words import WORD, part_of_speech

MOST = 5000  # words of titles that have vectors, the most frequent

AT_ONCE = 2048  # titles
AMONG = 10  # times as many as are wanted, of which those of the same part of speech are taken


@dataclass(frozen=True)
class Neighbours:
    """words: in lower case. vectors: one for each, of length 1 `[V, D]`."""

    words: tuple[str, ...]
    vectors: Tensor

    @classmethod
    def of(cls, words: Sequence[str], vectors: Tensor) -> "Neighbours":
        """Any vectors `[V, D]`."""
        return cls(tuple(words), F.normalize(vectors.detach().float(), dim=1))

    def nearest(self, word: str, count: int, *, cosine: float, same_part: bool) -> list[str]:
        """Up to so many other words, the nearest first.

        cosine: at least that near. same_part: of the same part of speech, by suffix.
        """
        word = word.lower()
        if word not in self.words:
            return []
        near = (self.vectors @ self.vectors[self.words.index(word)]).topk(min(len(self.words), AMONG * count))
        found: list[str] = []
        for value, place in zip(*(each.tolist() for each in near), strict=True):
            if value < cosine or len(found) == count:
                break
            other = self.words[place]
            if other != word and (not same_part or part_of_speech(other) == part_of_speech(word)):
                found.append(other)
        return found


def shared_titles(titles: Sequence[str], *, dim: int = 50) -> Neighbours:
    """Vectors of the words of titles: the positive PMI of standing in one title, cut to `dim` singular values.

    After Levy & Goldberg (NeurIPS 2014), with √Σ on the left vectors; the `MOST` most frequent words.
    """
    cut = [list(dict.fromkeys(WORD.findall(each.lower()))) for each in titles]
    counts: dict[str, int] = {}
    for each in cut:
        for word in each:
            counts[word] = counts.get(word, 0) + 1
    words = sorted(counts, key=lambda word: (-counts[word], word))[:MOST]
    codes = {word: code for code, word in enumerate(words)}
    places = [(row, codes[word]) for row, each in enumerate(cut) for word in each if word in codes]
    if not places:
        return Neighbours((), torch.zeros(0, dim))
    rows, columns = torch.tensor(places).T.contiguous()
    together = torch.zeros(len(words), len(words))
    for first in range(0, len(cut), AT_ONCE):
        part = slice(*torch.searchsorted(rows, torch.tensor([first, first + AT_ONCE])).tolist())
        held = torch.zeros(AT_ONCE, len(words))
        held[rows[part] - first, columns[part]] = 1
        together += held.T @ held
    together.fill_diagonal_(0)
    alone = together.sum(1)
    ratio = together * alone.sum() / (alone[:, None] * alone).clamp_min(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the decomposition is a randomised one
        left, values, _ = torch.svd_lowrank(ratio.clamp_min(1).log(), min(dim, len(words)), niter=4)
    return Neighbours.of(words, left * values.sqrt())
