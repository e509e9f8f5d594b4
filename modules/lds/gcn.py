"""The two-layer graph convolutional network of LDS, as a pure function of one flat vector of weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from modules.lds.propagation import Graph


class GCNSample(NamedTuple):
    """What one evaluation of a loss is random in.

    Attributes:
        graph: The sampled graph.
        hidden_mask: Dropout mask of the hidden layer, already divided by the keep probability, shape
            ``(nodes, hidden)``; None means no dropout.
    """

    graph: Graph
    hidden_mask: Tensor | None = None


class Features:
    """Node features that multiply a weight matrix; sparse ones keep their transpose, so that both passes are sparse.

    Args:
        x: Shape ``(nodes, inputs)``, dense or sparse (COO or CSR).
    """

    def __init__(self, x: Tensor) -> None:
        self.nodes = x.shape[0]
        self.dense = x if x.layout == torch.strided else None
        if self.dense is None:
            coo = x.to_sparse_coo().coalesce()
            self.rows = coo.to_sparse_csr()
            self.columns = coo.t().coalesce().to_sparse_csr()

    def __matmul__(self, weight: Tensor) -> Tensor:
        return _SparseProduct.apply(weight, self.rows, self.columns) if self.dense is None else self.dense @ weight


class _SparseProduct(torch.autograd.Function):
    """``X W`` for a constant sparse X, differentiable in W to any order."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrices = x, transposed
        return x @ weight

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, transposed = ctx.matrices
        return _SparseProduct.apply(g, transposed, x), None, None


class GCN:
    """``P relu(P X W0) W1`` without biases, P the normalised graph (official code of LDS; Kipf and Welling, 2017).

    ``X W0`` is computed before the propagation: ``(P X) W0`` would cost N^2 times the number of features.

    Args:
        inputs: Number of features.
        classes: Number of classes.
        hidden: Width of the hidden layer.
        dropout: Probability that a hidden unit is dropped in the training loss, in [0, 1).
        weight_decay: Factor of ``1/2 ||W0||^2`` in the training loss; the first layer only, as in the official code.
    """

    def __init__(
        self, inputs: int, classes: int, hidden: int = 16, dropout: float = 0.5, weight_decay: float = 5e-4
    ) -> None:
        self.inputs, self.classes, self.hidden = inputs, classes, hidden
        self.dropout, self.weight_decay = dropout, weight_decay
        self.split = inputs * hidden
        self.parameters = self.split + hidden * classes

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Glorot-uniform weights, shape ``(parameters,)``, on the generator's device."""
        parts = []
        for fan_in, fan_out in ((self.inputs, self.hidden), (self.hidden, self.classes)):
            bound = math.sqrt(6 / (fan_in + fan_out))
            uniform = torch.rand(fan_in * fan_out, generator=generator, dtype=dtype, device=generator.device)
            parts.append((2 * uniform - 1) * bound)
        return torch.cat(parts)

    def weights(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the two matrices, ``(inputs, hidden)`` and ``(hidden, classes)``."""
        return w[: self.split].view(self.inputs, self.hidden), w[self.split :].view(self.hidden, self.classes)

    def logits(self, w: Tensor, x: Features, sample: GCNSample) -> Tensor:
        """Logits of all nodes, shape ``(nodes, classes)``.

        Args:
            w: Flat weights.
            x: Features of all nodes.
            sample: Graph and dropout mask.
        """
        w0, w1 = self.weights(w)
        hidden = sample.graph.propagate(x @ w0).relu()
        if sample.hidden_mask is not None:
            hidden = hidden * sample.hidden_mask
        return sample.graph.propagate(hidden @ w1)

    def dropout_mask(self, nodes: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """A fresh scaled mask for the hidden layer, or None where dropout is 0."""
        if self.dropout == 0:
            return None
        keep = torch.rand(nodes, self.hidden, generator=generator, device=generator.device) >= self.dropout
        return keep.to(dtype) / (1 - self.dropout)

    def penalty(self, w: Tensor) -> Tensor:
        """``weight_decay / 2 ||W0||^2`` (the factor 1/2 is TensorFlow's ``l2_loss``)."""
        return 0.5 * self.weight_decay * w[: self.split].square().sum()


def node_loss(logits: Tensor, y: Tensor, nodes: Tensor) -> Tensor:
    """Mean cross-entropy over the nodes given by index."""
    return cross_entropy(logits[nodes], y[nodes])
