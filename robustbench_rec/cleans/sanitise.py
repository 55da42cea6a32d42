from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.features import is_prose
from robustbench_rec.text.rules import RULES, TextRules


@cleans.register
class Sanitise(Clean):
    """Item texts without disguises (invisible characters, lookalikes, NFKC), HTML, links and repetitions; a length cap.

    Mail addresses and phone numbers (+…, (555) 555-5555, 555-555-5555) go too, so that no text leads to a person.
    columns: of the item table (null: those whose name says prose). words: at most so many are left (null: all of them).
    No training event goes. It stays before the trained model: texts that an attack or a noise writes pass it too.
    """

    @dataclass
    class Config:
        columns: list[str] | None
        words: int | None

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.words is not None and config.words < 1:
            raise RrecError(f"clean.words={config.words}: must be at least 1")
        if config.columns == []:
            raise RrecError("clean.columns=[]: a column at least, or null for those of prose")
        self.rules = TextRules(config.words)

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        columns = self.config.columns
        for name in columns or ():
            if name not in data.text_columns:
                raise unknown(f"text column of dataset '{data.name}'", name, data.text_columns)
        chosen = list(filter(is_prose, data.text_columns)) if columns is None else columns
        if not chosen:
            others = f"; clean.columns takes any of {', '.join(data.text_columns)}" if data.text_columns else ""
            raise RrecError(f"clean=sanitise: dataset '{data.name}' has no column of prose{others}")
        texts: dict[str, dict[int, str]] = {}
        counts = dict.fromkeys(RULES, 0)
        for name in chosen:
            assert data.item_table is not None
            for row, text in enumerate(data.item_table[name].tolist()):
                if not isinstance(text, str):
                    continue
                clear, broken = self.rules.judged(text)
                if clear != text:
                    texts.setdefault(name, {})[row] = clear
                for rule in broken:
                    counts[rule] += 1
        counts["texts"] = sum(map(len, texts.values()))
        removed = torch.zeros(len(data.train), dtype=torch.bool)
        return Finding(removed, counts, texts=texts, rules=dict.fromkeys(chosen, self.rules))
