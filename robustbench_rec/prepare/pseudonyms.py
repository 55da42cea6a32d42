"""Names of users that say nothing of who they are to those who lack the salt."""

import hmac
import os

import pandas as pd

from robustbench_rec.errors import RrecError

SALT = "RREC_SALT"
SHORTEST = 16
"""Characters of a salt: one that can be guessed hides nobody, since ids can be guessed as well."""


def salt() -> bytes:
    """That of the environment; RrecError where it is missing or short."""
    found = os.environ.get(SALT, "")
    if len(found) < SHORTEST:
        raise RrecError(
            f"prepare.pseudonyms=true: set the environment variable {SALT} to a secret of {SHORTEST} characters or more"
        )
    return found.encode()


def pseudonyms(ids: pd.Index) -> pd.Index:
    """HMAC-SHA256 of ids, 80 bits in hexadecimal; the same for the same salt, whatever the other ids are."""
    key = salt()
    return pd.Index([hmac.digest(key, str(each).encode(), "sha256").hex()[:20] for each in ids])
