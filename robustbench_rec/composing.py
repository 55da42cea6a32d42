"""From the words of a command line to a typed configuration, and what is wrong with them in one line."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_rec import config
from robustbench_rec.errors import RrecError, UsageError, unknown
from robustbench_rec.reports import reading

NESTED = ("defense", "clean", "distill")
"""Groups of which several can be chosen, one inside the other."""
OF_CKPT = ("dataset", "prepare", "split", "model")
"""What a checkpoint brings along."""
PLACES = ("hydra.run.dir", "hydra.sweep.dir")
"""What names where a run, and a sweep, writes."""
LARGEST_SEED = 2**63 - 1
"""What generators of random numbers take."""
QUOTED = frozenset(" ,;=(){}[]$\"'\\|&<>`*?~#")
"""Signs in a value that a shell or Hydra takes for its own."""
KEPT = ("metrics.json", "model.safetensors", "resume", "trajectory", "round-1")
"""What a run that failed may have left that is worth keeping."""


def conf_dir() -> Path:
    """`conf/` as packed into the wheel, else at the top of the repository."""
    here = Path(__file__).resolve().parent
    packed = here / "conf"
    return packed if packed.is_dir() else here.parent / "conf"


@contextmanager
def session() -> Iterator[None]:
    """Inside, Hydra composes from `conf/` with the schemas of `config`."""
    register_schemas()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def typed(composed: DictConfig, verb: str, said: str | None = None) -> Any:
    """The composed configuration as the verb's dataclass; what it lacks and what `+key=` added to it are refused."""
    names = {each.name for each in fields(config.ROOTS[verb])}
    if added := sorted(set(map(str, composed)) - names):
        raise UsageError(_told(added[0], verb, names, set()))
    if missing := sorted(OmegaConf.missing_keys(composed) | (names - set(composed))):
        kinds = {"ckpt": "<run directory>", "teacher": "<run directory>"}
        wanted = " ".join(f"{key}={kinds.get(key, '<value>')}" for key in missing)
        raise UsageError(f"{said or verb} needs {wanted}")
    settings = OmegaConf.to_object(composed)
    for name, value in config.flat(settings).items():
        if name.rpartition(".")[2] == "seed" and value.lstrip("-").isdecimal() and abs(int(value)) > LARGEST_SEED:
            raise UsageError(f"{name}={value}: a seed is a whole number up to {LARGEST_SEED}")
    return settings


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


def ids(verb: str, overrides: Sequence[str]) -> list[str]:
    """Ids as texts, for Hydra reads 1e5, 1_000 or true as what they are in YAML."""
    if verb not in config.IDS:
        return list(overrides)
    plain = r"""[^\s,"'\[\]{}\\][^,"'\[\]{}\\]*"""
    words = []
    for each in overrides:
        key, _, value = each.partition("=")
        listed = re.fullmatch(rf"\[\s*({plain}(?:,\s*{plain})*)\]", value)
        if key not in config.IDS[verb] or value == "null":
            words.append(each)
        elif listed:
            quoted = ",".join(f'"{one.strip()}"' for one in listed[1].split(","))
            words.append(f"{key}=[{quoted}]")
        else:
            words.append(f'{key}="{value}"' if re.fullmatch(plain, value) else each)
    return words


def chosen(verb: str, overrides: Sequence[str]) -> list[str]:
    """`nested`, with one name for each of the other groups; `group=null` goes where nothing is the default anyway.

    A level of noise alone is one of flipped interactions, an attack in a defence that has no eps gets none, and keys of
    a group that is swept are choices of one.
    """
    words, said = [], {each.partition("=")[0].strip().lstrip("+") for each in overrides}
    if verb in ("train", "distill") and "eps" in said and not said & {"attack", "experiment", "hparams", "resume"}:
        raise RrecError("eps is the budget of attack=, of which there is none; that of a defence is defense.eps")
    for each in [*_flips(verb, overrides), *nested(overrides), *_without_eps(overrides)]:
        group, sign, value = (part.strip() for part in each.partition("="))
        if sign and not group:
            raise RrecError(f"cannot read '{each}': write key=value")
        if group in PLACES and value.strip("'\"") in ("", "null"):
            raise RrecError(f"{group}= names no directory: name one, or leave it out")
        names = [path.stem for path in sorted((conf_dir() / group).glob("*.yaml"))] if group.isidentifier() else []
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


def _without_eps(overrides: Sequence[str]) -> list[str]:
    """What takes the eps that a defence gives its attack from one that has no such budget, where nobody gave one."""
    said = {each.partition("=")[0].strip().lstrip("+~") for each in overrides}
    named = [re.fullmatch(r"\+?attack@([\w.]+\.attack)=\s*(\w+)\s*", each) for each in overrides]
    words = []
    for place, name in (each.groups() for each in named if each):
        path = conf_dir() / "attack" / f"{name}.yaml"
        if f"{place}.eps" not in said and path.is_file() and "eps" not in OmegaConf.load(path):
            words.append(f"~{place}.eps")
    return words


