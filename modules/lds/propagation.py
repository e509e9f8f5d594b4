"""One sampled graph as a linear operator that can be differentiated with respect to its edges at low cost.

A graph convolution multiplies by ``P = r (A + I) r`` with ``r = d^{-1/2}``, ``d`` the row sums of ``A + I``. The
derivative of a scalar with respect to the dense matrix A would need an N x N buffer for each product. It has low
rank, though: if the scalar's derivative with respect to the k-th product ``Y_k = P Z_k`` is ``G_k``, then

    dS/dA_ij = r_i r_j M_ij + q_i,      M = sum_k G_k Z_k^T,
    q_i = -1/2 r_i^2 sum_k ( <G_k,i , (P Z_k)_i> + <Z_k,i , (P^T G_k)_i> ).

So every product notes its pair (Z, G) while a backward pass runs, second-order passes included, and the pairs are
combined into one matrix product at the end (``EdgeFactors``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Once per process torch says that its CSR layout is young; the products used here are tested against dense ones.
# https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/SparseCsrTensorImpl.cpp
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class EdgeFactors(NamedTuple):
    """A derivative with respect to A in factored form: ``dS/dA = left right^T``, both of shape ``(nodes, rank)``."""

    left: Tensor
    right: Tensor


class Graph:
    """A symmetric graph with self loops added, normalised by degree (Kipf and Welling, 2017).

    Args:
        nodes: Number of nodes N.
        edges: Pairs ``i < j``, shape ``(2, edges)``, int64.
        weight: Weight of each edge, shape ``(edges,)``; None means 1.
        dtype: Type of the operator.
        dense: Whether to hold P as a dense N x N matrix, quicker for a few hundred nodes and on GPUs. Default: by size.
    """

    DENSE_BELOW = 300

    def __init__(
        self,
        nodes: int,
        edges: Tensor,
        weight: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        dense: bool | None = None,
    ) -> None:
        self.nodes = nodes
        if dense is None:
            dense = nodes < self.DENSE_BELOW
        i, j = edges
        value = torch.ones(edges.shape[1], dtype=dtype, device=edges.device) if weight is None else weight.to(dtype)
        self.operator, self.r = _dense(nodes, i, j, value) if dense else _sparse(nodes, i, j, value)
        self._noted: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @classmethod
    def from_adjacency(cls, adjacency: Tensor) -> Graph:
        """Graph of a dense symmetric matrix with zero diagonal, shape ``(nodes, nodes)``."""
        graph = cls.__new__(cls)
        graph.nodes = adjacency.shape[0]
        graph.operator, graph.r = _normalise(adjacency.clone())
        graph._noted = None
        return graph

    def propagate(self, z: Tensor) -> Tensor:
        """The product ``P z``, shape ``(nodes, width)``; differentiable twice."""
        return _Propagate.apply(z, self, False)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Within this context every backward pass through ``propagate`` notes its factors."""
        self._noted = []
        try:
            yield
        finally:
            self._noted = None

    def factors(self) -> EdgeFactors:
        """The derivative noted so far, to be read inside ``noting``.

        Raises:
            RuntimeError: Outside ``noting``, or if no backward pass went through ``propagate``.
        """
        if not self._noted:
            raise RuntimeError("no backward pass through propagate was noted: call factors() inside noting()")
        z, g, pz, pg = (torch.cat(parts, dim=1) for parts in zip(*self._noted))
        r = self.r[:, None]
        q = -0.5 * r * r * ((g * pz).sum(1, keepdim=True) + (z * pg).sum(1, keepdim=True))
        one = torch.ones_like(q)
        return EdgeFactors(torch.cat([r * g, q], dim=1), torch.cat([r * z, one], dim=1))

    def _note(self, z: Tensor, g: Tensor, pz: Tensor, pg: Tensor) -> None:
        if self._noted is not None:
            self._noted.append((z.detach(), g.detach(), pz.detach(), pg.detach()))


class _Propagate(torch.autograd.Function):
    """Y = P Z, or P^T Z: the same product for a symmetric P, but not the same function of each single entry of P.

    The backward pass is the product with the transpose, by this same function, so that it nests to any order.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, graph: Graph, transposed: bool) -> Tensor:
        y = graph.operator @ z
        ctx.graph, ctx.transposed = graph, transposed
        ctx.save_for_backward(z, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        z, y = ctx.saved_tensors
        back = _Propagate.apply(g, ctx.graph, not ctx.transposed)
        if ctx.transposed:
            ctx.graph._note(g, z, back, y)
        else:
            ctx.graph._note(z, g, y, back)
        return back, None, None


def _normalise(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    adjacency.diagonal().add_(1)
    r = adjacency.sum(1).rsqrt()
    return adjacency.mul_(r[:, None]).mul_(r), r


def _dense(nodes: int, i: Tensor, j: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    adjacency = torch.zeros(nodes, nodes, dtype=value.dtype, device=value.device)
    adjacency[i, j] = value
    adjacency[j, i] = value
    return _normalise(adjacency)


def _sparse(nodes: int, i: Tensor, j: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    loop = torch.arange(nodes, device=i.device)
    rows, order = torch.cat([i, j, loop]).sort(stable=True)
    columns = torch.cat([j, i, loop])[order]
    values = torch.cat([value, value, value.new_ones(nodes)])[order]
    degree = torch.zeros(nodes, dtype=value.dtype, device=value.device).index_add_(0, rows, values)
    r = degree.rsqrt()
    starts = torch.zeros(nodes + 1, dtype=torch.int64, device=i.device)
    torch.cumsum(torch.bincount(rows, minlength=nodes), 0, out=starts[1:])
    operator = torch.sparse_csr_tensor(
        starts, columns, values * r[rows] * r[columns], (nodes, nodes), check_invariants=False
    )
    return operator, r
