"""One hypergradient round of LDS: ours against a plain autograd unroll of the same maths over a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


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
        hidden = (propagation @ x @ weights[0]).relu()  # the order of the official code
        if mask is not None:
            hidden = hidden * mask
        return propagation @ hidden @ weights[1]

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
