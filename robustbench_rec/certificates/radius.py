from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustbench_rec.attacks import attacks
from robustbench_rec.certificates import certificates
from robustbench_rec.certified import CELLS, Budgets, Certificate, Certified, certifiable, vectors
from robustbench_rec.checkpoint import Loaded
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation import Full, Result
from robustbench_rec.evaluation.worst import attacked, members, worst
from robustbench_rec.goals import goals
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted, surface
from robustbench_rec.targets import targets
from robustbench_rec.threat import Threat

VECTORS = ("all", "item", "user")
ROUNDING = 1e-13  # of a squared length in double precision, at most


@certificates.register
class Radius(Certificate):
    """Exact l2 radii of the vectors of a dot-product model: how far they must move before an item leaves the lists.

    vectors: which may move, each by a budget in l2. user: the user's own; item: that of any one item; all: every vector
    of users and items at once. items: original ids of items for which it is certified too how many users they can enter
    the lists of (null: none). attack: what is run for the empirical side, its eps, surface and modules are set.

    For one pair of items, d = q_t − q_k, the distance is exact: gap/‖d‖ (user), gap/‖p‖ (item), and for all, from two
    dimensions on, the r at which steps of r turn p, and of 2r turn d, until they are at right angles:
    ∠(p, d) + asin(r/‖p‖) + asin(2r/‖d‖) = π/2, which is gap/√(4‖p‖² + ‖d‖² + 4√(‖p‖²‖d‖² − gap²)). That an item leaves
    the first K needs the K-th smallest of them; for `item` that is exact, for the others a lower bound, exact for
    K = 1. Whoever has several relevant items is certified for the worst of each, though no one perturbation may do all
    that. Computed in double precision from the vectors of the model; what its own scores have level is not certified.
    """

    @dataclass
    class Config(Budgets):
        vectors: str
        items: list[str] | None
        attack: dict[str, Any]

    threat: ClassVar[Threat] = Threat(
        surface="vectors", knowledge="white-box", scope="each user", budget="l2 norm of each vector"
    )
    unit: ClassVar[str] = "radius"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.vectors not in VECTORS:
            raise unknown("certify.vectors", config.vectors, VECTORS)
        self.config = config

    @property
    def declared(self) -> Threat:
        surface = {"user": "the user's vector", "item": "the vector of one item", "all": "all vectors"}
        return replace(self.threat, surface=surface[self.config.vectors], goal="untargeted, promote")

    @torch.no_grad()
    def certify(self, loaded: Loaded, judging: Full, part: str) -> Certified:
        model, budgets = loaded.model.eval(), torch.tensor(self.budgets, dtype=torch.float64)
        at, top_k = Shifted(model), judging.judge.top_k
        named = self.config.items
        aims = None if named is None else targets(loaded.data, named, stratum="random", count=1, seed=0)
        above: list[Tensor] = []
        leaving: dict[int, list[Tensor]] = {k: [] for k in top_k}
        entering: dict[int, list[Tensor]] = {k: [] for k in top_k}
        batches = judging.inputs(model, part)
        for portion, batch in zip(judging.portions(part), batches, strict=True):
            users, items = (each.double() for each in vectors(at, batch, loaded.data.n_items))
            scores, ranked = users @ items.T, at(batch).scores.float()  # [B, n_items]
            scores[portion.excluded] = float("-inf")
            relevant = torch.zeros_like(scores, dtype=torch.bool)
            relevant[portion.relevant] = True
            for rows, own, distance in self._distances(users, items, scores, ranked, *portion.relevant):
                distance[torch.arange(len(own)), own] = float("inf")
                for k, kept in leaving.items():
                    kept.append(_smallest(distance, k))
                others = distance.masked_fill(relevant[rows], float("inf"))
                above.append(torch.stack([(others <= each).sum(1) for each in budgets.to(others.device)]))
            if aims is not None:
                open_ = scores[:, aims].isfinite() & ~relevant[:, aims]
                rows, columns = open_.nonzero().unbind(1)
                for _, own, distance in self._distances(users, items, -scores, -ranked, rows, aims[columns]):
                    # that t passes k is that k falls behind t: the K-th largest of the distances lets it enter
                    distance[distance.isinf()] = 0
                    distance[torch.arange(len(own)), own] = 0
                    for k, kept in entering.items():
                        kept.append(distance.topk(min(k, distance.shape[1]), 1).values[:, -1])
        notes: dict[str, float] = {}
        for k, kept in leaving.items():
            radii = torch.cat(kept)
            inside = radii[radii > 0]
            notes[f"median_radius@{k}"] = inside.median().item() if len(inside) else float("nan")
        for k, kept in entering.items():
            if kept:
                radii = torch.cat(kept)
                notes |= {f"t_hr@{k}@{b:g}": (radii <= b).double().mean().item() for b in self.budgets}
        return Certified(judging.evaluate(at, part, metrics=certifiable(judging)), torch.cat(above, 1), notes)

    def attack(self, loaded: Loaded, judging: Full, part: str, budget: float) -> Result:
        model = loaded.model.requires_grad_(False).eval()
        where = self._surface(model)
        ball = {"eps": budget, "norm": "l2", "per": "row", "relative": "no", "scope": "all"}
        suite = attacks.build({**self.config.attack, **where, **ball}).prepared(model, loaded.data)
        results, at = [], Shifted(model)
        for k in judging.judge.top_k:
            goal = goals.build({"name": "untargeted", "k": k}, loaded.data)
            for member in members(judging, suite, goal):
                moved, _ = attacked(judging, at, member, part, goal, None)
                results.append(judging.evaluate(moved, part, metrics=certifiable(judging)))
        return worst(results, goal, judging.smaller)

    def _surface(self, model: RecModel) -> dict[str, Any]:
        """Where an attack of the toolkit moves the same vectors."""
        own = type(model).encode is RecModel.encode and not model.window
        if self.config.vectors == "all" and own and surface(model, "embedding") == ["user.weight", "item.weight"]:
            return {"surface": "embedding", "modules": None}
        site = "dots.user" if hasattr(model, "dots") else "user"
        if self.config.vectors == "user" and f"{site}.shift" in surface(model, "activation"):
            return {"surface": "activation", "modules": [site]}
        raise RrecError(
            f"certify.empirical: no attack moves vectors={self.config.vectors} of {type(model).__name__} alone; "
            "leave it false"
        )

    def _distances(
        self, users: Tensor, items: Tensor, scores: Tensor, ranked: Tensor, rows: Tensor, columns: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For pairs `[P]`, in portions: rows, columns, and how far the vectors must move for each other item to pass.

        `[p, n_items]`: 0 where it stands above or level already, ∞ where it is no candidate. scores: in double
        precision. ranked: those by which the lists are made, in which rounding may have put level what is not.
        """
        squares = items.square().sum(1)
        for part in torch.arange(len(rows), device=rows.device).split(max(1, CELLS // scores.shape[1])):
            row, own = rows[part], columns[part]
            others = scores[row]
            gap = scores[row, own][:, None] - others
            sums = squares[own, None] + squares
            between = (sums - 2 * items[own] @ items.T).clamp_min(0)  # ‖q_t − q_k‖²
            size = users[row].norm(dim=1, keepdim=True)
            if self.config.vectors == "user":
                distance = gap / (between + ROUNDING * sums).sqrt()  # of items that are nearly the same: never too far
            elif self.config.vectors == "item":
                distance = gap / size
            else:
                # for vectors nearly in one line a difference of almost equal numbers: never too small
                area = (size.square() * (between + ROUNDING * sums) - gap.square()).clamp_min(0).sqrt()
                distance = gap / (4 * size.square() + between + 4 * area).sqrt()
            below = ranked[row, own][:, None] > ranked[row]
            distance = torch.where((gap > 0) & below, distance, 0.0)
            yield row, own, distance.masked_fill(others.isinf(), float("inf"))


def _smallest(distance: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row, ∞ where there are fewer candidates."""
    return distance.topk(min(k, distance.shape[1]), 1, largest=False).values[:, -1]
