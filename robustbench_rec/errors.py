"""The errors that a person sees as one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class RrecError(Exception):
    """A mistake that the person at the keyboard can mend; shown as one line, without a traceback.

    status: of the process, where a single run ends with it.
    """

    status = 1


class UsageError(RrecError):
    """Settings that make no run; nothing has begun."""

    status = 2


def unknown(what: str, name: str, choices: Iterable[str]) -> RrecError:
    """The error for a name that is not among `choices`: it names them, and the nearest one."""
    known = sorted(choices)
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return RrecError(f"unknown {what} '{name}'{hint} (choices: {', '.join(known) or 'none'})")
