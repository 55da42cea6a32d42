"""Run directories, read through their files alone; whoever wrote them is not trusted."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from robustbench_rec.errors import RrecError
from robustbench_rec.reports.apart import differing, labelled

LOCAL = ("seed", "device", "threads", "data_dir", "resume", "deterministic", "per_user", "trajectory", "tracker")
"""What does not make two runs different experiments: seeds, where they ran, and what they wrote beside."""
RECIPE = ("dataset", "split", "prepare")
"""What decides which data a model is judged on."""
LARGEST = 2**24
"""Bytes of a file that is read whole."""
LONGEST = 200
"""Characters of a path that are shown."""


@dataclass(frozen=True)
class Found:
    """A run directory.

    verb: what ran. config: as composed, references to other keys filled in. record: `run.json`. metrics: None where it
    is not finished. error: why, as one line. cwd: where it was started. asked: whether it is one of those that were
    named, not one that they point to.
    """

    path: Path
    verb: str
    config: Mapping[str, Any]
    overrides: Sequence[str]
    record: Mapping[str, Any]
    metrics: Mapping[str, float] | None
    error: str | None
    cwd: Path
    asked: bool = True

    def named(self, key: str) -> str:
        """The name of a component, "none" where there is none."""
        chosen = self.config.get(key)
        return str(chosen.get("name", "none")) if isinstance(chosen, Mapping) else "none"

    @property
    def name(self) -> str:
        """Its folder and the one above."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def eps(self) -> float | None:
        """The budget of the attack, None where it has another one."""
        attack = self.config.get("attack")
        found = attack.get("eps") if isinstance(attack, Mapping) else None
        return float(found) if is_number(found) else None

    @property
    def poisoned(self) -> bool:
        """Whether it is an attack that trains anew."""
        return self.verb == "attack" and self.named("poison") != "none"


def runs(paths: Iterable[Path]) -> list[Found]:
    """The runs in directories, each once, in the order of their paths; RrecError where a path has none."""
    found: dict[Path, Found] = {}
    for path in paths:
        if not path.is_dir():
            raise RrecError(f"{path} is no directory: name run directories, or a directory that has some")
        here = list(_below(path.resolve()))
        if not here:
            raise RrecError(f"{path} has no run in it (a run has a run.json or a .hydra folder)")
        found |= {each: read(each) for each in here if each not in found}
    return list(found.values())


def read(path: Path, *, asked: bool = True) -> Found:
    """One run; what cannot be read of it counts as not there."""
    config, hydra = _mapping(path / ".hydra" / "config.yaml"), _mapping(path / ".hydra" / "hydra.yaml")
    record = _mapping(path / "run.json")
    inner = hydra.get("hydra")
    inner = inner if isinstance(inner, Mapping) else {}
    job, runtime = (part if isinstance(part := inner.get(key), Mapping) else {} for key in ("job", "runtime"))
    verb = str(job.get("config_name") or record.get("task") or "?")
    told = _loaded(path / ".hydra" / "overrides.yaml")
    finished = record.get("status") == "done" and (path / "metrics.json").is_file()
    told_metrics = _loaded(path / "metrics.json") if finished else None
    metrics = _numbers(told_metrics) if isinstance(told_metrics, Mapping) else None
    error = "its metrics.json cannot be read" if finished and metrics is None else None
    if metrics is None and error is None:
        known = {"running": "it is still running, or was killed", "done": "it is done, but has no metrics.json"}
        error = known.get(str(record.get("status"))) or str(record.get("error") or last_error(path / f"{verb}.log"))
    return Found(
        path=path,
        verb=verb,
        config=filled(config),
        overrides=[str(each) for each in told] if isinstance(told, list) else [],
        record=record,
        metrics=metrics,
        error=error,
        cwd=Path(str(runtime.get("cwd", "."))),
        asked=asked,
    )


def last_error(path: Path) -> str:
    """What the log of a run says last about why it failed."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    errors = re.findall(r"\[rrec\]\[ERROR\] - (?:job \d+ \(.*?\): )?(.*)", text)
    return str(errors[-1]) if errors else "it was stopped"


def parameters(path: Path) -> int | None:
    """Numbers in a checkpoint, from the header of its file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / "model.safetensors", "np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError):
        return None
    return sum(map(prod, shapes))


def filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """With `${key}` replaced by the value of that key; nothing else that a configuration could ask for is done."""

    def fill(value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {str(key): fill(each, depth) for key, each in value.items()}
        if isinstance(value, list):
            return [fill(each, depth) for each in value]
        wanted = re.fullmatch(r"\$\{(\w[\w.]*)\}", value) if isinstance(value, str) else None
        if wanted is None or depth > 4:
            return value
        node: Any = config
        for key in wanted[1].split("."):
            if not isinstance(node, Mapping) or key not in node:
                return value
            node = node[key]
        return fill(node, depth + 1)

    return {str(key): fill(each, 0) for key, each in config.items()}


def _below(path: Path) -> Iterator[Path]:
    """A run, and the runs in a directory of runs or of a run; rounds and other folders of a run are not runs."""
    if (path / "run.json").is_file() or (path / ".hydra").is_dir():
        yield path
    children = [each for each in path.iterdir() if each.is_dir() and not each.is_symlink() and each.name[0] != "."]
    for each in sorted(children, key=lambda each: (int(each.name) if each.name.isdecimal() else math.inf, each.name)):
        yield from _below(each)


def _loaded(path: Path) -> Any:
    """YAML or JSON, None where it is not there or neither."""
    try:
        if path.stat().st_size > LARGEST:
            return None
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, _Plain)  # noqa: S506 (a safe loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


