"""Whether an explanation is what a score came from, and what it is made of; one value an explanation.

scores: of the explained item by the fixed model. curves: `[B, P]`, that score after 0 … P-1 equal portions of the
evidence were taken away (deletion) or given back (insertion), in the order of the explanation, most important first.
"""

import torch
from torch import Tensor


def comprehensiveness(full: Tensor, without: Tensor) -> Tensor:
    """What the score loses without the evidence: s(all) - s(all but the evidence). DeYoung et al., ACL 2020."""
    return full - without


def sufficiency(full: Tensor, only: Tensor) -> Tensor:
    """What the score loses with the evidence alone: s(all) - s(the evidence); near 0 is better."""
    return full - only


def curve_area(curve: Tensor, share: Tensor) -> Tensor:
    """Area under a deletion or an insertion curve `[B, S]` over the share of the evidence `[S]`, by the trapezoid rule.

    Smaller is better for deletion, larger for insertion (Petsiuk et al., BMVC 2018); compare with a random order.
    """
    return torch.trapezoid(curve.double(), share.double(), dim=1)


def rank_fidelity(before: Tensor, after: Tensor, k: int) -> Tensor:
    """1 where an item among the first k leaves them without the evidence; NaN where it was not among them.

    before, after: ranks from 1 `[B]`.
    """
    return (after > k).double().masked_fill(before > k, float("nan"))


def path_jaccard(before: Tensor, after: Tensor) -> Tensor:
    """Paths in both explanations as a share of those in either; NaN where there are none.

    before, after: `[B, P, L]`, a path a row of codes (entities and relations), -1 past its end; a row of -1 is none.
    """
    there, then = (before >= 0).any(2), (after >= 0).any(2)
    common = ((before[:, :, None] == after[:, None]).all(3) & there[:, :, None]).any(2).sum(1)
    return common / (there.sum(1) + then.sum(1) - common)


def sparsity(chosen: Tensor, evidence: Tensor) -> Tensor:
    """Share of the evidence that an explanation leaves out: 1 - chosen / evidence; counts `[B]`."""
    return 1 - chosen / evidence


def coverage(paths: Tensor) -> Tensor:
    """Share of the recommendations that have at least one path; numbers of paths `[B]`."""
    return (paths > 0).double().mean()


def relation_diversity(relations: Tensor, n_relations: int) -> Tensor:
    """Entropy in nats of the relations on the paths of an explanation `[B]`, 0 for a single kind; NaN without any.

    relations: `[B, N]`, those of all its paths, -1 past the end.
    """
    there = (relations >= 0).double()
    counts = torch.zeros(len(relations), n_relations, dtype=torch.double, device=relations.device)
    counts = counts.scatter_add(1, relations.clamp_min(0), there)
    shares = counts / counts.sum(1, keepdim=True)
    found: Tensor = torch.special.xlogy(shares, shares).sum(1)
    return -found


def path_length(paths: Tensor) -> Tensor:
    """Mean number of codes on the paths of an explanation `[B]`; NaN without any. paths: as for `path_jaccard`."""
    lengths = (paths >= 0).sum(2)
    return lengths.sum(1) / (lengths > 0).sum(1)
