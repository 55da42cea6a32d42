from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Scalar
from robustbench_rec.rewording import Probe, Rewording, aimed_at, queries_each
from robustbench_rec.shifted import Shifted
from robustbench_rec.text.recipes import Limits
from robustbench_rec.text.words import Pieces, in_case_of
from robustbench_rec.threat import Threat


@attacks.register
class HotFlip(Rewording):
    """Words of titles replaced along the gradient in the vectors of their tokens (Ebrahimi et al., ACL 2018).

    words: share of a title's words that may change, at least one. flips: pairs of a word and its replacement with the
    largest (e_b − e_a)·∇ that are tried in a forward pass, for each title of the beam. beam: titles that are kept.
    similarity: see `Limits`; null for none. queries: forward passes and gradients in all, in equal parts for each item.

    A replacement is a word with a token of its own. Of a word of several tokens the first one's gradient counts, and
    where a token stands twice, that of both; the forward pass decides. Behind a sanitiser both are those of what it
    leaves, and a word that it takes out has no gradient.
    """

    @dataclass
    class Config:
        words: float
        flips: int
        beam: int
        similarity: float | None
        queries: int
        column: str | None
        seed: int

    threat: ClassVar[Threat] = replace(Rewording.threat, knowledge="white-box", budget="words and queries")

    aimed: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        if min(config.flips, config.beam, config.queries) < 1 or config.words < 0:
            raise RrecError(
                f"hotflip with words={config.words}, flips={config.flips}, beam={config.beam}, "
                f"queries={config.queries}: words >= 0, the others >= 1 are needed"
            )
        super().__init__(config.column, config.seed)
        self.config = config
        self.limits = Limits(similarity=config.similarity, words=config.words)

    @property
    def passes(self) -> int:
        return self.config.queries

    @property
    def budget(self) -> str:
        return f"{self.config.words:g} of the words, {self.config.queries} queries"

    def prepared(self, model: RecModel, data: Data) -> "HotFlip":
        found = super().prepared(model, data)
        if not found.ready.reader.words:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(f"hotflip: model '{name}' has no vectors of words; text_search needs none")
        return found

    @torch.no_grad()
    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        items = aimed_at(batch, "hotflip")
        queries = queries_each(self.config.queries, items, "hotflip")
        here, texts, used = at, [], []
        for item in items:
            probe = Probe(self.ready, here, item, batch, objective, queries=queries)
            texts.append(self._search(probe))
            used.append(probe.used)
            here = here.shift(self.ready.delta(here, [item], texts[-1:]))
        return self.reworded(at, items, texts, used), batch

    def _search(self, probe: Probe) -> str:
        start = Pieces.of(probe.old)
        beam = [(value, start) for value in probe.values([start.text])]
        found = {pieces.text: value for value, pieces in beam}
        for _ in range(self.limits.most(start.n_words)):
            new = {each.text: each for _, pieces in beam for each in self._flips(probe, pieces)}
            allowed = [each for each in probe.allowed(list(new), self.limits) if each not in found]
            values = dict(zip(allowed, probe.values(allowed), strict=False))
            found |= values
            best = sorted(values, key=lambda each: -values[each])[: self.config.beam]
            beam = [(values[each], new[each]) for each in best]
        return max(found, key=lambda each: found[each], default=probe.old)

    def _flips(self, probe: Probe, pieces: Pieces) -> list[Pieces]:
        """The most promising replacements of one word, to first order."""
        reader, places = self.ready.reader, pieces.editable
        if probe.used + 1 >= probe.queries:
            return []
        (read,) = self.ready.joined(probe.item, [pieces.text])
        first = self.ready.start(probe.item, pieces.text) - len(pieces.text) + len(pieces.text.lstrip())
        tokens = reader.begins(read, [first + pieces.start(each) for each in places])
        standing = [(place, token) for place, token in zip(places, tokens, strict=True) if token is not None]
        if not standing:
            return []
        at = torch.tensor([token for _, token in standing], device=reader.codes.device)
        slopes = probe.slopes(pieces.text)[at]  # [W, D]
        gains = slopes @ reader.vectors[reader.codes].T - (slopes * reader.vectors[at]).sum(1, keepdim=True)  # [W, V]
        best = gains.flatten().topk(min(self.config.flips, gains.numel())).indices.tolist()
        found = []
        for each in best:
            place, _ = standing[each // len(reader.words)]
            word = reader.words[each % len(reader.words)]
            if word != pieces.parts[place].lower():
                found.append(pieces.putting(place, in_case_of(word, pieces.parts[place])))
        return found
