"""The two-layer graph convolutional network of LDS, with its first and second derivatives written out.

Autograd would give the same. For graphs of some hundred nodes its bookkeeping costs several times the arithmetic, and
it would need a dense matrix for the derivative with respect to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from modules.lds.propagation import EdgeFactors, Graph


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
    """Node features as a matrix that weights are multiplied by; sparse ones keep their transpose beside them.

    Args:
        x: Shape ``(nodes, inputs)``, dense or sparse (COO or CSR).
    """

    def __init__(self, x: Tensor) -> None:
        self.nodes = x.shape[0]
        if x.layout == torch.strided:
            self.x, self.transposed = x, x.T
        else:
            coo = x.to_sparse_coo().coalesce()
            # By hand: `coo.t()` is refused for tensors made in inference mode, as those of a moved batch are.
            transposed = torch.sparse_coo_tensor(
                coo.indices().flip(0), coo.values(), coo.shape[::-1], check_invariants=False
            )
            self.x, self.transposed = coo.to_sparse_csr(), transposed.coalesce().to_sparse_csr()


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
        p = sample.graph.operator
        hidden = (p @ (x.x @ w0)).relu()
        if sample.hidden_mask is not None:
            hidden = hidden * sample.hidden_mask
        return p @ (hidden @ w1)

    def dropout_mask(self, nodes: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """A fresh scaled mask for the hidden layer, or None where dropout is 0."""
        if self.dropout == 0:
            return None
        keep = torch.rand(nodes, self.hidden, generator=generator, device=generator.device) >= self.dropout
        return keep.to(dtype).div_(1 - self.dropout)


class NodeObjective:
    """Mean cross-entropy over some nodes, optionally with the weight penalty; an ``Objective`` of framework.bilevel.

    Args:
        network: The network.
        x: Features of all nodes.
        y: Classes of all nodes, shape ``(nodes,)``.
        nodes: Indices of the nodes that count.
        penalty: Whether ``weight_decay / 2 ||W0||^2`` is added (the factor 1/2 is TensorFlow's ``l2_loss``).
        collect: Receives every derivative with respect to the adjacency matrix.
    """

    def __init__(
        self,
        network: GCN,
        x: Features,
        y: Tensor,
        nodes: Tensor,
        penalty: bool,
        collect: Callable[[EdgeFactors], None],
    ) -> None:
        self.network, self.x, self.nodes, self.collect = network, x, nodes, collect
        self.weight_decay = network.weight_decay if penalty else 0.0
        self.target = torch.nn.functional.one_hot(y[nodes], network.classes)

    def gradient(self, w: Tensor, sample: GCNSample) -> tuple[Tensor, Tensor]:
        """Loss and gradient."""
        at = LinearizedGCN(self, w, sample)
        return at.loss, at.grad

    def linearize(self, w: Tensor, sample: GCNSample) -> LinearizedGCN:
        """Loss and gradient, ready to be differentiated once more."""
        return LinearizedGCN(self, w, sample)


class LinearizedGCN:
    """The loss at one point: the forward and backward pass, kept for a second one.

    With Z0 = X W0, Y0 = P Z0, H = D Y0 (D: where the unit is active, times its dropout), Z1 = H W1, Y1 = P Z1 and g_A
    for dL/dA of any quantity A. ``pull_grad`` uses the same names for their derivatives along a direction (V0, V1) of
    the weights (Pearlmutter, 1994).

    Args:
        objective: The loss.
        w: Flat weights.
        sample: Graph and dropout mask.
    """

    @torch.no_grad()
    def __init__(self, objective: NodeObjective, w: Tensor, sample: GCNSample) -> None:
        self.objective, self.graph = objective, sample.graph
        p, x, nodes = self.graph.operator, objective.x, objective.nodes
        self.w0, self.w1 = objective.network.weights(w)
        self.z0 = x.x @ self.w0
        self.y0 = p @ self.z0
        self.d = (self.y0 > 0).to(w.dtype)
        if sample.hidden_mask is not None:
            self.d *= sample.hidden_mask
        self.h = self.d * self.y0
        self.z1 = self.h @ self.w1
        self.y1 = p @ self.z1
        log_p = self.y1[nodes].log_softmax(1)
        self.p = log_p.exp()
        self.loss = -(objective.target * log_p).sum() / len(nodes)
        self.g_y1 = torch.zeros_like(self.y1)
        self.g_y1[nodes] = (self.p - objective.target) / len(nodes)
        self.g_z1 = p @ self.g_y1  # P is symmetric
        self.g_y0 = self.d * (self.g_z1 @ self.w1.T)
        self.g_z0 = p @ self.g_y0
        g_w0 = x.transposed @ self.g_z0
        if objective.weight_decay:
            self.loss = self.loss + 0.5 * objective.weight_decay * self.w0.square().sum()
            g_w0 = torch.add(g_w0, self.w0, alpha=objective.weight_decay)
        self.grad = torch.cat([g_w0.reshape(-1), (self.h.T @ self.g_z1).reshape(-1)])

    @torch.no_grad()
    def pull(self) -> Tensor:
        """Return the gradient, and collect dL/dA, with dL/dP = g_Y0 Z0^T + g_Y1 Z1^T."""
        self._collect([self.g_y0, self.g_y1], [self.z0, self.z1], [self.y0, self.y1], [self.g_z0, self.g_z1])
        return self.grad

    @torch.no_grad()
    def pull_grad(self, direction: Tensor) -> Tensor:
        """Return the Hessian times a direction, and collect d <direction, grad> / dA.

        <direction, grad> is the derivative of the loss along the direction, so that its own derivatives are those of
        ``pull`` with a dot: d/dP = g'_Y0 Z0^T + g_Y0 Z0'^T + g'_Y1 Z1^T + g_Y1 Z1'^T.
        """
        p, x, nodes = self.graph.operator, self.objective.x, self.objective.nodes
        v0, v1 = self.objective.network.weights(direction)
        z0 = x.x @ v0
        y0 = p @ z0
        h = self.d * y0
        z1 = torch.addmm(h @ self.w1, self.h, v1)
        y1 = p @ z1
        tilted = self.p * y1[nodes]
        g_y1 = torch.zeros_like(y1)
        g_y1[nodes] = (tilted - self.p * tilted.sum(1, keepdim=True)) / len(nodes)
        g_z1 = p @ g_y1
        g_y0 = self.d * torch.addmm(g_z1 @ self.w1.T, self.g_z1, v1.T)
        g_z0 = p @ g_y0
        self._collect(
            [g_y0, self.g_y0, g_y1, self.g_y1],
            [self.z0, z0, self.z1, z1],
            [self.y0, y0, self.y1, y1],
            [g_z0, self.g_z0, g_z1, self.g_z1],
        )
        g_w0 = torch.add(x.transposed @ g_z0, v0, alpha=self.objective.weight_decay)
        g_w1 = torch.addmm(h.T @ self.g_z1, self.h.T, g_z1)
        return torch.cat([g_w0.reshape(-1), g_w1.reshape(-1)])

    def _collect(self, g: list[Tensor], z: list[Tensor], pz: list[Tensor], ptg: list[Tensor]) -> None:
        factors = self.graph.edge_factors(*(torch.cat(parts, dim=1) for parts in (g, z, pz, ptg)))
        self.objective.collect(factors)
