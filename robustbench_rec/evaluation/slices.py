"""Quality by groups of users and of items, and how evenly it is shared out among them."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation.base import Evaluator, Predicted, Result
from robustbench_rec.evaluation.prediction import Prediction
from robustbench_rec.evaluation.ranking import Lists
from robustbench_rec.metrics import fairness
from robustbench_rec.metrics.popularity import exposure

OF_USERS, OF_ITEMS = ("activity", "cold_users"), ("popularity", "cold_items")
EDGES = (0, 5, 20)
"""Training events up to which a user or an item is cold: none, few, some; then there are many."""
FEW = 8
"""Values of a column of numbers that are groups of their own; more become quarters."""
MANY = 12
"""Groups of a column of names; the rarest beyond share one."""


@dataclass(frozen=True)
class Groups:
    """names: of the groups. of: the group of every user, or of every item, -1 for none."""

    attribute: str
    names: list[str]
    of: Tensor
    items: bool


@dataclass(frozen=True)
class Slices:
    """frame: attribute, slice, users, events, metric, value, a row for each. metrics: what is told of all at once."""

    frame: pd.DataFrame
    metrics: dict[str, float]


def groups(data: Data, attribute: str) -> Groups:
    """Of activity or popularity (quarters by training events), cold_users or cold_items, or a column of the user table.

    Equal numbers are never parted, so that quarters need not be of equal size. RrecError for what there is not.
    """
    device = data.train.users.device
    table = data.user_table
    if attribute in (*OF_USERS, *OF_ITEMS):
        items = attribute in OF_ITEMS
        column = pd.Series(_events(data, items=items).cpu().numpy())
        if not items:
            column = column.where(column.index < data.n_genuine)  # fake users belong to no group
        column = _cold(column) if attribute.startswith("cold") else _quarters(column)
    elif table is not None and attribute in table:
        items, column = False, numbers(table[attribute].reset_index(drop=True))
        several = column.nunique() > (FEW if pd.api.types.is_numeric_dtype(column) else MANY)
        if several:
            column = _quarters(column) if pd.api.types.is_numeric_dtype(column) else _common(column)
    else:
        raise unknown("slice", attribute, [*OF_USERS, *OF_ITEMS, *([] if table is None else map(str, table.columns))])
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    column = column.cat.remove_unused_categories()
    numbered = _numbered([each for each in column.cat.categories if isinstance(each, float)])
    names = [numbered[each] if isinstance(each, float) else str(each) for each in column.cat.categories]
    if not names:
        raise RrecError(f"slices=[{attribute}]: the column has no value, there is nothing to break down by")
    return Groups(attribute, names, torch.tensor(column.cat.codes.to_numpy().astype("int64"), device=device), items)


def check(data: Data, attributes: Sequence[str], anonymity: int) -> None:
    """RrecError for slices that there are not, or a number of users that no slice can have."""
    if not 1 <= anonymity <= data.n_genuine:
        raise RrecError(f"anonymity={anonymity}: between 1 and the {data.n_genuine} users of the data")
    for attribute in attributes:
        groups(data, attribute)


def numbers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Texts that are all numbers as such, as ages in files without types; an empty text is no value."""
    if not pd.api.types.is_numeric_dtype(column):
        column = column.mask(column.astype("string").str.strip().eq("").fillna(value=False).astype(bool))
    found = pd.to_numeric(column, errors="coerce")
    return column if bool((found.isna() & column.notna()).any()) else found


def sliced(
    judging: Evaluator[Any], part: str, result: Result, attributes: Sequence[str], *, anonymity: int = 1
) -> Slices:
    """A result by group; the same for all protocols, with the metrics of each.

    Of a ranking: by users the mean of every metric; by items recall@k (of the relevant items of the group, the share
    that is in a list), the share of the exposure and of the catalogue. metrics, as `fair/…`: gap, ratio and worst of
    the main metric among groups of users, cvar and std of it over users, equal opportunity and parity among groups of
    items. Of single predictions: every metric over the events of the group, and gap, ratio and worst of the main one.
    anonymity: users that every group has at least; smaller ones are joined with their neighbours.
    """
    if not attributes:
        raise RrecError(f"slices: name some (choices: {', '.join((*OF_USERS, *OF_ITEMS))}, a column of the user table)")
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    main = judging.watched(None)
    check(judging.data, attributes, anonymity)
    events = _judged(judging, part, result) if anonymity > 1 else None
    for each in (groups(judging.data, attribute) for attribute in attributes):
        if events is not None:
            each = _anonymous(each, *events, anonymity)
        add = partial(_add, rows, each)
        if result.predicted is not None:
            found = _of_events(judging, result.predicted, each, add, main)
        elif each.items:
            found = _of_items(judging, part, result, each, add)
        else:
            found = _of_users(judging, part, result, each, add, main)
        metrics |= {f"fair/{each.attribute}/{name}": value for name, value in found.items()}
    if main in result.per_user:
        values = result.per_user[main]
        metrics |= {
            f"fair/cvar/{main}": fairness.cvar(values).item(),
            f"fair/std/{main}": fairness.spread(values).item(),
        }
    columns = ["attribute", "slice", "users", "events", "metric", "value"]
    return Slices(pd.DataFrame(rows, columns=columns), metrics)


