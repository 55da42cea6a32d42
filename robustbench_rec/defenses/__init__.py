"""Defences: training objectives around another objective, one module each."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustbench_rec.errors import RrecError
from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.model import RecModel
    from robustbench_rec.objective import Objective

defenses: "Registry[Objective]" = Registry(__name__)


def defended(config: Mapping[str, Any], objective: "Objective", model: "RecModel") -> "Objective":
    """The objective inside the defence of a config, or inside several: `inner` is the config of the next one."""
    inner = config.get("inner")
    if isinstance(inner, Mapping):
        objective = defended(inner, objective, model)
        if objective.alone:
            raise RrecError(f"defense={inner.get('name')}: no other defence may be around it")
    elif inner is not None:
        raise RrecError(
            f"defense.inner={inner}: the config of another defence; several are defense=[{config['name']},…]"
        )
    return defenses.build({key: each for key, each in config.items() if key != "inner"}, objective, model)
