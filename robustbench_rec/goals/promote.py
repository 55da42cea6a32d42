import logging
from dataclasses import dataclass
from typing import ClassVar

from robustbench_rec.data import Data
from robustbench_rec.goals import goals
from robustbench_rec.goals._aimed import Aimed, AimedConfig

log = logging.getLogger(__name__)


@goals.register
class Promote(Aimed):
    """Bring target items into the first k of users who do not have them."""

    @dataclass
    class Config(AimedConfig):
        pass

    verb = "promote"
    losses: ClassVar[tuple[str, ...]] = (
        "promote",
        "promote_margin",
        "promote_dlr",
        "promote_softmax",
        "promote_rank",
    )
    ensemble: ClassVar[tuple[str, ...]] = ("promote_softmax", "promote_dlr", "promote")
    hinge: ClassVar[str] = "promote_margin"
    upwards: ClassVar[int] = 1

    def __init__(self, config: Config, data: Data) -> None:
        super().__init__(config, data)
        if len(self.items) > self.k:
            log.warning(
                "goal.k=%d: %d target items never are in it all at once, which cw and fab look for",
                self.k,
                len(self.items),
            )
