import re
from dataclasses import dataclass
from html import unescape

import torch
from torch import Tensor

from robustbench_rec.clean import Clean, Finding
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.features import is_prose
from robustbench_rec.text.sanitise import sanitise

TAG = re.compile(r"<[!/a-zA-Z][^<>]*>")
LINK = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
REPEATED = re.compile(r"\b((?!\d+\b)\w+)(?:[\s,;!?]+\1\b)+", re.IGNORECASE)  # numbers are no words: 24/24, 3.3


@cleans.register
class Sanitise(Clean):
    """Item texts without disguises: HTML, links, invisible characters, lookalikes, repeated words, NFKC, a length cap.

    columns: of the item table (null: those whose name says prose). words: at most so many are left (null: all of them).
    No training event goes.
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

    def find(self, data: Data, fake: Tensor | None) -> Finding:
        columns = self.config.columns
        for name in columns or ():
            if name not in data.text_columns:
                raise unknown(f"text column of dataset '{data.name}'", name, data.text_columns)
        texts: dict[str, dict[int, str]] = {}
        counts = {"html_or_links": 0, "disguises": 0, "repeated_words": 0, "too_long": 0}
        for name in columns if columns is not None else filter(is_prose, data.text_columns):
            assert data.item_table is not None
            for row, text in enumerate(data.item_table[name].tolist()):
                if isinstance(text, str) and (clear := self._clear(text, counts)) != text:
                    texts.setdefault(name, {})[row] = clear
        counts["texts"] = sum(map(len, texts.values()))
        return Finding(torch.zeros(len(data.train), dtype=torch.bool), counts, texts=texts)

    def _clear(self, text: str, counts: dict[str, int]) -> str:
        """The text after all rules, each of which is counted where it changed something."""
        plain = " ".join(LINK.sub(" ", TAG.sub(" ", unescape(text))).split())
        honest = sanitise(plain)
        once = REPEATED.sub(r"\1", honest)
        words = once.split()
        short = " ".join(words if self.config.words is None else words[: self.config.words])
        before = " ".join(text.split())
        for rule, (old, new) in zip(
            counts, ((before, plain), (plain, honest), (honest, once), (once, short)), strict=False
        ):
            counts[rule] += old != new
        return short
