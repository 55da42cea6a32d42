"""What is wrong with the words of a command line, in one line."""

import re
from collections.abc import Sequence
from contextlib import suppress

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from robustbench_rec.composing import session
from robustbench_rec.composing.completion import candidates
from robustbench_rec.composing.keys import unchosen, unknown_key
from robustbench_rec.composing.words import choices as choices_of
from robustbench_rec.errors import RrecError, unknown


def explain(error: Exception, verb: str, overrides: Sequence[str]) -> str:
    """An error of Hydra, OmegaConf or our own as one line that names the key, the choices or the next step."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, RrecError):
        return " ".join(lines)
    if isinstance(error, AssertionError):  # of OmegaConf: a key below one that is null
        keys, choices = _known(verb, overrides)
        asked = [each.partition("=")[0].lstrip("+~") for each in overrides]
        lost = [key for key in asked if unchosen(key, keys, choices)]
        return unknown_key(lost[0], verb, keys, choices) if lost else "; ".join(lines)
    if isinstance(error, OverrideParseException):
        key, sign, value = error.override.partition("=")
        if not sign:
            return f"cannot read '{error.override}': write key=value"
        reason = re.sub(r"^(?:\w*Exception: ?|Error parsing override .*)", "", lines[0])
        told = f"cannot read '{error.override}'{f': {reason}' if reason not in ('', error.override) else ''}"
        hint = f"; a value with other signs is quoted inside: {_quoted(key, value)}"
        return told if {'"', "'"} <= set(value) else f"{told}{hint}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        plugins = "; more come with the extras launchers and sweeps" if group.startswith("hydra/") else ""
        return f"{unknown(group or 'configuration', name, error.options or ())}{plugins}"
    if sweeping := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']*)'", text):
        key, _, value = sweeping[1].partition("=")
        return f"'{sweeping[1]}' is a sweep: add -m (a list is written key=[a,b], one value {_quoted(key, value)})"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if refused := re.search(r"Could not override '([^']+)|^Key '([^']+)'", f"{text}\n{cause}", re.MULTILINE):
        key = refused[1] or getattr(cause, "full_key", None) or refused[2]
        return unknown_key(key, verb, *_known(verb, overrides))
    if isinstance(cause, OmegaConfBaseException):
        reason = str(cause).partition("\n")[0]
        if "is not a ListConfig" in reason:
            reason = f"a list is written {cause.full_key}=[a,b]"
        return f"{cause.full_key}: {reason}" if cause.full_key else reason
    return "; ".join(lines)


def _quoted(key: str, value: str) -> str:
    """How a shell is given a value that is not to be taken apart."""
    if "'" in value:
        return rf'"{key}=\"{value}\""'
    if '"' in value:
        return f"\"{key}='{value.replace(chr(34), chr(92) + chr(34))}'\""
    return f"""'{key}="{value}"'"""


def _known(verb: str, overrides: Sequence[str]) -> tuple[set[str], set[str]]:
    """The keys that the overrides of groups alone compose, and the groups."""
    keys, choices = set[str](), set[str]()
    with suppress(HydraException, OmegaConfBaseException), session():
        choices = set(choices_of(verb, []))
        named = {each: re.split("[@=]", each.lstrip("+"))[0] for each in overrides}
        chosen = [each for each, group in named.items() if group in choices and "," not in each]
        keys = {each.partition("=")[0] for each in candidates(verb, chosen)}
    return keys, choices
