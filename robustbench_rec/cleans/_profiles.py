"""Profiles of users as matrices, and the features that shilling leaves in them."""

import torch
from torch import Tensor

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown

FORMS = ("auto", "clicks", "ratings")
CELLS = 2**28  # numbers in a matrix: 2 GiB of float64


def profiles(data: Data, users: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Whether users `[n]` have an item, 0/1 `[n, I]`, and their ratings there, 0 elsewhere, 1 where form is clicks.

    form: clicks, ratings, or auto for what the data has. float64. RrecError where they are too large to hold, or where
    there are no ratings.
    """
    if form not in FORMS:
        raise unknown("clean.form", form, FORMS)
    if form == "ratings" and not rated(data):
        raise RrecError(f"clean.form=ratings: dataset '{data.name}' has none; use form=clicks")
    if len(users) * max(data.n_items, len(users)) > CELLS:
        raise RrecError(
            f"{len(users)} users and {data.n_items} items are too many for a step that holds them as a matrix; "
            "use clean=rules, degree_sad, or fap with known=true"
        )
    row = torch.full((data.n_users,), -1).index_copy(0, users, torch.arange(len(users)))
    train = data.train.liked()  # a refusal is no click
    places = (row[train.users], train.items)
    empty = torch.zeros(len(users), data.n_items, dtype=torch.double)
    there = empty.index_put(places, torch.ones((), dtype=torch.double))
    if form == "clicks" or not rated(data):
        return there, there
    ratings = empty.index_put(places, train.values.double(), accumulate=True)
    counts = empty.index_put(places, torch.ones((), dtype=torch.double), accumulate=True)
    return there, ratings / counts.clamp_min(1)  # the mean, where a user rated an item again


def rated(data: Data) -> bool:
    """Whether events have other values than 1 and 0."""
    return bool(((data.train.values != 0) & (data.train.values != 1)).any())


def explicit(there: Tensor, ratings: Tensor, near: int) -> dict[str, Tensor]:
    """The features of rating profiles of Chirita et al. (WIDM 2005) and Burke et al. (KDD 2006), each `[n]`.

    rdma, wdma, wda: rating deviation from mean agreement, weighted by 1/N_i, 1/N_i² and not divided by the user's
    number. length_variance. mean_variance: of the fillers, which are all but the user's highest ratings. fmtd: filler
    mean against that of the highest. similarity: mean cosine of the mean-centred ratings with the `near` nearest.
    """
    counts = there.sum(1)
    raters = there.sum(0).clamp_min(1)
    deviation = there * (ratings - ratings.sum(0) / raters)
    size = counts.clamp_min(1)
    highest = (ratings.masked_fill(there == 0, float("-inf")).amax(1, keepdim=True) == ratings) & (there > 0)
    filler = (there > 0) & ~highest
    n_filler, n_highest = filler.sum(1), highest.sum(1)
    both = (n_filler > 0) & (n_highest > 0)
    means = [(ratings * part).sum(1) / part.sum(1).clamp_min(1) for part in (filler, highest)]
    spread = (counts - counts.mean()).square().sum()
    centred = there * (ratings - (ratings.sum(1) / size)[:, None])
    unit = torch.nn.functional.normalize(centred, dim=1)
    return {
        "rdma": (deviation.abs() / raters).sum(1) / size,
        "wdma": (deviation.abs() / raters.square()).sum(1) / size,
        "wda": (deviation.abs() / raters).sum(1),
        "length_variance": (counts - counts.mean()).abs() / spread.clamp_min(1e-12),
        "mean_variance": (deviation.square() * filler).sum(1) / n_filler.clamp_min(1),
        "fmtd": torch.where(both, (means[0] - means[1]).abs(), 0.0),
        "similarity": nearest(unit @ unit.T, near).mean(1),
    }


def implicit(data: Data, users: Tensor, there: Tensor, near: int) -> dict[str, Tensor]:
    """Features of click profiles, each `[n]`.

    length. popularity: mean of the users of the items. entropy: of the profile over items of a like popularity (powers
    of 2). likelihood: mean cosine of its pairs of items in the audiences. jaccard: mean with the `near` nearest users.
    burstiness: (σ − μ) / (σ + μ) of the gaps between its times, 0 for fewer than two gaps (Goh & Barabási, 2008); left
    out where there are no times.
    """
    counts, audience = there.sum(1), there.sum(0)
    size = counts.clamp_min(1)
    level = audience.clamp_min(1).log2().floor().long()
    shares = torch.zeros(len(users), int(level.max()) + 1, dtype=there.dtype).index_add(1, level, there) / size[:, None]
    common = there @ there.T
    pairs = ((there / audience.clamp_min(1).sqrt()) @ there.T).square().sum(1)  # an item with itself included
    jaccard = common / (counts[:, None] + counts - common).clamp_min(1)
    found = {
        "length": counts,
        "popularity": (there @ audience) / size,
        "entropy": torch.special.entr(shares).sum(1),
        "likelihood": (pairs - counts) / (counts * (counts - 1)).clamp_min(1),
        "jaccard": nearest(jaccard, near).mean(1),
    }
    if data.train.times is not None:
        found["burstiness"] = burstiness(data.train.users, data.train.times, data.n_users)[users]
    return found


def nearest(similarity: Tensor, near: int) -> Tensor:
    """The largest similarities of each user to others `[n, near]`, fewer where there are fewer others."""
    others = similarity.clone().fill_diagonal_(float("-inf"))
    return others.topk(max(1, min(near, len(others) - 1)), 1).values.nan_to_num(neginf=0.0)


def burstiness(users: Tensor, times: Tensor, n: int) -> Tensor:
    """Of the gaps between the events of each of n users `[n]`."""
    order = times.argsort(stable=True)
    order = order[users[order].argsort(stable=True)]
    same = users[order[1:]] == users[order[:-1]]
    owner, gap = users[order[1:]][same], times[order].diff()[same].double()
    empty = torch.zeros(n, dtype=torch.double)
    counts = torch.bincount(owner, minlength=n)
    mean = empty.index_add(0, owner, gap) / counts.clamp_min(1)
    spread = (empty.index_add(0, owner, (gap - mean[owner]).square()) / counts.clamp_min(1)).sqrt()
    ratio = (spread - mean) / (spread + mean).clamp_min(1e-12)
    return torch.where((counts > 1) & (mean > 0), ratio, 0.0)
