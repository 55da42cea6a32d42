from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch

from robustbench_rec.attacks import attacks
from robustbench_rec.batch import Batch
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.objective import Scalar
from robustbench_rec.rewording import Rewording, aimed_at
from robustbench_rec.shifted import Shifted
from robustbench_rec.text.distances import levenshtein
from robustbench_rec.text.edits import KINDS, kinds


@attacks.register
class TextNoise(Rewording):
    """Edits of item texts without a look at the model: typing errors, disguises, added words.

    kind: a name of `text.edits.KINDS`. edits: Levenshtein distance at most, in characters, or in words for the kinds
    that move or add words. share: of the items that are edited where the goal is about none, drawn by `seed`: natural
    noise. One that a text has no room for is not made. Stuffing copies words of the items with the most events. In a
    training it draws items and edits anew for every batch.
    """

    @dataclass
    class Config:
        kind: str
        edits: int
        share: float
        column: str | None
        seed: int

    natural: ClassVar[bool] = True
    stream: torch.Generator | None = None

    def __init__(self, config: Config) -> None:
        if config.kind not in KINDS:
            raise unknown("kind of text_noise", config.kind, KINDS)
        if not 0 <= config.share <= 1 or config.edits < 0:
            told = f"share={config.share}, edits={config.edits}"
            raise RrecError(f"text_noise with {told}: a share in [0, 1] and edits >= 0 are needed")
        kind = kinds(())[config.kind]
        if 0 < config.edits < kind.least:
            raise RrecError(
                f"text_noise with kind={config.kind}, edits={config.edits}: an edit of that kind takes at least "
                f"{kind.least} {kind.unit}"
            )
        super().__init__(config.column, config.seed)
        self.kind, self.edits, self.share = config.kind, config.edits, config.share

    @property
    def passes(self) -> int:
        return 0

    @property
    def budget(self) -> str:
        return f"{self.kind}, {self.edits} {kinds(())[self.kind].unit}"

    def drawing_from(self, generator: torch.Generator) -> "TextNoise":
        drawing = copy(self)
        drawing.stream = generator
        return drawing

    def __call__(self, at: Shifted, batch: Batch, objective: Scalar) -> tuple[Shifted, Batch]:
        seed = self.seed if self.stream is None else int(torch.randint(2**62, (1,), generator=self.stream))
        kind = kinds(self.ready.popular)[self.kind]
        old = self.ready.texts
        if batch.aims is not None:
            items = aimed_at(batch, "text_noise")
        else:
            drawn = torch.randperm(len(old), generator=torch.Generator().manual_seed(seed))
            items = drawn[: round(self.share * len(old))].sort().values.tolist()
        new = [kind.edit(old[item], self.generator(item, seed), self.edits // kind.cost) for item in items]
        distances = levenshtein([old[item] for item in items], new, kind.unit)
        assert (distances <= self.edits).all(), f"{self.kind} goes beyond its budget"
        return self.reworded(at, items, new, [0] * len(items)), batch
