"""Structural features of the edges of a graph."""

import torch
from torch import Tensor

from robustbench_rec.graph import Csr, pointers
from robustbench_rec.models._knowledge import Edges

STRUCTURE = ("degree", "frequency", "jaccard", "adamic_adar")
EXPANDED = 2**22  # candidates for common neighbours that are checked at once


def structural(edges: Edges, n: int, there: Tensor) -> Tensor:
    """φ of every edge in the graph of those that are there, bool `[E]`: `[E, len(STRUCTURE)]`.

    Mean 0 and variance 1 over these, or 0 throughout where all are equal.
    """
    heads, relations, tails = edges
    degree = torch.bincount(heads[there], minlength=n)
    frequency = torch.bincount(relations[there], minlength=int(relations.max()) + 1)
    jaccard, adamic_adar = _overlap(heads, tails, n, there)
    found = {
        "degree": degree[tails].clamp_min(1).float().log(),
        "frequency": frequency[relations].clamp_min(1).float().log(),
        "jaccard": jaccard,
        "adamic_adar": adamic_adar,
    }
    phi = torch.stack([found[name] for name in STRUCTURE], 1)
    phi = (phi - phi[there].mean(0)).nan_to_num()  # no edge is there
    spread = phi[there].square().mean(0).sqrt()
    return phi / torch.where(spread > 1e-6, spread, torch.inf)


def _overlap(heads: Tensor, tails: Tensor, n: int, there: Tensor) -> tuple[Tensor, Tensor]:
    """Jaccard and Adamic-Adar index of the neighbourhoods of the ends of each edge `[E]`, by the edges that are there.

    The neighbours of the end that has fewer are looked up among those of the other.
    """
    pairs, edge = torch.unique(heads * n + tails, return_inverse=True)  # a pair joined by several relations once
    rows, columns = pairs // n, pairs % n
    keys = pairs[torch.zeros_like(pairs, dtype=torch.bool).index_fill(0, edge[there], True)]
    starts = pointers(keys // n, n)
    degree = starts.diff()
    swap = degree[rows] > degree[columns]
    few, many = torch.where(swap, columns, rows), torch.where(swap, rows, columns)
    informative = 1 / degree.clamp_min(2).float().log()
    shared, weighted = torch.zeros(2, len(pairs), dtype=torch.float, device=keys.device)
    ends = degree[few].cumsum(0)
    portion = (ends // EXPANDED).unique_consecutive(return_counts=True)[1].tolist()
    for some in torch.arange(len(pairs), device=keys.device).split(portion):
        near = Csr(starts, keys % n).rows(few[some])
        pair = torch.repeat_interleave(some, near.starts.diff())
        wanted = many[pair] * n + near.columns
        common = keys[torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)] == wanted
        shared.index_add_(0, pair, common.float())
        weighted.index_add_(0, pair, common * informative[near.columns])
    union = (degree[rows] + degree[columns] - shared).clamp_min(1)
    return (shared / union)[edge], weighted[edge]
