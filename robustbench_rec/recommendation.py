"""What a model recommends: lists of the best candidates of users, known ones and new ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustbench_rec.batch import Batch, History
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.evaluation.base import together
from robustbench_rec.graph import Csr, Sparse
from robustbench_rec.histories import Histories
from robustbench_rec.largest import largest
from robustbench_rec.model import RecModel
from robustbench_rec.shifted import Shifted

PARTS = {"valid": ("train",), "test": ("train", "valid"), None: ("train", "valid", "test")}
"""What is known when a part is asked about."""
ROUNDS = 100
VOTES = 20.0
"""What an event counts beside the prior; lists of known users found again so agree best with their own."""


@dataclass(frozen=True)
class Lists:
    """The best first. items, scores: `[B, k]`, -inf where a user has fewer candidates. deviation: if any."""

    items: Tensor
    scores: Tensor
    deviation: Tensor | None


class Recommender:
    """A model at a point asked for lists.

    part: null for all that the data has, what was rated below `prepare.threshold` too; test or valid for what is known
    when that part is judged. seen: whether what a user had is a candidate.
    """

    def __init__(self, at: Shifted, data: Data, *, part: str | None = None, seen: bool = False) -> None:
        if part not in PARTS:
            raise unknown("part", str(part), [each for each in PARTS if each])
        self.at, self.data, self.seen = at, data, seen
        parts = [data.part(each) for each in PARTS[part]]
        sizes = {"n_users": data.n_users, "n_items": data.n_items}
        self.histories = Histories(*(each.liked() for each in parts), **sizes)
        also = [data.hidden, None if part else data.disliked]  # which no part that is judged knows of
        told = [*parts, *(each for each in also if each is not None)]
        users, items = (torch.cat([getattr(each, name) for each in told]) for name in ("users", "items"))
        self.had = Sparse(users, items, data.n_users).csr

    @property
    def model(self) -> RecModel:
        return self.at.model

    def question(self, users: Tensor, items: Tensor | None = None) -> Batch:
        """What the model is asked about users `[B]`."""
        return self.histories.question(users, items, self.model.window)

    @torch.no_grad()
    def of(self, users: Tensor, k: int) -> Lists:
        """Lists of users `[B]`."""
        batch = self.question(users)
        return self._best(self.at(batch).scores, batch, self.had.rows(users), k)

    def everyone(self, k: int) -> Iterator[tuple[Tensor, Lists]]:
        """Of all genuine users, some of them at a time."""
        users = torch.arange(self.data.n_genuine, device=self.data.train.users.device)
        for some in users.split(together(self.data.n_items)):
            yield some, self.of(some, k)

    def new(self, liked: Tensor, k: int) -> tuple[Lists, str]:
        """The list of somebody who likes these items `[n]`, oldest first, and how it was found."""
        items = torch.unique(liked)  # a row of training events is 0/1
        owned = Csr(torch.tensor([0, len(items)], device=items.device), items)
        window, model = self.model.window, self.model
        nobody = torch.zeros(1, dtype=torch.long, device=liked.device)
        batch = Batch.unlabelled(nobody)
        if window:
            read = liked[-window:]
            batch = replace(batch, history=History(read[None], torch.tensor([len(read)], device=liked.device)))
            with torch.no_grad():
                scores = self.at(batch).scores
            words = "the model reads the list as the latest events"
        elif model.training_rows is not None:
            with torch.no_grad():
                scores = model.of_rows(owned, self.at.encoded)
            words = "the model reads the list as a row of training events"
        elif not model.personal:
            with torch.no_grad():
                scores, words = self.at(batch).scores, "the model ranks alike for everyone"
        else:
            marks = torch.zeros(1, self.data.n_items, dtype=torch.bool, device=liked.device)
            marks[0, liked] = True
            point, stand_in = FoldIn(self.at, self.data)(marks)
            with torch.no_grad():
                scores = point(Batch.unlabelled(stand_in)).scores
            words = "a vector for the new user was learnt from the list, everything else held fixed"
        return self._best(scores, batch, owned, k), words

    @torch.no_grad()
    def _best(self, scores: Tensor, batch: Batch, had: Csr, k: int) -> Lists:
        scores = scores.float()
        if not self.seen:
            rows = torch.repeat_interleave(had.starts.diff())
            scores = scores.index_put((rows, had.columns), scores.new_tensor(-torch.inf))
        best, items = largest(scores, min(k, scores.shape[1]))
        if bool(best.isnan().any() | (best == torch.inf).any()):
            raise RrecError("a score is NaN or infinite: such a model cannot be ranked (lower lr or eps)")
        deviation = self.model.deviation(replace(batch, items=items), self.at.encoded)
        return Lists(items, best, deviation)


class FoldIn:
    """Finds new users of a model that keeps a vector for each user, with everything else as it is.

    MAP: −Σ log σ(s_liked − s_other), the mean over all others for each liked item (BPR without sampling), and a normal
    prior with mean and variances of the vectors of the users who were trained; L-BFGS.
    """

    def __init__(self, at: Shifted, data: Data) -> None:
        model = at.model
        if not model.newcomers:
            name = type(model).__module__.rpartition(".")[2]
            raise RrecError(
                f"model '{name}' cannot take a new user: it neither reads what a user had nor keeps a vector for each "
                "user alone (models of sequences, item-based ones, mf, lightgcn, neumf, kgat … can)"
            )
        self.at = at
        users = torch.unique(data.train.users)
        sites = [name for name in model.newcomers if name.endswith(".shift")]
        with torch.no_grad():
            seen = at.activations(sites, Batch.unlabelled(users)) if sites else {}
            tables = at.tensors(name for name in model.newcomers if name not in sites)
        self.tables = {name: each.detach() for name, each in tables.items()}
        rows = seen | {name: each[users] for name, each in self.tables.items()}
        self.first = int(users[0])
        self.base = {name: each[0] if name in seen else each for name, each in (seen | self.tables).items()}
        self.mean = {name: each.mean(0) for name, each in rows.items()}
        self.spread = {name: each.std(0).clamp_min(1e-6) for name, each in rows.items()}

    def __call__(self, liked: Tensor, others: Tensor | None = None) -> tuple[Shifted, Tensor]:
        """For M people the items that each likes, bool `[M, n_items]`: a point, and M users who stand for them there.

        others: what each of them does not like (None: all the rest).
        """
        count = len(liked)
        users = torch.arange(count, device=liked.device) if self.tables else torch.full((count,), self.first)
        users = users.to(liked.device)
        others = (~liked if others is None else others).float()
        others = others / others.sum(1, keepdim=True).clamp_min(1)
        row, column = liked.nonzero().unbind(1)
        steps = {name: each.new_zeros(count, *each.shape).requires_grad_() for name, each in self.mean.items()}
        batch = Batch.unlabelled(users)
        optimiser = torch.optim.LBFGS(list(steps.values()), max_iter=ROUNDS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            scores = self._at(steps)(batch).scores
            margins = scores[row, column][:, None] - scores[row]  # [liked, n_items]
            value = VOTES * (torch.nn.functional.softplus(-margins) * others[row]).sum()
            for each in steps.values():
                value = value + 0.5 * each.square().sum()
            if not value.isfinite():
                raise RrecError(
                    "a score is NaN or infinite: such a model cannot recommend; train it again with a lower lr or eps"
                )
            value.backward()
            return value.detach()

        with torch.enable_grad():
            optimiser.step(loss)
        return self._at({name: each.detach() for name, each in steps.items()}), users

    def _at(self, steps: dict[str, Tensor]) -> Shifted:
        """The point with rows so many standard deviations from the mean for those who stand in."""
        delta = {}
        for name, step in steps.items():
            each = self.mean[name] + step * self.spread[name]
            if name in self.tables:
                table = self.tables[name]
                delta[name] = torch.zeros_like(table).index_copy(
                    0, torch.arange(len(each), device=table.device), each - table[: len(each)]
                )
            else:
                delta[name] = each - self.base[name]
        point = self.at.shift(delta)
        return point if self.tables else point.holding(self.at.encoded)
