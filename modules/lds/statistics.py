"""What learned edge probabilities say about classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from modules.lds.edges import CandidateEdges, DenseEdges


@torch.no_grad()
def edge_statistics(edges: DenseEdges | CandidateEdges, y: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    """Compare the probabilities of pairs within a class with those between classes.

    Args:
        edges: The edge probabilities.
        y: Classes, shape ``(nodes,)``.
        nodes: Mask of the nodes whose pairs count, shape ``(nodes,)``; choose nodes that no loss has seen.

    Returns:
        ``same`` and ``other``: mean probability of a pair of one class and of two classes; ``ratio``: their quotient
        (infinite if ``other`` is 0); ``auc``: area under the ROC curve of the probability as a score for "same class".
        With candidate pairs all four are over the candidates among ``nodes``.
    """
    pairs, probability = pairs_among(edges, nodes)
    same = y[pairs[0]] == y[pairs[1]]
    within, between = probability[same].mean(), probability[~same].mean()
    auc = binary_auroc(probability, same.long())
    return {"same": within, "other": between, "ratio": within / between, "auc": auc}


def pairs_among(edges: DenseEdges | CandidateEdges, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs ``i < j`` of the support that lie among ``nodes``, and their probabilities.

    Args:
        edges: The edge probabilities.
        nodes: Mask, shape ``(nodes,)``.
    """
    theta = edges.theta.detach()
    if isinstance(edges, CandidateEdges):
        chosen = nodes[edges.candidates[0]] & nodes[edges.candidates[1]]
        return edges.candidates[:, chosen], theta[chosen]
    index = nodes.nonzero().squeeze(1)
    local = torch.triu_indices(len(index), len(index), offset=1, device=theta.device)
    pairs = index[local]
    return pairs, theta[pairs[0], pairs[1]]