def _judged(judging: Evaluator[Any], part: str, result: Result) -> tuple[Tensor, Tensor]:
    """User and item of every event that is judged `[R]`."""
    if result.predicted is not None:
        return result.predicted.users, result.predicted.items
    return _relevant(judging, part)[1:]


def _anonymous(of: Groups, users: Tensor, items: Tensor, least: int) -> Groups:
    """The groups, the smallest joined with the smaller neighbour until all have so many of the users (k-anonymity)."""
    names, code = list(of.names), torch.arange(len(of.names), device=users.device)
    own = of.of[items if of.items else users]
    users, own = users[own >= 0], own[own >= 0]
    while True:
        sizes = _count(torch.unique(torch.stack([users, code[own]]), dim=1)[1], len(names))
        small = int(sizes.argmin())
        if sizes[small] >= least:
            break
        if len(names) == 1:
            told = f"all groups together have {int(sizes)} users, fewer than anonymity={least}"
            raise RrecError(f"slices=[{of.attribute}]: {told}")
        beside = [each for each in (small - 1, small + 1) if 0 <= each < len(names)]
        low, high = sorted((small, min(beside, key=lambda each: int(sizes[each]))))
        names[low : high + 1] = [f"{names[low]}, {names[high]}"]
        code -= (code >= high).long()
    return Groups(of.attribute, names, torch.where(of.of >= 0, code[of.of], -1), of.items)


def _add(rows: list[dict[str, Any]], of: Groups, metric: str, values: Tensor, users: Tensor, events: Tensor) -> None:
    told = zip(of.names, users.tolist(), events.tolist(), values.tolist(), strict=True)
    rows.extend(
        {"attribute": of.attribute, "slice": name, "users": n, "events": m, "metric": metric, "value": value}
        for name, n, m, value in told
    )


def _of_users(judging: Evaluator[Any], part: str, result: Result, of: Groups, add: Any, main: str) -> dict[str, float]:
    n, own = len(of.names), of.of[result.users]
    events = of.of[_relevant(judging, part)[1]]
    sizes = _count(own, n), _count(events, n)
    for name, values in result.per_user.items():
        means, _ = fairness.by_group(values, own, n)
        add(name, means, *sizes)
    if main not in result.per_user:
        return {}
    return _even(fairness.by_group(result.per_user[main], own, n)[0], main, judging.smaller)


def _of_items(judging: Evaluator[Any], part: str, result: Result, of: Groups, add: Any) -> dict[str, float]:
    assert result.shown is not None
    n, lists = len(of.names), result.shown.items
    rows, users, items = _relevant(judging, part)
    kind = of.of[items]
    pairs = torch.unique(torch.stack([users, kind]), dim=1)
    sizes = _count(pairs[1], n), _count(kind, n)
    catalogue = _count(of.of, n).double()
    found: dict[str, float] = {}
    for k in judging.judge.top_k:
        hit = torch.cat([_listed(lists[:, :k], *each) for each in _pieces(rows, items)])
        rates = fairness.true_positive_rates(hit, kind, n)
        seen = exposure(lists[:, :k], judging.data.n_items)
        shares = fairness.by_group(seen.double(), of.of, n)[0] * catalogue
        add(f"recall@{k}", rates, *sizes)
        add(f"exposure@{k}", shares / shares.nansum(), *sizes)
        found |= {
            f"opportunity@{k}": fairness.gap(rates).item(),
            f"parity@{k}": fairness.parity(seen, of.of, n).amax().item(),
        }
    add("catalogue", catalogue / catalogue.sum(), *sizes)
    return found


