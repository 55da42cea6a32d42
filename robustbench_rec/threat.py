"""Threat models: what an attacker may do, said in the same five words everywhere."""

from dataclasses import asdict, dataclass

KNOWLEDGE = ("none", "rank", "score", "transfer", "white-box")


@dataclass(frozen=True, kw_only=True)
class Threat:
    """What is changed, what for, knowing what, for whom, and how much.

    surface: what is changed. knowledge: what of the model is known, a word of `KNOWLEDGE`. scope: for whom one change
    holds. budget: how much may change. goal: an attack that serves any says "any" until it is told one.
    """

    surface: str
    knowledge: str
    scope: str
    budget: str
    goal: str = "any"

    def words(self) -> dict[str, str]:
        """In the order of a report."""
        return {name: asdict(self)[name] for name in ("surface", "goal", "knowledge", "scope", "budget")}

    def __str__(self) -> str:
        return " · ".join(f"{name}: {value}" for name, value in self.words().items())
