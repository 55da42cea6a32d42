"""What is said of a key that is not there."""

from difflib import get_close_matches

OF_CKPT = ("dataset", "prepare", "split", "model")
"""What a checkpoint brings along."""


def unknown_key(key: str, verb: str, keys: set[str], groups: set[str]) -> str:
    """That a key is unknown, and what comes nearest to it."""
    nested = sorted(each for each in keys if each.endswith(f".{key}"))
    near = nested or get_close_matches(key, keys, n=1) or get_close_matches(key, {k.split(".")[0] for k in keys}, n=1)
    which = "hydra" if key.startswith("hydra") else "job"
    where = f" (`rrec {verb} --cfg {which}` shows the keys)" if verb != "data" else ""
    group = key.partition(".")[0]
    if "ckpt" in keys and group in OF_CKPT:
        return f"unknown key '{key}': the {group} is that of ckpt{where}"
    if unchosen(key, keys, groups):
        return f"unknown key '{key}': there is no {group} yet; add {group}=…{where}"
    return f"unknown key '{key}'{f'; did you mean {near[0]!r}?' if near else ''}{where}"


def unchosen(key: str, keys: set[str], groups: set[str]) -> bool:
    """Whether a key is one of a group of which nothing is chosen."""
    group = key.partition(".")[0]
    return group != key and group in groups and not any(each.startswith(f"{group}.") for each in keys)
