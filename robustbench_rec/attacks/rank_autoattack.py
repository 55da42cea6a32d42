from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from robustbench_rec.attack import Attack, Member, Suite
from robustbench_rec.attacks import attacks, single
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.threat import Threat


@attacks.register
class RankAutoAttack(Suite):
    """The standard worst case: an ensemble with nothing to choose but the budget; each user suffers the worst of it.

    AutoAttack (Croce & Hein, ICML 2020) for recommenders, our own adaptation: Auto-PGD on the cross-entropy, on the
    ratio of differences and on the hinge of the list, Auto-PGD that promotes the candidates closest below the cut
    (`rivals` of them, full ranking only), FAB on the hinge, and Square, which sees scores alone. Every metric of a user
    is the worst over the members. steps, queries: evaluations of each. Differences: all members attack everybody, not
    only those whom the earlier ones left unharmed; where one perturbation serves all users, the worst case of a user is
    the worst of the perturbations found, which is what an attacker of that user would choose.
    """

    threat: ClassVar[Threat] = Threat(
        surface="embedding | weight | feature | activation",
        knowledge="white-box",
        scope="each user: the worst of all perturbations found",
        budget="eps in a norm, for each row, example or layer",
    )

    @dataclass
    class Config:
        surface: str
        modules: list[str] | None
        scope: str
        eps: float
        norm: str
        per: str
        relative: str
        seed: int
        steps: int
        queries: int
        rivals: int

    def __init__(self, config: Config) -> None:
        if min(config.steps, config.queries) < 1 or config.rivals < 0:
            raise RrecError(
                f"rank_autoattack with steps={config.steps}, queries={config.queries}, rivals={config.rivals}: "
                "steps, queries >= 1 and rivals >= 0 are needed"
            )
        self.rivals = config.rivals
        budget = {name: value for name, value in vars(config).items() if name not in ("steps", "queries", "rivals")}
        self.apgd = _built("apgd", budget, steps=config.steps, restarts=1)
        self.fab = _built("fab", budget, steps=config.steps)
        self.square = _built("square", budget, queries=config.queries, share=0.8)

    @property
    def declared(self) -> Threat:
        own = self.apgd.declared
        return replace(self.threat, surface=own.surface, budget=own.budget)

    @property
    def alone(self) -> bool:
        return self.apgd.alone

    def check(self, model: RecModel) -> None:
        self.apgd.check(model)

    def members(self, losses: Sequence[str], hinge: str | None) -> list[Member]:
        found = [Member(f"apgd_{each}", self.apgd, each) for each in losses]
        if "margin" in losses:  # about what is relevant, so there are candidates to put in its place
            found += [Member(f"apgd_rival_{each}", self.apgd, "promote", each) for each in range(1, 1 + self.rivals)]
        if hinge is not None:
            found.append(Member("fab", self.fab, hinge))
        return [*found, Member("square", self.square, hinge or losses[0])]


def _built(name: str, budget: Mapping[str, Any], **own: Any) -> Attack:
    return single({"name": name, **budget, **own})
