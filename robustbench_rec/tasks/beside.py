"""Another model beside the one that a verb is about."""

from typing import Any

from robustbench_rec import checkpoint
from robustbench_rec.config import Attack, Eval, Gate
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import Evaluator, evaluator


def beside(
    cfg: Attack | Gate, judging: Evaluator[Any], loaded: checkpoint.Loaded, other: checkpoint.Loaded, key: str
) -> Evaluator[Any]:
    """What a model that the key names is judged with: it reads its own training data, and is asked what `judging` asks.

    RrecError where it was trained on other data (cleaning aside), or as `asked_alike`.
    """
    checkpoint.comparable(loaded, other, key, str(getattr(cfg, key)), cfg.ckpt)
    return asked_alike(cfg, judging, other.data, key)


def asked_alike(cfg: Attack | Eval | Gate, judging: Evaluator[Any], data: Data, key: str) -> Evaluator[Any]:
    """What a model of other data is judged with; RrecError where that asks something else than `judging`.

    Cleaning hides events instead of making candidates of them, but a noise that chooses test events by those of train,
    or labels that cleaning took away, can change the question.
    """
    if data.fingerprint == judging.data.fingerprint:
        return judging
    own = evaluator(data, cfg, alone=judging.alone)
    if not judging.asks_as(own, cfg.part):
        raise RrecError(
            f"{key}={getattr(cfg, key)}: without the cleaning and the noise of ckpt={cfg.ckpt}, or with others, other "
            "users, candidates or events are judged: there is nothing to compare"
        )
    return own
