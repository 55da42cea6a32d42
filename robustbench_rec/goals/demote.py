from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec.goals import goals
from robustbench_rec.goals._aimed import Aimed, AimedConfig


@goals.register
class Demote(Aimed):
    """Drive target items out of the first k of users who do not have them."""

    @dataclass
    class Config(AimedConfig):
        pass

    verb = "demote"
    losses: ClassVar[tuple[str, ...]] = ("demote", "demote_margin", "demote_softmax")
    ensemble: ClassVar[tuple[str, ...]] = ("demote_softmax", "demote")
    hinge: ClassVar[str] = "demote_margin"
    upwards: ClassVar[int] = -1
