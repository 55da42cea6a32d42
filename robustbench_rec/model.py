"""The base class of every recommender."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from robustbench_rec.batch import Batch, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.graph import Csr, Relational
from robustbench_rec.reader import Reader

Encoded = Any  # what a model computes once, whatever the batch: a tensor, a tuple of tensors, or None


class RecModel(nn.Module):
    """A recommender: a function of a batch, constructed as `cls(config, data)`.

    Laws, each a contract test over the registry: a forward keeps no state; dropout is the only randomness; frozen side
    information is a buffer named `feature_*`; graph tensors are non-persistent buffers; parameters are read through
    `self`; the score of an item does not depend on which other candidates stand beside it; padding never counts.
    """

    Config: type
    needs: ClassVar[frozenset[str]] = frozenset()
    """What the dataset must have, of `Data.has`."""
    loss: ClassVar[str] = "bpr"
    """The loss of the paper, a name of `robustbench_rec.losses`."""
    negatives: ClassVar[int] = 1
    """Sampled items beside each positive in training; 0 is the whole catalogue, or an event's own label."""
    causal: ClassVar[bool] = False
    """Whether the state at a step of a history knows nothing of later steps, so that all steps are learnt at once."""
    inner_product: ClassVar[bool] = False
    """Whether the scores are the dot products of `user_states` with `item_states`."""
    reads_events: ClassVar[bool] = False
    """Whether scores depend on the training events of users beside what is learnt from them, as through their graph."""
    row_alone: ClassVar[bool] = False
    """Whether what `of_rows` is given is all that the training events of a user have to do with the scores."""
    personal: ClassVar[bool] = True
    """Whether it ranks otherwise for one user than for another."""
    reads_graph: ClassVar[bool] = False
    """Whether it reads the graph of clicks of `graph.edges_of`, which a cleaning can change."""
    counts_events: ClassVar[bool] = False
    """Whether the loss of an event depends on which items have training events, as where the others are no candidates
    in training."""
    piecewise: ClassVar[bool] = False
    """Whether `forward`, given None for `encoded` and a batch with items, computes what these need and no more."""
    newcomers: ClassVar[tuple[str, ...]] = ()
    """What makes a user in this model and matters to nobody else: parameters with a row for each user, or sites with a
    row for each user of a batch. A new user is found by learning a row of these, everything else held fixed."""
    given: ClassVar[tuple[str, ...]] = ()
    """Buffers `feature_*` whose rows are embeddings that a frozen encoder gave: noise on embeddings is on them too."""
    body: ClassVar[tuple[str, ...]] = ()
    """Modules and parameters that an adaptation leaves frozen: what reads events, texts, items or a graph; the head is
    everything else."""
    projections: Sequence[str] = ()
    """Names of the linear maps in its body that LoRA is for, where it is not for all of them."""
    widths: Mapping[str, int] = MappingProxyType({})
    """Names of the layers in its body, or of sites behind them, and the sizes of their states: where bottlenecks go."""
    ends: Mapping[str, int] = MappingProxyType({})
    """The same of its last states, where a model without a head beside its body gets one."""
    asked_once: int = 0
    """Numbers of a frozen part that has said all that it is asked and is not kept; they count in the model's size."""
    window: int = 0
    """How many of a user's latest events the model reads; batches have a history where it is not 0."""

    def encode(self) -> Encoded:
        """What does not depend on the batch (graph propagation, item tower); differentiable, never cached on `self`."""
        return None

    def forward(self, batch: Batch, encoded: Encoded) -> Output:
        """Score `batch`, given `encode()`."""
        raise NotImplementedError

    def user_states(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Vectors of the users of a batch `[N, D]`, given `encode()`: what the model knows of each before any item."""
        raise self._stateless()

    def item_states(self, items: Tensor, encoded: Encoded) -> Tensor:
        """Vectors of items `[n]`: `[n, D]`, what the model knows of each before any user."""
        raise self._stateless()

    @property
    def training_rows(self) -> Csr | None:
        """The 0/1 training rows of all users, for a model that maps such to scores; a new user is one more."""
        return None

    def of_rows(self, owned: Csr, encoded: Encoded) -> Tensor:
        """Scores of the whole catalogue for users with such rows `[U, n_items]`, given `encode()`."""
        raise NotImplementedError

    def embody(self, data: Data) -> None:
        """Have the whole body in the graph, also what was asked once, so that adapters can stand in it.

        data: those that it was built of.
        """

    def deviation(self, batch: Batch, encoded: Encoded) -> Tensor | None:
        """How far each score is in doubt, in units of the score, `[B, C]`; None for a model that does not say."""
        return None

    def text_reader(self, data: Data) -> Reader:
        """How texts of items reach the model, for one that reads them.

        Such a model is `piecewise`.
        """
        raise NotImplementedError

    def read_lengths(self, batch: Batch, encoded: Encoded) -> Tensor:
        """Tokens or events in each row of what an `Embedded` site sees for a batch `[n]`, given `encode()`.

        The others are padding, on the right. A model whose rows are not the histories of the batch has its own.
        """
        if batch.history is None:
            name = type(self).__module__.rpartition(".")[2]
            raise RrecError(f"model '{name}' embeds tokens and does not say how many a text has: see read_lengths")
        return batch.history.lengths

    def penalty(self, batch: Batch, said: Callable[[], Output]) -> Tensor | float:
        """Regularisation of what a training batch touches; added once a step at θ, never climbed by an adversary.

        said: what the model says of the batch at θ, which a loss at θ has asked for already.
        """
        return 0.0

    @property
    def edges(self) -> Tensor:
        """The edges of its graph that can have other weights than 1, each in both directions `[3, n_edges]`.

        Head, relation and tail, sorted by head, tail and relation; none where it has no such graph. Nodes are the
        users, then the items, then other entities. Relation 0 is a click of a user on an item, so that clicks come
        first; the others are those of the knowledge graph, counted from 1.
        """
        return torch.empty(3, 0, dtype=torch.long)

    @property
    def n_edges(self) -> int:
        """How many there are."""
        return self.edges.shape[1]

    def weighed(self, weights: Tensor) -> dict[str, Tensor]:
        """The buffers that hold the graph, by name, when its edges have weights `[n_edges]`; differentiable.

        A weight of 0 gives what the graph without the edge has.
        """
        raise NotImplementedError

    def extended(self, edges: Tensor) -> Self:
        """The model with more edges in its graph `[3, n]`, none of which it has; its parameters are shared.

        RrecError where it cannot have more of them.
        """
        name = type(self).__module__.rpartition(".")[2]
        raise RrecError(f"model '{name}' has no graph to which edges can be added")

    def twin(self) -> Self:
        """A copy that may get other buffers; tensors are shared until then."""
        return deepcopy(self, {id(each): each for each in (*self.parameters(), *self.buffers())})

    def relational(self, user: int) -> Relational:
        """The knowledge graph as the model reads it for a user, in evaluation mode and without gradient."""
        raise NotImplementedError

    def without(self, gone: Tensor) -> dict[str, Tensor]:
        """The buffers of the model, by name, without some of the triples of `relational`, bool `[E]`.

        What is left counts as if there had never been more: weights are normalised again.
        """
        raise NotImplementedError

    def fit(self, data: Data) -> None:
        """Closed-form part of the training, run once before the first epoch."""

    def refresh(self) -> None:
        """Recompute what is derived from the parameters only now and then; a pure function of them.

        Called after construction, after every epoch and after parameters are loaded.
        """

    def auxiliary(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Losses of a second training phase, one step each, run after the batches of every epoch."""
        return iter(())

    def _stateless(self) -> RrecError:
        name = type(self).__module__.rpartition(".")[2]
        return RrecError(f"model '{name}' has no vectors of users and items; distil its scores")

    @property
    def penalised(self) -> bool:
        """Whether it has a penalty, whatever that counts."""
        return type(self).penalty is not RecModel.penalty

    @property
    def trainable(self) -> bool:
        """Whether gradient descent has anything to do."""
        return any(each.requires_grad for each in self.parameters())


def check_penalties(config: Any, *names: str) -> None:
    """RrecError where a weight of a penalty, a key of a model's config, is negative: what it keeps small would grow."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise RrecError(f"model.{name}={getattr(config, name)}: the weight of a penalty is not negative")