class _Plain(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses aliases, which no run writes and which make a small file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _mapping(path: Path) -> dict[str, Any]:
    loaded = _loaded(path)
    return loaded if isinstance(loaded, dict) else {}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """null stands for NaN; what is no number is left out."""
    told = {str(key): float("nan") if value is None else value for key, value in values.items()}
    return {key: float(each) for key, each in told.items() if is_number(each)}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it counts as one; truth values do not, nor what is too large for a float."""
    if isinstance(value, int):
        return not isinstance(value, bool) and value.bit_length() < 1024
    return isinstance(value, float)


@dataclass
class Book:
    """Runs and what they have to do with one another.

    runs: those that were asked for, then those that they were made from and that are still there.
    """

    runs: list[Found]
    _sources: dict[Path, Found | None] = field(default_factory=dict)
    _keys: dict[Path, str] = field(default_factory=dict)
    _labels: dict[str, str] = field(default_factory=dict)
    _told: dict[str, tuple[str, dict[str, str], str]] = field(default_factory=dict)  # what labels are made of
    _changed: set[str] = field(default_factory=set)  # recipes of data that gave several with the same seeds

    def __post_init__(self) -> None:
        for run in self.runs:  # grows while it is walked
            source = self.source(run)
            if source is not None and source not in self.runs:
                self.runs.append(source)
        self._changed = _ambiguous(self.runs)
        made: dict[str, list[str]] = {}
        for run in self.runs:
            if run.verb in ("train", "distill", "finetune") and run.metrics is not None:
                same = made.setdefault(self._name(run), [])
                if self.key(run) not in same:
                    same.append(self.key(run))
        for name, keys in made.items():
            settings = differing([json.loads(key) for key in keys], least=4)
            for number, (key, told) in enumerate(zip(keys, settings, strict=True)):
                more = str(number + 1) if settings.count(told) > 1 else ""  # they differ in what they were made from
                self._labels[key] = label = labelled(name, told, more)
                self._told[label] = name, told, more

    def source(self, run: Found) -> Found | None:
        """The run that another one started from, by its `ckpt` or `teacher`; None where it is not to be found."""
        if run.path not in self._sources:
            try:
                self._sources[run.path] = self._found(run)
            except (OSError, ValueError, RuntimeError):  # a path that the system cannot have
                self._sources[run.path] = None
        return self._sources[run.path]

    def key(self, run: Found) -> str:
        """Equal for runs that differ in seeds alone."""
        if run.path not in self._keys:
            self._keys[run.path] = ""  # a run that points to itself
            source = self.source(run)
            config: dict[str, Any] = without_seeds(run.config, LOCAL)
            if source is not None:
                config |= {each: self.key(source) for each in ("ckpt", "teacher") if each in config}
            config |= self.data(run)
            self._keys[run.path] = json.dumps([run.verb, config], sort_keys=True, default=str)
        return self._keys[run.path]

    def data(self, run: Found) -> dict[str, str]:
        """The fingerprint of its data where the settings do not tell which they are: the files have changed."""
        return {"fingerprint": _fingerprint(run)[:12]} if _recipe(run) in self._changed else {}

    def label(self, run: Found | None) -> str:
        """What made a model, in a few words; runs that differ in seeds alone have the same."""
        if run is None:
            return "?"
        return self._labels.get(self.key(run), self._name(run))

    def brief(self, labels: Iterable[str]) -> dict[str, str]:
        """Labels as they need be where they stand together: without what two of them or more all say alike."""
        whole = list(dict.fromkeys(labels))
        known = [self._told[each][1] for each in whole if each in self._told]
        said = {key: [each[key] for each in known if key in each] for each in known for key in each}
        common = {key for key, values in said.items() if len(values) > 1 and len(set(values)) == 1}
        short = {}
        for each in whole:
            name, told, more = self._told.get(each, (each, {}, ""))
            short[each] = labelled(name, {key: value for key, value in told.items() if key not in common}, more)
        return short if len(set(short.values())) == len(short) else {each: each for each in whole}

    def victim(self, run: Found) -> str:
        """The label of what was attacked, or the path that it was said to be."""
        source = self.source(run)
        if source is not None:
            return self.label(source)
        path = "".join(each if each.isprintable() else "?" for each in str(run.config.get("ckpt", "?")))
        return path if len(path) <= LONGEST else f"{path[: LONGEST // 2]}…{path[-LONGEST // 2 :]}"

    def _name(self, run: Found, depth: int = 0) -> str:
        source = self.source(run)
        if run.verb == "finetune":
            start = "?" if source is None or depth > 4 else self._name(source, depth + 1)
            return f"{start} → {run.named('finetune')}"
        words = run.named("model")
        defense = run.config.get("defense")
        while isinstance(defense, Mapping) and defense.get("name", "none") != "none":
            words += f" + {defense['name']}"
            defense = defense.get("inner")
        if run.verb == "distill":
            words += f" from {'?' if source is None or depth > 4 else self._name(source, depth + 1)}"
        for kind in ("poison", "noise", "clean"):
            if run.named(kind) != "none":
                words += f", {kind} {run.named(kind)}"
        return words

    def _found(self, run: Found) -> Found | None:
        said = str(run.config.get("ckpt") or run.config.get("teacher") or run.record.get("ckpt") or "")
        if not said:
            return None
        wanted = Path(said).expanduser()
        wanted = wanted.parent if wanted.name == "model.safetensors" else wanted
        by_path = {each.path: each for each in self.runs}
        for place in (wanted if wanted.is_absolute() else run.cwd / wanted, wanted.absolute()):
            if (resolved := place.resolve()) in by_path:
                return self._fitting(run, by_path[resolved])
        moved = [each for each in self.runs if each.path.parts[-2:] == wanted.parts[-2:] and len(wanted.parts) > 1]
        if len(moved) == 1:
            return self._fitting(run, moved[0])
        for place in (wanted if wanted.is_absolute() else run.cwd / wanted, wanted.absolute()):
            if (place / "run.json").is_file():
                return self._fitting(run, read(place.resolve(), asked=False))
        return None

    @staticmethod
    def _fitting(run: Found, source: Found) -> Found | None:
        """None where the data are others, so that the run there is not the one that was meant."""
        one, other = (each.record.get("fingerprint") for each in (run, source))
        changed = run.poisoned or run.named("noise") != "none"
        return source if changed or one is None or other is None or one == other else None


def without_seeds(config: Mapping[str, Any], local: Sequence[str]) -> dict[str, Any]:
    """A configuration without what does not make it another experiment; the seed of synthetic data does."""
    kept = {key: each for key, each in config.items() if key not in local}
    return {
        key: {k: v for k, v in each.items() if k != "seed" or key == "dataset"} if isinstance(each, Mapping) else each
        for key, each in kept.items()
    }


def _ambiguous(runs: Iterable[Found]) -> set[str]:
    """The recipes that gave several data with the same seeds."""
    prints: dict[str, set[str]] = {}
    recipes = {}
    for run in runs:
        changed = {run.named("noise"), run.named("poison")} - {"none"}  # which may be other ones with the same settings
        if run.named("dataset") != "none" and not changed and (told := _fingerprint(run)):
            exact = json.dumps([run.config.get(key) for key in RECIPE], default=str)
            prints.setdefault(exact, set()).add(told)
            recipes[exact] = _recipe(run)
    return {recipes[exact] for exact, found in prints.items() if len(found) > 1}


def _recipe(run: Found) -> str:
    return json.dumps(without_seeds({key: run.config.get(key) for key in RECIPE}, ()), sort_keys=True, default=str)


def _fingerprint(run: Found) -> str:
    """Of its data before cleaning, empty where it is not told."""
    from robustbench_rec.checkpoint import uncleaned  # half a second, for reports only

    return str(uncleaned(run.record) or "")
