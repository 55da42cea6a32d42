"""What a directory may ask for when what it holds goes on."""

import re
from collections.abc import Sequence

from robustbench_rec.errors import RrecError


def refuse_foreign(words: Sequence[str], told: str, known: Sequence[str]) -> None:
    """RrecError where words that a directory holds ask Hydra for what it would load or run; known: keys that do not.

    Hydra takes flags from them too, and one of these loads a pickle.
    """
    for each in words:
        key = each.partition("=")[0].lstrip("+~")
        asks = re.search(r"(^|[@:])hydra\b", key) and not key.startswith(tuple(known))
        if asks or each.startswith("-") or "_target_" in each:
            raise RrecError(
                f"{told} has the word '{each}', which rrec does not take from a file: give the whole command, with its "
                "place, again"
            )
