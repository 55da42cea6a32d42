"""Which way each metric is better, for whoever marks, sorts or words values."""

from robustbench_rec.metrics import prediction, ranking, uncertainty

LESS = prediction.SMALLER | uncertainty.SMALLER
_JUDGED = {*ranking.KNOWN, *prediction.CLICKS, *prediction.RATINGS, *uncertainty.OF_CLICKS}
_AGREEMENT = {"kendall", "overlap"}
MORE = frozenset(_JUDGED | _AGREEMENT) - LESS - ranking.NEUTRAL


def sign(name: str) -> int:
    """Of a metric, named as in results ("ndcg@10"): 1 where more is better, -1 where less is, 0 where neither is.

    A name that is not known here has 0.
    """
    kind = name.partition("@")[0]
    return int(kind in MORE) - int(kind in LESS)
