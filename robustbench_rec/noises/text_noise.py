from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.features import is_prose
from robustbench_rec.noise import Level, Noise
from robustbench_rec.noises import noises
from robustbench_rec.text.edits import Kind, kinds

KINDS: dict[str, Kind] = {name: kind for name, kind in kinds(()).items() if kind.unit == "characters"}


@noises.register
class TextNoise(Noise):
    """Texts of items with typing errors.

    level: share of the words; each text gets an edit for each of its words with this probability, anywhere in it. kind:
    of the edits, one of `text.edits.KINDS` that changes characters. column: of the item table, null for all of prose.
    A model that is trained already keeps its words and their numbers. The natural noise beside `attack=text_noise`,
    which has a budget for each text.
    """

    @dataclass
    class Config(Level):
        kind: str
        column: str | None

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.kind not in KINDS:
            raise unknown("noise.kind", config.kind, KINDS)
        self.kind, self.column = config.kind, config.column

    def change(self, data: Data, generator: torch.Generator) -> Data:
        table, columns = data.item_table, self._columns(data)
        assert table is not None
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        edited = {}
        for name in columns:
            texts = table[name].astype("object")
            words = texts.where(texts.notna(), "").astype("str").str.count(r"\S+").to_numpy()
            counts = rng.binomial(words, self.level)
            edited[name] = texts.copy()
            for row in counts.nonzero()[0].tolist():
                edited[name].iat[row] = KINDS[self.kind].edit(str(texts.iat[row]), rng, int(counts[row]))
        return replace(data, item_table=table.assign(**edited))

    def _columns(self, data: Data) -> list[str]:
        if self.column is not None and self.column not in data.text_columns:
            raise unknown(f"noise.column of the items of dataset '{data.name}'", self.column, data.text_columns)
        found = [name for name in data.text_columns if is_prose(name)] if self.column is None else [self.column]
        if not found:
            told = ", ".join(data.text_columns)
            raise RrecError(f"noise 'text_noise': name a column of dataset '{data.name}', noise.column=<one of {told}>")
        return found
