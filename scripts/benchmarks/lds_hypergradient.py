"""One hypergradient round of LDS: ours against a plain autograd unroll of the same maths over a dense matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from framework.bilevel.hypergradient import Unroll
from framework.bilevel.optimizers import Adam
from modules.lds.edges import DenseEdges
from modules.lds.engine import LDSProblem
from modules.lds.gcn import GCN, Features

# Nodes, features and edges as in Cora; and a size of digits, where the neighbour graph is denser.
CORA = {"nodes": 2708, "inputs": 1433, "classes": 7, "edges": 5278, "density": 0.013}
DIGITS = {"nodes": 1797, "inputs": 64, "classes": 10, "edges": 12_500, "density": 0.5}
CASES = [{**CORA, "tau": 5}, {**CORA, "tau": 20}, {**DIGITS, "tau": 5}]


def setup(nodes: int, inputs: int, classes: int, edges: int, density: float, tau: int, variant: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(nodes, inputs, generator=generator)
    x[torch.rand(nodes, inputs, generator=generator) >= density] = 0
    # As after some outer steps: the edges of the graph likely, half of all pairs barely possible.
    theta = (torch.rand(nodes, nodes, generator=generator) < 0.5).float().mul_(2e-4).triu_(1)
    pairs = torch.randint(nodes, (2, edges), generator=generator).sort(0).values
    theta[pairs[0], pairs[1]] = 0.9
    theta.triu_(1)
    network = GCN(inputs, classes)
    y = torch.randint(classes, (nodes,), generator=generator)
    train, val = torch.arange(20 * classes), torch.arange(20 * classes, 20 * classes + 250)
    w = network.init(generator)
    lr = torch.tensor(0.02)
    if variant == "plain":
        return {
            "theta": theta,
            "x": x,
            "y": y,
            "train": train,
            "val": val,
            "w": network.weights(w),
            "lr": lr,
            "network": network,
            "generator": generator,
            "tau": tau,
        }
    features = Features(x.to_sparse_csr() if density < 0.1 else x)
    problem = LDSProblem(network, DenseEdges(theta), features, y, train, val)
    return {"problem": problem, "w": w, "lr": lr, "tau": tau, "generator": generator}


def lean(given: dict[str, Any]) -> None:
    """Ours: sampled edge lists, low-rank derivatives, one step recomputed at a time."""
    optimizer, problem = Adam(), given["problem"]
    unroll = Unroll(optimizer, problem.inner, optimizer.init(given["w"]))
    problem.round(unroll, given["lr"], given["tau"], given["generator"])


def plain(given: dict[str, Any]) -> None:
    """The peer: a dense matrix per step and autograd through all of them."""
    theta, generator, nodes = given["theta"], given["generator"], len(given["x"])
    adjacencies, masks = [], []
    for _ in range(given["tau"] + 1):
        upper = (torch.rand(theta.shape, generator=generator) < theta).float()
        adjacencies.append(upper + upper.T)
        masks.append(given["network"].dropout_mask(nodes, generator))
    plain_hypergradient(
        theta, given["x"], given["y"], given["train"], given["val"], *given["w"], given["lr"], adjacencies, masks[:-1]
    )


def plain_hypergradient(
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    train: Tensor,
    val: Tensor,
    w0: Tensor,
    w1: Tensor,
    lr: Tensor,
    adjacencies: list[Tensor],
    masks: list[Tensor | None],
    weight_decay: float = 5e-4,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """What one would write first: unroll Adam with ``create_graph`` and let autograd do the rest.

    Args:
        theta: Edge probabilities, strictly upper triangular, shape ``(nodes, nodes)``.
        x: Dense features, shape ``(nodes, inputs)``.
        y: Classes, shape ``(nodes,)``.
        train: Indices of the training nodes.
        val: Indices of the validation nodes.
        w0: First weight matrix.
        w1: Second weight matrix.
        lr: Learning rate, a scalar.
        adjacencies: Sampled symmetric matrices, one for each inner step and a last one for the outer loss.
        masks: Scaled dropout mask of each inner step, or None.
        weight_decay: Factor of half the squared norm of ``w0``.
        eps: Adam's epsilon, squared inside the root.

    Returns:
        The outer loss, its derivative with respect to the strict upper triangle of theta (both directions of an edge
        counted), and that with respect to the learning rate.
    """
    theta, lr = theta.clone().requires_grad_(), lr.clone().requires_grad_()
    symmetric = theta + theta.T

    def logits(weights: list[Tensor], sampled: Tensor, mask: Tensor | None) -> Tensor:
        adjacency = sampled + symmetric - symmetric.detach() + torch.eye(len(x), dtype=x.dtype, device=x.device)
        r = adjacency.sum(1).rsqrt()
        propagation = r[:, None] * adjacency * r
        hidden = (propagation @ (x @ weights[0])).relu()  # the official code's order, (P X) W0, costs far more
        if mask is not None:
            hidden = hidden * mask
        return propagation @ (hidden @ weights[1])

    weights = [w0.clone().requires_grad_(), w1.clone().requires_grad_()]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    for step, (sampled, mask) in enumerate(zip(adjacencies, masks), start=1):
        output = logits(weights, sampled, mask)
        loss = cross_entropy(output[train], y[train]) + weight_decay / 2 * weights[0].square().sum()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        rate = lr * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g) for (m, v), g in zip(moments, grads)]
        weights = [w - rate * m / (v + eps**2).sqrt() for w, (m, v) in zip(weights, moments)]
    outer = cross_entropy(logits(weights, adjacencies[-1], None)[val], y[val])
    d_theta, d_lr = torch.autograd.grad(outer, (theta, lr))
    return outer.detach(), d_theta.triu(1), d_lr


VARIANTS = {"ours": lean, "plain": plain}
