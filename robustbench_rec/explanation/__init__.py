"""Why a model scores an item for a user as it does: `units(…)` picks what can be left out of the question."""

from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.explanation.base import Faithfulness, Units, faithfulness
from robustbench_rec.explanation.events import Edges, Latest, Owned, Refitted
from robustbench_rec.explanation.paths import Path, Paths
from robustbench_rec.explanation.words import Words
from robustbench_rec.model import RecModel
from robustbench_rec.recommendation import Recommender

__all__ = ["KINDS", "Edges", "Faithfulness", "Path", "Paths", "Units", "faithfulness", "units"]

KINDS = ("paths", "events", "words")


def units(asked: Recommender, user: int, item: int, by: str | None, *, hops: int) -> Units:
    """What the score of an item is made of for a user: paths of a knowledge graph, events of the history, or words.

    by: one of `KINDS`, None for the first of them that the model has. RrecError where it has none, or not this one.
    """
    model = asked.model
    there = _there(model)
    if by is not None and by not in KINDS:
        raise unknown("kind of explanation", by, KINDS)
    if not there or (by is not None and by not in there):
        name = type(model).__module__.rpartition(".")[2]
        has = f"it has {' and '.join(there)}" if there else "no event, path or word can be left out of what it reads"
        raise RrecError(f"model '{name}' cannot be explained{f' by {by}' if by else ''}: {has}")
    kind = by or there[0]
    if kind == "paths":
        return Paths(asked, user, item, hops=hops)
    if kind == "words":
        return Words(asked, user, item)
    events = _events(model)
    assert events is not None
    return events(asked, user, item)


def _there(model: RecModel) -> list[str]:
    found = {
        "paths": type(model).relational is not RecModel.relational,
        "events": _events(model) is not None,
        "words": type(model).text_reader is not RecModel.text_reader,
    }
    return [kind for kind in KINDS if found[kind]]


def _events(model: RecModel) -> type[Units] | None:
    """How events can be left out of what a model reads."""
    if model.window:
        return Latest
    if model.training_rows is not None:
        return Owned
    if model.n_edges and model.reads_events:
        return Edges
    return Refitted if model.newcomers and type(model).relational is RecModel.relational else None
