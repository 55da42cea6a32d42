"""What may stand under the cursor."""

import json
import re
from collections.abc import Iterator, Sequence

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_rec.composing import session
from robustbench_rec.composing.words import PLACES, choices, first, limits, nested
from robustbench_rec.errors import RrecError

QUOTED = frozenset(" ,;=(){}[]$\"'\\|&<>`*?~#")
"""Signs in a value that a shell or Hydra takes for its own."""


def complete(verb: str, words: Sequence[str], incomplete: str) -> list[str]:
    """`group=choice` and `key=value` candidates for the word under the cursor, from the composed configuration."""
    *done, word = re.sub(r" ?= ?", "=", " ".join([*words, incomplete])).split(" ")
    if done and "=" not in done[-1]:  # bash splits "model=" at the sign and Typer drops it
        word = f"{done.pop()}={word}"
    try:
        with session():
            words = nested(limits([first(each) for each in done]))
            found = sorted(each for each in candidates(verb, words) if each.startswith(word))
    except (RrecError, HydraException, OmegaConfBaseException):
        return []
    return found if word == incomplete else [each.partition("=")[2] for each in found]


def candidates(verb: str, overrides: Sequence[str]) -> Iterator[str]:
    """Every key with its value, every choice of every group and where a run writes, within a `session`."""
    composed = hydra.compose(verb, list(overrides))
    yield from _leaves(composed)
    if verb not in ("data", "recommend"):  # they answer, and write no run
        yield from (f"{place}=" for place in PLACES)
    loader = GlobalHydra.instance().config_loader()
    for group in choices(verb, overrides):
        name, _, place = group.partition("@")
        key = group if not place or place.startswith("_global_") else place
        yield from (f"{key}={choice}" for choice in loader.get_group_options(name))


def _leaves(composed: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in ((str(key), value) for key, value in composed.items_ex(resolve=False)):
        if prefix and key == "name":
            continue  # the choice of the group
        if isinstance(value, DictConfig) and OmegaConf.is_missing(composed, key):
            yield f"{prefix}{key}="
        elif isinstance(value, DictConfig) and value._is_none():
            yield f"{prefix}{key}=null"
        elif isinstance(value, DictConfig):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}="
        elif isinstance(value, str):
            yield f"{prefix}{key}={'' if QUOTED & set(value) else value}"
        else:
            plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
            yield f"{prefix}{key}={json.dumps(plain, separators=(',', ':')).replace(chr(34), '')}"
