"""What a sanitiser makes of a text: of the catalogue before training, and of any text that comes later."""

import re
from dataclasses import dataclass
from html import unescape

from robustbench_rec.text.sanitise import sanitise

RULES = ("html_or_links", "disguises", "contacts", "repeated_words", "too_long")
TAG = re.compile(r"<[!/a-zA-Z][^<>]*>")
LINK = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PHONE = re.compile(
    r"(?<![\w+])(?:\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|\(\d{2,4}\) ?\d{3,4}[ .-]\d{3,4}|\d{3}[ .-]\d{3}[ .-]\d{4})(?!\w)"
)
REPEATED = re.compile(r"\b((?!\d+\b)\w+)(?:[\s,;!?]+\1\b)+", re.IGNORECASE)  # numbers are no words: 24/24, 3.3


@dataclass(frozen=True)
class TextRules:
    """All of `RULES`, one after the other. words: at most so many are left (None: all of them)."""

    words: int | None

    def __call__(self, text: str) -> str:
        """The text after all of them."""
        return self.steps(text)[-1]

    def steps(self, text: str) -> list[str]:
        """The text before the first of `RULES`, with single spaces, and after each of them."""
        plain = " ".join(LINK.sub(" ", TAG.sub(" ", unescape(text))).split())
        honest = sanitise(plain)
        nobody = " ".join(PHONE.sub(" ", MAIL.sub(" ", honest)).split())
        once = REPEATED.sub(r"\1", nobody)
        words = once.split()
        short = " ".join(words if self.words is None else words[: self.words])
        return [" ".join(text.split()), plain, honest, nobody, once, short]
