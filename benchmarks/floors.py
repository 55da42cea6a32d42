"""What no attack on the structural features of structure_aware_kgat can take, and what ascents without a budget take.

rrec train model=structure_aware_kgat split=leave_one_out protocol=sampled
python benchmarks/floors.py outputs/train/<date>/<time>

These features decide the attention alone. A score is e_u·e_i, which no attention reaches, plus a cosine for each layer:
no two candidates of a user come closer by more than 2 a layer. The floor lets all come as close as that; the ascents
move the logit of every edge as far as they like.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_rec import checkpoint
from robustbench_rec.batch import Batch
from robustbench_rec.config import Judge
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.models.structure_aware_kgat import StructureAwareKGAT
from robustbench_rec.shifted import Shifted

NAME = "feature_structure"
K = 10
STEPS, RATES = 300, (0.02, 0.1, 0.5, 2.0)


def own(model: StructureAwareKGAT, batch: Batch) -> Tensor:
    """The part of the scores of candidates `[B, C]` that comes of no edge."""
    assert batch.items is not None
    users, items = (each[:, : model.config.dim] for each in model.encode())
    return torch.einsum("bd,bcd->bc", users[batch.users], items[batch.items])


def ndcg(scores: Tensor, wanted: Tensor, *, ahead: float = 0.0) -> Tensor:
    """Of users `[B]` with one wanted candidate each, before which all go that are at most `ahead` behind it."""
    best = scores.masked_fill(~wanted, float("-inf")).amax(1, keepdim=True)
    before = ((scores >= best - ahead) & ~wanted).sum(1)
    return torch.where(before < K, 1 / (before + 2.0).log2(), 0.0)


def ascent(at: Shifted, layer: Tensor, batch: Batch, wanted: Tensor, rate: float) -> tuple[float, Tensor]:
    """The least mean that Adam on the logits of edges comes to, and the least of every user `[B]`.

    layer: what the logits make of the features `[1, 4]`.
    """
    raises = layer / layer.square().sum()  # a logit by 1
    moved = torch.zeros(len(at.model.get_buffer(NAME)), 1, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=rate)
    least, lists = float("inf"), torch.full((len(batch),), float("inf"))
    for _ in range(STEPS):
        scores = at.shift({NAME: moved * raises})(batch).scores
        found = ndcg(scores.detach(), wanted)
        least, lists = min(least, found.mean().item()), torch.minimum(lists, found)
        ahead = scores - scores.masked_fill(~wanted, float("-inf")).amax(1, keepdim=True)
        nearest = F.softplus(-2 * ahead).masked_fill(wanted, float("inf")).topk(K, 1, largest=False).values
        optimizer.zero_grad()
        nearest.sum().backward()
        optimizer.step()
    return least, lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir")
    asked = parser.parse_args()
    loaded = checkpoint.load(str(asked.run), data_dir=asked.data_dir, device=torch.device("cpu"))
    model = loaded.model.requires_grad_(False).eval()
    if not isinstance(model, StructureAwareKGAT) or (model.config.readout, model.config.layers) != ("concat", 1):
        raise RrecError(f"{asked.run}: a structure_aware_kgat with readout=concat and layers=1 is needed")
    judge = Judge(protocol="sampled", seen=False, n_negatives=99, metrics=["ndcg"], top_k=[K], per_user=False)
    [batch] = evaluator(loaded.data, judge).batches(model, "test")
    wanted, at = batch.labels > 0, Shifted(model)
    if not bool((wanted.sum(1) == 1).all()):
        raise RrecError(f"{asked.run}: one wanted candidate a user is needed: split=leave_one_out")
    with torch.no_grad():
        clean, floor = ndcg(at(batch).scores, wanted), ndcg(own(model, batch), wanted, ahead=2.0)
    print(f"ndcg@{K} clean {clean.mean():.4f}")
    print(f"floor {floor.mean():.4f}: {int((floor > 0).sum())} of {len(floor)} users keep a hit whatever the attention")
    lists, layer = clean, model.get_parameter("attentions.0.structure.weight")
    for rate in RATES:
        least, found = ascent(at, layer, batch, wanted, rate)
        lists = torch.minimum(lists, found)
        print(f"ascent at rate {rate:g}: {least:.4f}", flush=True)
    print(f"the worst of all for each user: {lists.mean():.4f}")


if __name__ == "__main__":
    main()
