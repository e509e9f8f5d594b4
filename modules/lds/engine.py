"""The bilevel problem of LDS over one graph, and one round of it: tau inner steps and a truncated hypergradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from framework.bilevel.hypergradient import Step, Unroll, hypergradient
from modules.lds.edges import CandidateEdges, DenseEdges, EdgeGradient
from modules.lds.gcn import GCN, Features, GCNSample, NodeObjective
from modules.lds.propagation import EdgeFactors, Graph


class Round(NamedTuple):
    """What one round gives.

    Attributes:
        inner_losses: Training loss before each inner step, shape ``(tau,)``.
        outer_loss: Validation loss after the last one, a scalar.
        d_theta: Hypergradient with respect to the edge probabilities, theta's shape.
        d_lr: Hypergradient with respect to the inner learning rate, a scalar.
    """

    inner_losses: Tensor
    outer_loss: Tensor
    d_theta: Tensor
    d_lr: Tensor


class LDSProblem:
    """Inner and outer objective of LDS on one graph (paper, equations 4 and 5; means over nodes as in the official
    code).

    Args:
        network: The network.
        edges: The edge probabilities.
        x: Node features.
        y: Classes, shape ``(nodes,)``.
        train: Indices of the nodes of the inner loss.
        val: Indices of the nodes of the outer loss.
        edge_gradient: Whether an edge's gradient counts both directions.
    """

    # Columns of collected factors that are turned into the gradient by one product; bounds the memory of a long unroll.
    FLUSH = 256

    def __init__(
        self,
        network: GCN,
        edges: DenseEdges | CandidateEdges,
        x: Features,
        y: Tensor,
        train: Tensor,
        val: Tensor,
        edge_gradient: EdgeGradient = "symmetric",
    ) -> None:
        self.network, self.edges, self.x = network, edges, x
        self.inner = NodeObjective(network, x, y, train, penalty=True, collect=self._collect)
        self.outer = NodeObjective(network, x, y, val, penalty=False, collect=self._collect)
        self.edge_gradient: EdgeGradient = edge_gradient
        self._factors: list[EdgeFactors] = []
        self.gradient: Tensor | None = None

    def draw(self, generator: torch.Generator, dropout: bool) -> GCNSample:
        """A fresh graph from the edge probabilities and, if asked for, a fresh dropout mask."""
        nodes, dtype, edges = self.x.nodes, self.edges.theta.dtype, self.edges
        if isinstance(edges, DenseEdges) and edges.prefers_matrix:
            graph = Graph.from_upper(edges.sample_matrix(generator))
        else:
            graph = Graph(nodes, edges.sample(generator), dtype=dtype)
        return GCNSample(graph, self.network.dropout_mask(nodes, generator, dtype) if dropout else None)

    def round(
        self,
        unroll: Unroll[GCNSample],
        lr: Tensor,
        tau: int,
        generator: torch.Generator,
        reuse_graphs: bool = True,
        skip: int = 0,
        gradient: Tensor | None = None,
    ) -> Round:
        """Take ``tau`` inner steps, each on a fresh graph, and differentiate the validation loss back through them.

        Args:
            unroll: The inner run; goes on from its state.
            lr: Inner learning rate, a scalar.
            tau: Inner steps, at least 1.
            generator: Source of graphs and dropout masks.
            reuse_graphs: Whether the reverse pass uses the graphs and masks of the forward pass (the paper) or fresh
                ones (the official code).
            skip: Oldest steps of the round that the reverse pass leaves out (1 in the official code after the first
                round of an epoch).
            gradient: Buffer of theta's shape for the result, overwritten. Default: a new one.
        """
        unroll.forget()
        self.gradient = torch.zeros_like(self.edges.theta) if gradient is None else gradient.zero_()
        losses = [unroll.step(self.draw(generator, dropout=True), lr) for _ in range(tau)]

        def resample(step: Step[GCNSample]) -> GCNSample:
            return self.draw(generator, dropout=True)

        last = self.draw(generator, dropout=False)
        outer, d_lr = hypergradient(unroll, self.outer, last, lr, None if reuse_graphs else resample, skip)
        unroll.forget()
        self._flush()
        return Round(torch.stack(losses), outer, self.gradient, d_lr)

    @torch.no_grad()
    def mean_logits(self, w: Tensor, samples: int, generator: torch.Generator) -> Tensor:
        """Mean output over sampled graphs, the estimate of E_A f_w(X, A), shape ``(nodes, classes)``."""
        total = self.network.logits(w, self.x, self.draw(generator, dropout=False))
        for _ in range(samples - 1):
            total += self.network.logits(w, self.x, self.draw(generator, dropout=False))
        return total / samples

    def _collect(self, factors: EdgeFactors) -> None:
        """Keep a derivative with respect to the graph (straight-through: with respect to theta) in factored form."""
        self._factors.append(factors)
        if sum(each.left.shape[1] for each in self._factors) >= self.FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._factors:
            return
        assert self.gradient is not None
        left, right = (torch.cat(parts, dim=1) for parts in zip(*self._factors))
        self.edges.accumulate(EdgeFactors(left, right), self.gradient, self.edge_gradient)
        self._factors.clear()