def _optional(verb: str, group: str) -> bool:
    """Whether a verb has no choice of a group unless it is told."""
    return _choice(verb, group, []) in ("None", "null")


def _choice(verb: str, group: str, overrides: Sequence[str]) -> str:
    """What is chosen of a group."""
    with session():
        composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
    return str(composed.hydra.runtime.choices.get(group))


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


def with_resume(verb: str, overrides: Sequence[str], multirun: bool) -> list[str]:
    """`resume=<run directory>` stands for the overrides of that run, written to the same place."""
    pairs = [each.partition("=") for each in overrides]
    asked = [value.strip("'\"") for key, _, value in pairs if key == "resume" and value not in ("", "null")]
    if not asked or "resume" not in {each.name for each in fields(config.ROOTS[verb])}:
        return list(overrides)
    run = Path(asked[-1]).expanduser()
    beside = [each for each, (key, _, _) in zip(overrides, pairs, strict=True) if key != "resume"]
    for each in beside:
        if each.partition("=")[0] not in config.RESUMABLE_WITH:
            allowed = ", ".join(config.RESUMABLE_WITH)
            raise RrecError(f"resume= continues a run as it was: drop '{each}' (only {allowed} may change)")
    if multirun:
        raise RrecError("resume= continues one run: drop -m")
    if not run.is_dir():
        raise RrecError(f"resume: the run directory {run} does not exist")
    try:
        stored = _overrides(run / ".hydra" / "overrides.yaml")
        ran = OmegaConf.select(OmegaConf.load(run / ".hydra" / "hydra.yaml"), "hydra.job.config_name")
    except FileNotFoundError as error:
        raise RrecError(f"resume: {run} is not a run directory (it has no {Path(str(error.filename)).name})") from error
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise RrecError(f"resume: {run} was stopped before it began ({error}); start it anew") from error
    if ran != verb:
        raise RrecError(f"resume: {run} is a run of `rrec {ran}`, not of `rrec {verb}`")
    if (run / "metrics.json").exists():
        raise RrecError(f"resume: {run} is finished; its results are in metrics.json")
    quoted = "'" + str(run.resolve()).replace("'", r"\'") + "'"
    before = [each for each in stored if not each.startswith("resume=")]
    # the configuration is that of the run, so without resume=; .hydra stays as it was first written, because rewriting
    # it could be cut short by the next kill
    return [*before, *beside, f"hydra.run.dir={quoted}", "hydra.output_subdir=null"]


def refuse_used(verb: str, overrides: Sequence[str]) -> None:
    """RrecError where `hydra.run.dir` names a place that holds a run with other settings."""
    if not any(each.lstrip("+").startswith("hydra.run.dir=") for each in overrides):
        return
    with suppress(HydraException, OmegaConfBaseException):  # they are told when it is run
        if (composed := _with_place(verb, overrides)).hydra.mode != RunMode.MULTIRUN:
            _refuse_other(verb, composed, config.RESUMABLE_WITH)


