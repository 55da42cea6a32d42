"""From the words of a command line to a typed configuration, and what is wrong with them in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from robustbench_rec import config
from robustbench_rec.composing.keys import unknown_key
from robustbench_rec.errors import UsageError

LARGEST_SEED = 2**32 - 1
"""What all generators of random numbers take, those of scikit-learn among them."""
UNSEEDED = {"attack": "attack.seed, goal.seed or poison.seed", "eval": "noise.seed or certify.seed"}
"""Verbs in which the seed of the run itself decides nothing, and what does; a sweep over it would look like seeds."""


def conf_dir() -> Path:
    """`conf/` as packed into the wheel, else at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "conf"
    return packed if packed.is_dir() else package.parent / "conf"


@contextmanager
def session() -> Iterator[None]:
    """Inside, Hydra composes from `conf/` with the schemas of `config`."""
    register_schemas()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def register_schemas() -> None:
    """Tell Hydra the dataclass of every verb, which its file in `conf/` begins with."""
    for name, schema in config.ROOTS.items():
        ConfigStore.instance().store(name, schema, group="schema", package="_global_")


def typed(composed: DictConfig, verb: str, said: str | None = None) -> Any:
    """The composed configuration as the verb's dataclass; what it lacks and what `+key=` added to it are refused."""
    names = {each.name for each in fields(config.ROOTS[verb])}
    if added := sorted(set(map(str, composed)) - names):
        raise UsageError(unknown_key(added[0], verb, names, set()))
    if missing := sorted(OmegaConf.missing_keys(composed) | (names - set(composed))):
        kinds = {"ckpt": "<run directory>", "teacher": "<run directory>"}
        wanted = " ".join(f"{key}={kinds.get(key, '<value>')}" for key in missing)
        raise UsageError(f"{said or verb} needs {wanted}")
    settings = OmegaConf.to_object(composed)
    for name, value in config.flat(settings).items():
        whole = value.lstrip("-").isdecimal()
        if name.rpartition(".")[2] == "seed" and whole and not 0 <= int(value) <= LARGEST_SEED:
            raise UsageError(f"{name}={value}: a seed is a whole number from 0 to {LARGEST_SEED}")
    if verb in UNSEEDED and (seed := composed.seed):
        raise UsageError(f"seed={seed} draws nothing in rrec {verb}: take {UNSEEDED[verb]}, or runs of other seeds")
    return settings
