"""What people write, in words that Hydra composes."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_rec import composing, config
from robustbench_rec.errors import RrecError, unknown

PLACES = ("hydra.run.dir", "hydra.sweep.dir")
"""What names where a run, and a sweep, writes."""
NESTED = ("defense", "clean", "distill")
"""Groups of which several can be chosen, one inside the other."""


def limits(overrides: Sequence[str]) -> list[str]:
    """`max_drop.ndcg@10=5%` as a mapping with all of the key, since Hydra reads an @ in a key as a package."""
    keys = "|".join(config.LIMITS)
    forms = [re.compile(rf"({keys})\.([^=]+)=([^,]+)"), re.compile(rf"({keys})=\{{([^{{}}]*)\}}")]
    found = {each: next(filter(None, (form.fullmatch(each) for form in forms)), None) for each in overrides}
    said: dict[str, dict[str, str]] = {}
    for match in filter(None, found.values()):
        pairs = [match.groups()[1:]] if match.re is forms[0] else [each.split(":", 1) for each in match[2].split(",")]
        for name, value in ((each[0].strip(), each[-1].strip()) for each in pairs if any(each)):
            if said.setdefault(match[1], {}).setdefault(name, value) != value:
                raise RrecError(f"{match[1]}.{name} has two limits, {said[match[1]][name]} and {value}: leave one out")
    mappings = (
        f"{key}={{{', '.join(f'{name}: {value}' for name, value in each.items())}}}" for key, each in said.items()
    )
    return [*(each for each in overrides if not found[each]), *mappings]


def texts(verb: str, overrides: Sequence[str]) -> list[str]:
    """Texts in quotes, for Hydra reads 1e5, 1_000 or true as what they are in YAML."""
    keys, plain = config.TEXTS.get(verb, ()), r"""[^\s,"'\[\]{}\\][^,"'\[\]{}\\]*"""
    form = re.compile(rf"(?!\w+\(.*,)(\[\s*)?({plain}(?:,\s*{plain})*)(\])?")  # not choice(a,b)
    words = []
    for each in overrides:
        key, _, value = each.partition("=")
        found = form.fullmatch(value) if key in keys and value != "null" else None
        if found and (found[1] is None) == (found[3] is None):
            quoted = ",".join(f'"{one.strip()}"' for one in found[2].split(","))
            words.append(f"{key}=[{quoted}]" if found[1] else f"{key}={quoted}")
        else:
            words.append(each)
    return words


def chosen(verb: str, overrides: Sequence[str]) -> list[str]:
    """`nested`, with one name for each of the other groups; `group=null` goes where nothing is the default anyway.

    A level of noise alone is one of flipped interactions, an attack gets no budget of which it has none from a defence
    or a fine-tuning, and keys of a group that is swept are choices of one.
    """
    words, said = [], {each.partition("=")[0].strip().lstrip("+") for each in overrides}
    if verb in ("train", "distill") and "eps" in said and not said & {"attack", "experiment", "hparams", "resume"}:
        raise RrecError("eps is the budget of attack=, of which there is none; that of a defence is defense.eps")
    overrides = _inside(verb, overrides)
    for each in [*_flips(verb, overrides), *nested(overrides), *_without_budget(verb, overrides)]:
        group, sign, value = (part.strip() for part in each.partition("="))
        if each.startswith("-"):
            raise RrecError(f"no option {group}; a setting has no dashes: {group.lstrip('-')}={value or '<value>'}")
        if sign and not group:
            raise RrecError(f"cannot read '{each}': write key=value")
        if group in PLACES and value.strip("'\"") in ("", "null"):
            raise RrecError(f"{group}= names no directory: name one, or leave it out")
        choices = sorted((composing.conf_dir() / group).glob("*.yaml")) if group.isidentifier() else []
        names = [path.stem for path in choices]
        if not names or value in names or (value.startswith("[") and group == "experiment"):
            words.append(each)
        elif value.startswith("["):
            several = ", ".join(NESTED)
            raise RrecError(f"{group} is one choice, not a list: a sweep is -m {group}=a,b (only {several} compose)")
        elif not re.fullmatch(r"null|~|true|false|[-+.\de]+", value, re.IGNORECASE):
            words.append(each)
        elif value != "null" or not _optional(verb, group):
            raise unknown(group, value, names)
    return _of_swept(words)


def nested(overrides: Sequence[str]) -> list[str]:
    """`defense=[a,b]` in words of Hydra that compose to a around b, with the keys of b in `defense.inner`."""
    words = []
    for each in overrides:
        key, _, value = each.partition("=")
        listed = re.fullmatch(r"\[([\w\s,]*)\]", value.strip())
        group = key.strip()
        if group not in NESTED or (listed is None and "[" not in value):
            words.append(each)
            continue
        names = [name.strip() for name in listed[1].split(",")] if listed else []
        if not all(names) or not names:
            raise RrecError(
                f"cannot read '{each}': several are {group}=[first,…], each inside the one before; "
                f"a sweep over such lists is written -m {group}=a,b +{group}@{group}.inner=c"
            )
        places = [group, *(f"+{group}@{group}{'.inner' * depth}" for depth in range(1, len(names)))]
        words += [f"{place}={name}" for place, name in zip(places, names, strict=True)]
    return words


def first(override: str) -> str:
    """Of the values of a sweep the first."""
    return re.sub(r"^([^=]+=[^,\[({\"']*),.*", r"\1", override)


def count(overrides: Sequence[str]) -> int | None:
    """How many jobs overrides ask for; None where only Hydra can tell."""
    found = {}
    for each in OverridesParser.create().parse_overrides(list(overrides)):
        try:
            found[each.get_key_element()] = len(list(each.sweep_string_iterator())) if each.is_sweep_override() else 1
        except HydraException:
            return None
    return math.prod(found.values())


def _inside(verb: str, overrides: Sequence[str]) -> list[str]:
    """`defense.attack=fgm` as `attack@defense.attack=fgm`, Hydra's word for a choice inside of another."""
    return [_placed(verb, each, overrides) or each for each in overrides]


def _placed(verb: str, override: str, overrides: Sequence[str]) -> str | None:
    """An override as one of a group at its place; None where there is no group."""
    key, _, value = (part.strip() for part in override.partition("="))
    names, last = re.split(r"\s*,\s*", value), key.rpartition(".")[2]
    if last == key or not all(map(str.isidentifier, [key.replace(".", "_"), *names])):
        return None
    if not ((composing.conf_dir() / last).is_dir() or any(composing.conf_dir().glob(f"*/{names[0]}.yaml"))):
        return None
    around = [first(each) for each in overrides if "@" in each or "." not in each.partition("=")[0]]
    try:
        with composing.session():
            place = next((each for each in choices(verb, nested(around)) if each.endswith(f"@{key}")), None)
    except (HydraException, OmegaConfBaseException):  # it is told when it is run
        return None
    if place is None:
        return None
    known = sorted(path.stem for path in (composing.conf_dir() / place.partition("@")[0]).glob("*.yaml"))
    if wrong := [each for each in names if each not in known]:
        raise unknown(key, wrong[0], known)
    return f"{place}={value}"


def _of_swept(overrides: Sequence[str]) -> list[str]:
    """`poison.steps=9` beside `poison=pga,revadv` as `choice(9)`: Hydra reads what is not swept without the choices."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # it is told when it is run
        return list(overrides)
    swept = {each.key_or_group for each in parsed if each.is_sweep_override()}
    words = []
    for word, each in zip(overrides, parsed, strict=True):
        key, _, value = word.partition("=")
        alone = each.is_sweep_override() or each.is_delete() or each.key_or_group.partition(".")[0] not in swept
        words.append(word if alone or not value else f"{key}=choice({value})")
    return words


def _flips(verb: str, overrides: Sequence[str]) -> list[str]:
    """The noise that a level without one is about."""
    said = {each.partition("=")[0].strip(): each for each in overrides}
    if "noise.level" not in said or "noise" in said:
        return []
    with suppress(HydraException, OmegaConfBaseException):  # they are told when it is run
        if _choice(verb, "noise", [said[each] for each in ("experiment", "hparams") if each in said]) == "none":
            return ["noise=label_flip"]
    return []


def _without_budget(verb: str, overrides: Sequence[str]) -> list[str]:
    """What takes the eps that a defence gives its attack, and the surface and eps of a fine-tuning, from one without.

    Not where somebody gave it.
    """
    said = {each.partition("=")[0].strip().lstrip("+~") for each in overrides}
    form = r"attack=\s*(\w+)\s*" if verb == "finetune" else r"\+?attack@([\w.]+\.attack)=\s*(\w+)\s*"
    named = [re.fullmatch(form, each) for each in overrides]
    words = []
    for *place, name in (each.groups() for each in named if each):
        path, at = composing.conf_dir() / "attack" / f"{name}.yaml", place[0] if place else "attack"
        if path.is_file():
            lacked = {"eps"} if place else {"eps", "surface"}
            lacked -= {*map(str, OmegaConf.load(path))}
            words += [f"~{at}.{key}" for key in sorted(lacked) if f"{at}.{key}" not in said]
    return words


def _optional(verb: str, group: str) -> bool:
    """Whether a verb has no choice of a group unless it is told."""
    return _choice(verb, group, []) in ("None", "null")


def _choice(verb: str, group: str, overrides: Sequence[str]) -> str:
    """What is chosen of a group."""
    with composing.session():
        return choices(verb, overrides).get(group, "None")


def choices(verb: str, overrides: Sequence[str]) -> dict[str, str]:
    """What is chosen of each group, by its name and, inside of another, its place; within a `session`."""
    composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
    return {str(group): str(choice) for group, choice in composed.hydra.runtime.choices.items()}
