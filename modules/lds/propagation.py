"""One graph as the linear operator of a graph convolution, and derivatives with respect to its edges.

A graph convolution multiplies by ``P = r (A + I) r`` with ``r = d^{-1/2}``, ``d`` the row sums of ``A + I``. The
derivative of a scalar S with respect to the dense matrix A would need an N x N buffer. It has low rank, though: if
``dS/dP = G Z^T`` then

    dS/dA_ij = r_i r_j (G Z^T)_ij + q_i,      q_i = -1/2 r_i^2 ( <G_i, (P Z)_i> + <Z_i, (P^T G)_i> ).
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

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
        dense: Whether to hold P as a dense N x N matrix. Default: for a few hundred nodes, where that is quicker.

    Attributes:
        operator: P, dense or sparse CSR, shape ``(nodes, nodes)``.
        r: ``d^{-1/2}``, shape ``(nodes,)``.
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
        value = torch.ones(edges.shape[1], dtype=dtype, device=edges.device) if weight is None else weight.to(dtype)
        if nodes < self.DENSE_BELOW if dense is None else dense:
            upper = torch.zeros(nodes, nodes, dtype=dtype, device=edges.device)
            upper[edges[0], edges[1]] = value
            self.operator, self.r = _dense(upper)
        else:
            self.operator, self.r = _sparse(nodes, edges, value)

    @classmethod
    def from_upper(cls, upper: Tensor) -> Graph:
        """Graph of a dense strictly upper triangular matrix of weights, shape ``(nodes, nodes)``."""
        graph = cls.__new__(cls)
        graph.operator, graph.r = _dense(upper)
        return graph

    def edge_factors(self, g: Tensor, z: Tensor, pz: Tensor, ptg: Tensor) -> EdgeFactors:
        """The derivative with respect to A of a scalar with ``dS/dP = g z^T``.

        Args:
            g: Shape ``(nodes, rank)``.
            z: Shape ``(nodes, rank)``.
            pz: ``P z``, which whoever knows ``z`` has computed already.
            ptg: ``P^T g``, likewise.
        """
        r = self.r[:, None]
        q = -0.5 * r * r * torch.addcmul(g * pz, z, ptg).sum(1, keepdim=True)
        return EdgeFactors(torch.cat([r * g, q], dim=1), torch.cat([r * z, torch.ones_like(q)], dim=1))


def _dense(upper: Tensor) -> tuple[Tensor, Tensor]:
    adjacency = upper + upper.T
    adjacency.diagonal().fill_(1)
    r = adjacency.sum(1).rsqrt()
    return adjacency.mul_(r[:, None]).mul_(r), r


def _sparse(nodes: int, edges: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    i, j = edges
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
