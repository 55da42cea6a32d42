"""Judging a model at any point on a part of the data; `evaluator(data, judge)` picks by `judge.protocol`."""

from collections.abc import Collection, Mapping
from typing import Any

from robustbench_rec.config import Judge
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation.base import PARTS, Evaluator, Moved, Result
from robustbench_rec.evaluation.prediction import Clicks, Ratings
from robustbench_rec.evaluation.ranking import Full, Ranking, Sampled
from robustbench_rec.metrics.ranking import KNOWN

__all__ = ["PARTS", "PROTOCOLS", "Evaluator", "Full", "Moved", "Ranking", "Result", "evaluator", "worth"]

PROTOCOLS: dict[str, type[Evaluator[Any]]] = {"clicks": Clicks, "full": Full, "ratings": Ratings, "sampled": Sampled}
MEASURED: dict[str, Collection[str]] = {
    "clicks": Clicks.known,
    "ratings": Ratings.known,
    **dict.fromkeys(["full", "sampled"], KNOWN),
}
"""Metrics that can be asked for."""


def evaluator(data: Data, judge: Judge, *, seed: int = 0, alone: bool = False) -> Evaluator[Any]:
    """The evaluator of a protocol: full, sampled, clicks or ratings; what is drawn comes from `seed`.

    alone: row by row, for attacks that give every user a perturbation of its own on what all users share.
    """
    if judge.protocol not in PROTOCOLS:
        raise unknown("protocol", judge.protocol, PROTOCOLS)
    protocol = PROTOCOLS[judge.protocol]
    if judge.n_negatives is not None and not protocol.draws:
        drawing = " or ".join(name for name, each in PROTOCOLS.items() if each.draws)
        raise RrecError(
            f"n_negatives={judge.n_negatives}: protocol={judge.protocol} draws none; leave it out, or take "
            f"protocol={drawing}"
        )
    for name in judge.metrics or ():
        others = [other for other, known in MEASURED.items() if name in known]
        if others and judge.protocol not in others:
            told = unknown(f"metric of protocol '{judge.protocol}'", name, MEASURED[judge.protocol])
            raise RrecError(f"{told}; it is one of protocol={' and '.join(others)}")
    return protocol(data, judge, seed=seed, alone=alone)


def worth(judge: Judge, monitor: str | None, metrics: Mapping[str, float]) -> float | None:
    """What a sweeper maximises: the monitored metric on validation, negated where less is better."""
    protocol = PROTOCOLS[judge.protocol]
    found = {name.removeprefix("valid/"): value for name, value in metrics.items() if name.startswith("valid/")}
    name = monitor or (protocol.main(list(found)) if found else "")
    if name not in found:
        return None
    return -found[name] if name in protocol.smaller else found[name]
