"""What a sanitiser makes of a text: of the catalogue before training, and of any text that comes later."""

import re
from dataclasses import dataclass
from html import unescape
from itertools import pairwise

from robustbench_rec.text.sanitise import compatible, latin, once, visible

RULES = ("disguises", "html_or_links", "repeated_signs", "contacts", "repeated_words", "too_long")
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
    """All of `RULES`, one after the other, disguises first. words: at most so many are left (None: all of them).

    disguises: HTML's names of characters, characters of no width, lookalikes and other variants of plain characters.
    They are gone through again until nothing changes: what one takes away can have hidden something from those before.
    """

    words: int | None

    def __call__(self, text: str) -> str:
        """The text after all of them."""
        return self.judged(text)[0]

    def judged(self, text: str) -> tuple[str, set[str]]:
        """The text after all of them, and which of them changed it by more than spaces."""
        clear, broken = " ".join(text.split()), set[str]()
        while True:
            steps = [clear, *_steps(clear)]
            broken.update(rule for rule, (old, new) in zip(RULES, pairwise(steps), strict=False) if old != new)
            clear = steps[-1]
            if clear == steps[0]:
                words = clear.split()
                if self.words is None or len(words) <= self.words:
                    return clear, broken
                clear = " ".join(words[: self.words])
                broken.add(RULES[-1])


def _steps(text: str) -> list[str]:
    """After each of `RULES` but the last, once."""
    honest = " ".join(latin(compatible(visible(unescape(text)))).split())
    plain = " ".join(LINK.sub(" ", TAG.sub(" ", honest)).split())
    calm = once(plain)
    nobody = " ".join(PHONE.sub(" ", MAIL.sub(" ", calm)).split())
    return [honest, plain, calm, nobody, REPEATED.sub(r"\1", nobody)]
