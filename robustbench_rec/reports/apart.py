"""What tells settings apart, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

TOLD = ("metrics", "top_k", "slices", "anonymity")
"""What says how much is told of a run; it tells two runs apart where nothing else does."""


def told_apart(settings: Sequence[Any]) -> list[str]:
    """What each has that others have not, as "key=value, …"."""
    return list(map(_words, differing(settings)))


def differing(settings: Sequence[Any], *, least: int = 0) -> list[dict[str, str]]:
    """What each has that others have not, by key.

    least: so many keys are named if so many differ; more where it takes more to tell all apart, names before the rest.
    """
    flat = [_leaves(each) for each in settings]
    differ = [each for each in dict.fromkeys(k for f in flat for k in f) if len({f.get(each) for f in flat}) > 1]
    chosen = [each for each in differ if not _beside(each)][:least]
    rest = [each for each in differ if each not in chosen]
    for key in sorted(rest, key=lambda each: (_beside(each), not each.endswith("name"))):
        if _kinds(flat, [*chosen, key]) > _kinds(flat, chosen):
            chosen = [*chosen, key]
    return [{key: each[key] for key in chosen if key in each} for each in flat]


def _beside(key: str) -> bool:
    """Whether a key tells two runs apart only where nothing else does."""
    return key in TOLD or (key.startswith("dataset.") and key != "dataset.name")


def _kinds(flat: Sequence[Mapping[str, str]], keys: Sequence[str]) -> int:
    return len({tuple(each.get(key) for key in keys) for each in flat})


def _words(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def labelled(name: str, settings: Mapping[str, str], more: str) -> str:
    """A name with what it is told apart by in brackets, if anything."""
    told = ", ".join(each for each in (_words(settings), more) if each)
    return f"{name} ({told})" if told else name


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted keys of a key as `Book.key` makes them."""
    if isinstance(value, list) and not prefix and len(value) == 2 and isinstance(value[1], dict):
        return _leaves(value[1])
    if not isinstance(value, Mapping):
        return {prefix: "…" if prefix in ("ckpt", "teacher") else str(value)}
    found: dict[str, str] = {}
    for key, each in value.items():
        found |= _leaves(each, f"{prefix}.{key}" if prefix else str(key))
    return found
