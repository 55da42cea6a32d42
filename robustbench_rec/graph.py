"""Sparse matrices times dense ones: sums over neighbours in a graph, or over what a user has."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustbench_rec.data import Data


class Csr(NamedTuple):
    """A matrix by rows. starts: `[n + 1]`, where each row begins. columns: `[nnz]`. values: `[nnz]`, None for ones."""

    starts: Tensor
    columns: Tensor
    values: Tensor | None = None

    def rows(self, index: Tensor) -> "Csr":
        """The matrix of the given rows `[B]`."""
        sizes = self.starts[index + 1] - self.starts[index]
        starts = F.pad(sizes.cumsum(0), (1, 0))
        row = torch.repeat_interleave(sizes)
        places = self.starts[index][row] + torch.arange(len(row), device=row.device) - starts[row]
        return Csr(starts, self.columns[places], None if self.values is None else self.values[places])

    def transposed(self, width: int) -> "Csr":
        """The transpose, of a matrix that is `width` wide."""
        order = self.columns.argsort(stable=True)
        values = None if self.values is None else self.values[order]
        return Csr(pointers(self.columns, width), torch.repeat_interleave(self.starts.diff())[order], values)

    def dense(self, width: int) -> Tensor:
        """All of it, `[n, width]`, a pair that stands twice summed."""
        sizes = self.starts.diff()
        values = torch.ones(len(self.columns), device=sizes.device) if self.values is None else self.values
        empty = torch.zeros(len(sizes), width, dtype=values.dtype, device=sizes.device)
        return empty.index_put_((torch.repeat_interleave(sizes), self.columns), values, accumulate=True)


class Relational(NamedTuple):
    """The triples that a model reads, both ways, sorted by head, and what they count for a user.

    heads, relations, tails: `[E]`; entities, items first. inverse: `[E]`, whether the triple is (tail, relation,
    head). layers: what each counts in a layer, the first first, each `[E]`. owned: what an item counts for the user,
    `[n_items]`, None where a user is no part of the graph. names: of all entities.
    """

    heads: Tensor
    relations: Tensor
    tails: Tensor
    inverse: Tensor
    layers: list[Tensor]
    owned: Tensor | None
    names: list[str]


class Sparse(nn.Module):
    """Keeps a matrix beside the parameters of a model, as buffers that no checkpoint stores.

    rows, columns: `[nnz]` in any order; n: number of rows; values: `[nnz]`, None for ones.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor | None

    def __init__(self, rows: Tensor, columns: Tensor, n: int, values: Tensor | None = None) -> None:
        super().__init__()
        order = columns.argsort(stable=True)
        order = order[rows[order].argsort(stable=True)]
        self.register_buffer("starts", pointers(rows, n), persistent=False)
        self.register_buffer("columns", columns[order], persistent=False)
        self.register_buffer("values", None if values is None else values[order], persistent=False)

    @property
    def csr(self) -> Csr:
        return Csr(self.starts, self.columns, self.values)


def product(x: Tensor, matrix: Csr, transposed: Csr) -> Tensor:
    """`matrix` `[n, m]` times `x` `[m, D]`, in single precision at least; differentiable in `x` and in its values.

    transposed: what the backward multiplies with; a symmetric matrix is its own.
    """
    found: Tensor = _Product.apply(x, matrix.values, matrix, transposed)  # type: ignore[no-untyped-call]
    return found


def sums(x: Tensor, matrix: Csr) -> Tensor:
    """The same without a gradient."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    values = None if matrix.values is None else matrix.values.to(x.dtype)
    # on a CPU nearly twice as fast as a product of torch's sparse tensors
    return F.embedding_bag(
        matrix.columns, x.contiguous(), matrix.starts, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def pointers(rows: Tensor, n: int) -> Tensor:
    """Where each of n rows begins once they are sorted, and the end of the last `[n + 1]`."""
    return F.pad(torch.bincount(rows, minlength=n).cumsum(0), (1, 0))


def clicked(data: Data) -> tuple[Tensor, Tensor]:
    """Users and items of the training events, each pair once, sorted."""
    liked = data.train.liked()
    keys = torch.unique(liked.users * data.n_items + liked.items)
    return keys // data.n_items, keys % data.n_items


def edges_of(data: Data) -> tuple[Tensor, Tensor]:
    """Users and items of the edges of the interaction graph, each once, sorted: `clicked`, or what cleaning made."""
    if data.edges is None:
        return clicked(data)
    keys = torch.unique(data.edges[0] * data.n_items + data.edges[1])
    return keys // data.n_items, keys % data.n_items


def normalised(data: Data) -> Sparse:
    """D^-½ A D^-½ of the interaction graph."""
    return bipartite(*edges_of(data), n_users=data.n_users, n_items=data.n_items)


def bipartite(users: Tensor, items: Tensor, *, n_users: int, n_items: int) -> Sparse:
    """D^-½ A D^-½ of the graph of these edges `[E]`, users before items; symmetric."""
    items = items + n_users
    rows, columns = torch.cat([users, items]), torch.cat([items, users])
    n = n_users + n_items
    share = torch.bincount(rows, minlength=n).clamp_min(1).rsqrt()
    return Sparse(rows, columns, n, share[rows] * share[columns])


def mirrored(matrix: Csr, n: int) -> Tensor:
    """Of a symmetric bipartite matrix, n rows the first side: for each entry of the others, its mirror image `[E]`."""
    half = len(matrix.columns) // 2
    rows = torch.repeat_interleave(matrix.starts.diff())[:half]
    return (matrix.columns[:half] * n + rows).argsort()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor | None, matrix: Csr, transposed: Csr) -> Tensor:
        ctx.matrix, ctx.transposed, ctx.dtype = matrix, transposed, x.dtype
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
        return sums(x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        to_x = sums(outer, ctx.transposed).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        to_values = _slopes(outer, ctx.saved_tensors[0], ctx.matrix) if ctx.needs_input_grad[1] else None
        return to_x, to_values, None, None


def _slopes(outer: Tensor, x: Tensor, matrix: Csr) -> Tensor:
    """What the product's value at each entry is worth: outer[row] · x[column], `[nnz]`."""
    nothing = outer.new_zeros(len(matrix.columns))
    places = torch.sparse_csr_tensor(
        matrix.starts, matrix.columns, nothing, (len(outer), len(x)), check_invariants=False
    )
    found: Tensor = torch.sparse.sampled_addmm(places, outer.contiguous(), x.to(outer.dtype).t(), beta=0.0).values()
    return found if matrix.values is None else found.to(matrix.values.dtype)
