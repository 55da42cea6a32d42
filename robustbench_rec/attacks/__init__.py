"""Attacks on a trained model, one module each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.attack import Attack, Suite

attacks: "Registry[Suite]" = Registry(__name__)


def single(config: Mapping[str, Any]) -> "Attack":
    """The attack of a config; RrecError for an ensemble, which can judge but not be trained against."""
    from robustbench_rec.attack import Attack
    from robustbench_rec.errors import RrecError

    built = attacks.build(config)
    if not isinstance(built, Attack):
        raise RrecError(f"attack '{config['name']}' is an ensemble: name one attack here")
    return built