def _of_events(judging: Evaluator[Any], predicted: Predicted, of: Groups, add: Any, main: str) -> dict[str, float]:
    assert isinstance(judging, Prediction)
    n = len(of.names)
    kind = of.of[predicted.items if of.items else predicted.users]
    pairs = torch.unique(torch.stack([predicted.users, kind]), dim=1)
    sizes = _count(pairs[1], n), _count(kind, n)
    inside = [kind == number for number in range(n)]
    even: dict[str, float] = {}
    for name in judging.names():
        metric = judging.known[name]
        values = [metric(predicted.scores[each], predicted.labels[each]) for each in inside if bool(each.any())]
        means = sizes[1].new_full((n,), float("nan"), dtype=torch.double)
        means[sizes[1] > 0] = torch.stack(values).double() if values else means[:0]
        add(name, means, *sizes)
        if name == main:
            even = _even(means, name, judging.smaller)
    return even


def _even(means: Tensor, name: str, smaller: Container[str]) -> dict[str, float]:
    found = {
        "gap": fairness.gap(means),
        "ratio": fairness.ratio(means),
        "worst": fairness.worst(means, smaller=name in smaller),
    }
    return {f"{kind}/{name}": value.item() for kind, value in found.items()}


def _relevant(judging: Evaluator[Any], part: str) -> tuple[Tensor, Tensor, Tensor]:
    """List, user and item of every relevant pair `[R]`."""
    rows, users, items, first = [], [], [], 0
    for each in judging.portions(part):
        assert isinstance(each, Lists)
        row, column = each.relevant
        rows.append(row + first)
        users.append(each.users[row])
        items.append(column if each.items is None else each.items[row, column])
        first += len(each.users)
    return torch.cat(rows), torch.cat(users), torch.cat(items)


def _pieces(*tensors: Tensor) -> Any:
    return zip(*(each.split(2**20) for each in tensors), strict=True)


def _listed(lists: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    return (lists[rows] == items[:, None]).any(1)


def _count(kind: Tensor, n: int) -> Tensor:
    return torch.bincount(kind[kind >= 0], minlength=n)


def _events(data: Data, *, items: bool) -> Tensor:
    """Training events of each user or item, without those of fake users."""
    clicks = data.clicks()
    who, n = (clicks.items, data.n_items) if items else (clicks.users, data.n_users)
    return torch.bincount(who, minlength=n)


def _cold(column: "pd.Series[Any]") -> "pd.Series[Any]":
    edges = [-1, *EDGES, float("inf")]
    names = ["0", *(f"{low + 1} – {high}" for low, high in pairwise(EDGES)), f"> {EDGES[-1]}"]
    return pd.cut(column, edges, labels=names)


def _quarters(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Named by the smallest and the largest number in each; up to four different numbers stand for themselves."""
    if column.nunique() <= 4:
        return column
    codes = pd.cut(column, [-float("inf"), *_largest(column.dropna(), 4)], labels=False)
    found = column.groupby(codes).agg(["min", "max"])
    told = _numbered([*found["min"], *found["max"]])
    names = {code: told[low] + (f" – {told[high]}" if low < high else "") for code, low, high in found.itertuples()}
    return pd.Series(pd.Categorical(codes.map(names), categories=list(names.values()), ordered=True))


def _largest(values: "pd.Series[Any]", n: int) -> list[float]:
    """The largest number of each of n groups of much the same size.

    Where a number is at several of their edges, the most frequent one is a group of its own and the others share the
    rest.
    """
    edges = values.quantile([place / n for place in range(n + 1)])
    if n == 1 or values.nunique() == 1 or edges.is_unique:
        return list(dict.fromkeys(edges.iloc[1:]))
    common = values.mode().iloc[0]
    below, above = values[values < common], values[values > common]
    first = round((n - 1) * len(below) / (len(below) + len(above)))
    first = min(max(first, int(len(below) > 0)), n - 1 - int(len(above) > 0))
    sides = ((below, first), (above, n - 1 - first))
    less, more = (_largest(side, share) if share else [] for side, share in sides)
    return [*less, common, *more]


def _numbered(values: Sequence[float]) -> dict[float, str]:
    """Numbers in words that tell different ones apart, such as the seconds of two dates."""
    few = next(n for n in range(6, 18) if len({f"{each:.{n}g}" for each in set(values)}) == len(set(values)))
    return {each: f"{each:.{few}g}" for each in values}


def _common(column: "pd.Series[Any]") -> "pd.Series[Any]":
    kept = column.value_counts().index[: MANY - 1]
    return column.where(column.isin(kept) | column.isna(), "other")
