from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.rewording import Column, Probe, Rewording, aimed_at, queries_each
from robustbench_rec.shifted import Shifted
from robustbench_rec.text.neighbours import Neighbours, shared_titles
from robustbench_rec.text.recipes import NEAR, RECIPES, Limits, phrases, substitutes
from robustbench_rec.text.words import Pieces
from robustbench_rec.threat import Threat

VECTORS = ("model", "titles")


@attacks.register
class TextSearch(Rewording):
    """Greedy search for the edit of a title that helps most, word by word (Zhang et al., ACL 2024, for recommenders).

    recipe: textfooler (Jin et al., AAAI 2020: nearest words), textbugger (Li et al., NDSS 2019: spaces, deletions,
    swaps, homoglyphs, nearest words), deepwordbug (Gao et al., SPW 2018: swaps, substitutions, deletions, insertions),
    punctuation (' and - in words), stuffing (words of the most popular titles), insertion (praise, sentences, prompts).
    queries: evaluations of the loss in all, in equal parts for each item. similarity, words, characters, added: see
    `Limits`; null is the recipe's own. vectors: what makes words near, those of the model's tokens or the titles
    they share. cosine: of near words, at least. same_part: of speech, by suffix, for textfooler.

    Words are tried in the order in which their deletion helps; each is replaced once, by what raises the loss most, if
    anything does. Stop-words, numbers and labels of attributes stay. Unlike the papers, nearest words are no
    counter-fitted vectors, similarity is the cosine of character trigrams instead of sentence vectors, and the search
    does not end where the exposure has risen by 0.05.
    """

    @dataclass
    class Config:
        recipe: str
        queries: int
        similarity: float | None
        words: float | None
        characters: int | None
        added: int | None
        vectors: str
        cosine: float
        same_part: bool
        column: str | None
        seed: int

    threat: ClassVar[Threat] = replace(Rewording.threat, knowledge="score", budget="edits and queries")
    aimed: ClassVar[bool] = True
    near: Neighbours | None = None

    def __init__(self, config: Config) -> None:
        if config.recipe not in RECIPES:
            raise unknown("recipe of text_search", config.recipe, RECIPES)
        if config.vectors not in VECTORS:
            raise unknown("vectors of text_search", config.vectors, VECTORS)
        asked = {name: getattr(config, name) for name in asdict(Limits())}
        self.limits = replace(
            RECIPES[config.recipe], **{name: each for name, each in asked.items() if each is not None}
        )
        if config.queries < 1 or any(each is not None and each < 0 for each in asdict(self.limits).values()):
            raise RrecError(f"text_search with queries={config.queries}, {self.limits}: queries >= 1, limits >= 0")
        super().__init__(config.column, config.seed)
        self.config = config

    @property
    def passes(self) -> int:
        return self.config.queries

    @property
    def budget(self) -> str:
        limits = ", ".join(f"{name} {each:g}" for name, each in asdict(self.limits).items() if each is not None)
        return f"{self.config.recipe}, {limits}, {self.config.queries} queries"

    @property
    def declared(self) -> Threat:
        looks_inside = self.config.recipe in NEAR and self.config.vectors == "model"
        return replace(super().declared, knowledge="white-box" if looks_inside else "score")

    def prepared(self, model: RecModel, data: Data) -> "TextSearch":
        found = super().prepared(model, data)
        if self.config.recipe in NEAR:
            found.near = _near(found.ready, self.config.vectors)
        return found

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        items = aimed_at(batch, "text_search")
        queries = queries_each(self.config.queries, items, "text_search")
        here, texts, used = at, [], []
        for item in items:
            probe = Probe(self.ready, here, item, batch, objective, queries=queries)
            texts.append(_Search(self, probe).run())
            used.append(probe.used)
            here = here.shift(self.ready.delta(here, [item], texts[-1:]))
        return self.reworded(at, items, texts, used), batch


class _Search:
    """For the text of one item."""

    def __init__(self, attack: TextSearch, probe: Probe) -> None:
        self.attack, self.probe = attack, probe
        self.best, self.value = probe.old, -float("inf")

    def run(self) -> str:
        """The best text that was found."""
        self._try([self.best])
        if self.attack.config.recipe in ("stuffing", "insertion"):
            self._add()
        else:
            self._replace()
        return self.best

    def _replace(self) -> None:
        config, pieces = self.attack.config, Pieces.of(self.best)
        rng, most = self.attack.generator(self.probe.item, self.attack.seed), self.attack.limits.most(pieces.n_words)
        asked, room = pieces.editable, max(1, self.probe.left // 2)  # the other half is for what replaces them
        if len(asked) > room:
            asked = tuple(asked[each] for each in sorted(rng.permutation(len(asked))[:room]))
        without = self.probe.values([pieces.putting(word, "").text for word in asked])
        order = sorted(zip(without, asked, strict=False), key=lambda each: -each[0])
        changed = 0
        for _, word in order:
            if changed >= most:
                return
            new = substitutes(
                config.recipe,
                pieces.parts[word],
                rng,
                self.attack.near,
                cosine=config.cosine,
                same_part=config.same_part,
            )
            if self._try([pieces.putting(word, each).text for each in new]):
                chosen = next(each for each in new if pieces.putting(word, each).text == self.best)
                pieces, changed = pieces.putting(word, chosen), changed + 1

    def _add(self) -> None:
        tried = phrases(self.attack.config.recipe, self.attack.ready.popular)
        while self._try([f"{self.best} {each}".strip() for each in tried if each not in self.best]):
            pass

    def _try(self, texts: Sequence[str]) -> bool:
        """Go to the best of the texts within the limits, if it is better than what there is."""
        allowed = self.probe.allowed(texts, self.attack.limits)
        values = self.probe.values(allowed)
        if not values or max(values) <= self.value:
            return False
        self.value = max(values)
        self.best = allowed[values.index(self.value)]
        return True


def _near(column: Column, vectors: str) -> Neighbours:
    reader = column.reader
    if vectors == "model" and reader.words:
        return Neighbours.of(reader.words, reader.vectors[reader.codes])
    return shared_titles(column.texts)
