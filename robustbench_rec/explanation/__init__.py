"""Why a model scores an item for a user as it does: `units(…)` picks what can be left out of the question."""

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.explanation.base import Faithfulness, Units, faithfulness
from robustbench_rec.explanation.events import Edges, Latest, Owned, Refitted
from robustbench_rec.explanation.paths import Path, Paths
from robustbench_rec.explanation.words import Words
from robustbench_rec.model import RecModel
from robustbench_rec.models._item_based import ItemBased
from robustbench_rec.reader import Reader
from robustbench_rec.recommendation import Recommender

__all__ = ["KINDS", "Faithfulness", "Path", "Paths", "Units", "faithfulness", "units"]

KINDS = ("paths", "events", "words")


def units(asked: Recommender, user: int, item: int, by: str | None, *, hops: int) -> Units:
    """What the score of an item is made of for a user: paths of a knowledge graph, events of the history, or words.

    by: one of `KINDS`, None for the first of them that the model has. RrecError where it has none, or not this one.
    """
    model, data = asked.model, asked.data
    there = _there(model, data)
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
    events = next(each for fits, each in _EVENTS if fits(model))
    return events(asked, user, item)


def _there(model: RecModel, data: Data) -> list[str]:
    found = {
        "paths": type(model).relational is not RecModel.relational,
        "events": any(fits(model) for fits, _ in _EVENTS),
        "words": _reader(model, data) is not None,
    }
    return [kind for kind in KINDS if found[kind]]


def _reader(model: RecModel, data: Data) -> Reader | None:
    return None if type(model).text_reader is RecModel.text_reader else model.text_reader(data)


_EVENTS = (
    (lambda model: bool(model.window), Latest),
    (lambda model: isinstance(model, ItemBased), Owned),
    (lambda model: bool(model.n_edges), Edges),
    (lambda model: bool(model.newcomers) and type(model).relational is RecModel.relational, Refitted),
)
