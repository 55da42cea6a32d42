"""Where perturbations point: uphill, or anywhere as a control."""

import logging

from robustbench_rec.ascent import Ascent
from robustbench_rec.attack import Attack
from robustbench_rec.attacks.noise import Noise
from robustbench_rec.errors import unknown
from robustbench_rec.shifted import label

log = logging.getLogger(__name__)

DIRECTIONS = ("gradient", "random")


def directed(direction: str, ascent: Ascent) -> Attack:
    """The ascent, or noise of the same norms in random directions."""
    if direction not in DIRECTIONS:
        raise unknown("defense.direction", direction, DIRECTIONS)
    if direction == "gradient":
        return ascent
    if ascent.steps > 1:
        log.warning("defense.steps=%s says nothing beside defense.direction=random: noise takes none", ascent.steps)
    size = vars(ascent.ball)
    modules = None if ascent.names is None else [label(name) for name in ascent.names]
    return Noise(Noise.Config(surface=ascent.surface, modules=modules, scope=ascent.reach, seed=ascent.seed, **size))
