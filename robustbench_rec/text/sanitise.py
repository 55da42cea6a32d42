"""Texts as they were before somebody disguised them: invisible characters, lookalikes, repetitions."""

import re
import unicodedata

from robustbench_rec.text.edits import HOMOGLYPHS, ZERO_WIDTH
from robustbench_rec.text.words import WORD

INVISIBLE = dict.fromkeys(map(ord, ZERO_WIDTH + "\u00ad\u180e\u2061\u2062\u2063\u2064"))
LATIN = {each: latin for latin, each in HOMOGLYPHS.items()}
REPEATED = re.compile(r"([^\w\s])\1+")


def visible(text: str) -> str:
    """Without characters of no width; those that join Persian letters or emoji go too."""
    return text.translate(INVISIBLE)


def compatible(text: str) -> str:
    """Unicode NFKC: full width, ligatures and other variants become the plain character."""
    return unicodedata.normalize("NFKC", text)


def latin(text: str) -> str:
    """Lookalikes as Latin letters, in words made of nothing else: a word of another script has other letters too."""

    def word(found: re.Match[str]) -> str:
        letters = [each for each in found[0] if each.isalpha()]
        plain = all(each in LATIN or "LATIN" in unicodedata.name(each, "") for each in letters)
        return "".join(LATIN.get(each, each) for each in found[0]) if plain else found[0]

    return WORD.sub(word, text)


def once(text: str) -> str:
    """Repeated punctuation and white space, each once."""
    return " ".join(REPEATED.sub(r"\1", text).split())


def sanitise(text: str, *, fold_case: bool = False) -> str:
    """All of it; idempotent. fold_case: in lower case too, as case-insensitive comparison has it."""
    found = once(latin(compatible(visible(text))))
    return compatible(found.casefold()) if fold_case else found