def place(overrides: Sequence[str], key: str) -> Path | None:
    """The directory that one of `PLACES` names, None where it does not."""
    named = [each for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    with suppress(HydraException):  # it is told when it is run
        return Path(str(OverridesParser.create().parse_override(named[-1]).value())) if named else None
    return None


def kept(verb: str, overrides: Sequence[str], *, but: Sequence[str]) -> bool:
    """Whether the place that `hydra.run.dir` names has the results of this run.

    but: settings that may be others there. RrecError where they are those of another run, or make no configuration.
    """
    try:
        composed = _with_place(verb, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise RrecError(explain(error, verb, overrides)) from error
    _refuse_other(verb, composed, but)
    return (Path(composed.hydra.run.dir) / "metrics.json").is_file()


def _with_place(verb: str, overrides: Sequence[str]) -> DictConfig:
    with session():
        composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
        composed.hydra.run.dir = str(composed.hydra.run.dir)  # resolved while Hydra's resolvers are there
    return composed


def _refuse_other(verb: str, composed: DictConfig, but: Sequence[str]) -> None:
    """The same run may go on in its place or be done again; one that left nothing may be done with other settings."""
    place = Path(composed.hydra.run.dir)
    found = reading.read(place)
    if found.record.get("status") not in ("running", "done") and not any((place / each).exists() for each in KEPT):
        return
    instead = "name another hydra.run.dir, or remove it"
    if found.verb != verb:
        raise RrecError(f"{place} holds a run of `rrec {found.verb}`: {instead}")
    if not found.config:
        raise RrecError(f"{place} holds a run whose settings cannot be read: {instead}")
    plain = OmegaConf.to_container(composed)
    assert isinstance(plain, dict)
    ours = reading.filled({str(key): each for key, each in plain.items() if key != "hydra"})
    if changed := config.difference(ours, found.config, but=(*but, "resume")):
        name, one, other = changed
        raise RrecError(f"{place} holds a run with other settings ({name} is {other} there, not {one}): {instead}")


def _overrides(path: Path) -> list[str]:
    """What Hydra stored; ValueError when a kill cut the file short."""
    stored = OmegaConf.load(path)
    if not isinstance(stored, ListConfig):
        raise ValueError(f"{path} holds no list")
    return [str(each) for each in stored]


def count(overrides: Sequence[str]) -> int | None:
    """How many jobs overrides ask for; None where only Hydra can tell."""
    found = {}
    for each in OverridesParser.create().parse_overrides(list(overrides)):
        try:
            found[each.get_key_element()] = len(list(each.sweep_string_iterator())) if each.is_sweep_override() else 1
        except HydraException:
            return None
    return math.prod(found.values())


def complete(verb: str, words: Sequence[str], incomplete: str) -> list[str]:
    """`group=choice` and `key=value` candidates for the word under the cursor, from the composed configuration."""
    *done, word = re.sub(r" ?= ?", "=", " ".join([*words, incomplete])).split(" ")
    if done and "=" not in done[-1]:  # bash splits "model=" at the sign and Typer drops it
        word = f"{done.pop()}={word}"
    try:
        with session():
            words = nested(limits([_first(each) for each in done]))
            found = sorted(each for each in _candidates(verb, words) if each.startswith(word))
    except (RrecError, HydraException, OmegaConfBaseException):
        return []
    return found if word == incomplete else [each.partition("=")[2] for each in found]


def _first(override: str) -> str:
    """Of the values of a sweep the first."""
    return re.sub(r"^([^=]+=[^,\[({\"']*),.*", r"\1", override)


def _candidates(verb: str, overrides: Sequence[str]) -> Iterator[str]:
    composed = hydra.compose(verb, list(overrides))
    yield from _leaves(composed)
    loader = GlobalHydra.instance().config_loader()
    for group in _groups(verb, overrides):
        yield from (f"{group}={choice}" for choice in loader.get_group_options(group.partition("@")[0]))


def _groups(verb: str, overrides: Sequence[str]) -> list[str]:
    composed = hydra.compose(verb, list(overrides), return_hydra_config=True)
    return list(map(str, composed.hydra.runtime.choices))


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


def explain(error: Exception, verb: str, overrides: Sequence[str]) -> str:
    """An error of Hydra, OmegaConf or our own as one line that names the key, the choices or the next step."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, RrecError):
        return " ".join(lines)
    if isinstance(error, AssertionError):  # of OmegaConf: a key below one that is null
        keys, groups = _known(verb, overrides)
        asked = [each.partition("=")[0].lstrip("+~") for each in overrides]
        lost = [key for key in asked if _unchosen(key, keys, groups)]
        return _told(lost[0], verb, keys, groups) if lost else "; ".join(lines)
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
        return _told(key, verb, *_known(verb, overrides))
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
    keys, groups = set[str](), set[str]()
    with suppress(HydraException, OmegaConfBaseException), session():
        groups = set(_groups(verb, []))
        named = {each: re.split("[@=]", each.lstrip("+"))[0] for each in overrides}
        chosen = [each for each, group in named.items() if group in groups and "," not in each]
        keys = {each.partition("=")[0] for each in _candidates(verb, chosen)}
    return keys, groups


def _unchosen(key: str, keys: set[str], groups: set[str]) -> bool:
    """Whether a key is one of a group of which nothing is chosen."""
    group = key.partition(".")[0]
    return group != key and group in groups and not any(each.startswith(f"{group}.") for each in keys)


def _told(key: str, verb: str, keys: set[str], groups: set[str]) -> str:
    """That a key is unknown, and what comes nearest to it."""
    nested = sorted(each for each in keys if each.endswith(f".{key}"))
    near = nested or get_close_matches(key, keys, n=1) or get_close_matches(key, {k.split(".")[0] for k in keys}, n=1)
    which = "hydra" if key.startswith("hydra") else "job"
    where = f" (`rrec {verb} --cfg {which}` shows the keys)" if verb != "data" else ""
    group = key.partition(".")[0]
    if "ckpt" in keys and group in OF_CKPT:
        return f"unknown key '{key}': the {group} is that of ckpt{where}"
    if _unchosen(key, keys, groups):
        return f"unknown key '{key}': there is no {group} yet; add {group}=…{where}"
    return f"unknown key '{key}'{f'; did you mean {near[0]!r}?' if near else ''}{where}"


def register_schemas() -> None:
    """Tell Hydra the dataclass of every verb, which its file in `conf/` begins with."""
    for name, schema in config.ROOTS.items():
        ConfigStore.instance().store(name, schema, group="schema", package="_global_")
