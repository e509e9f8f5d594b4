"""What a node classifier is fed: one whole graph with its masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NodeBatch(NamedTuple):
    """A whole graph for transductive node classification; moves between devices as any NamedTuple does.

    Attributes:
        x: Node features, shape ``(nodes, inputs)``, float32; dense, or sparse COO/CSR.
        y: Classes, shape ``(nodes,)``, int64; -1 where the class is unknown.
        edge_index: Initial edges, shape ``(2, edges)``, int64, ``i < j`` only: the strict upper triangle of the
            symmetric initial graph.
        edge_weight: Initial probability of each edge, shape ``(edges,)``, float32 in [0, 1]; 1 for a plain graph.
        candidates: The only pairs whose probability may be learned, shape ``(2, pairs)``, int64, ``i < j``;
            None means every pair.
        train: Nodes of the inner (training) loss, shape ``(nodes,)``, bool.
        val: Nodes of the outer (validation) loss, shape ``(nodes,)``, bool.
        stop: Nodes for early stopping and model selection, shape ``(nodes,)``, bool; the "ES" half of the paper.
        test: Nodes to report on, shape ``(nodes,)``, bool. The four masks are disjoint.
    """

    x: Tensor
    y: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    candidates: Tensor | None
    train: Tensor
    val: Tensor
    stop: Tensor
    test: Tensor

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.y.shape[0]

    @property
    def classes(self) -> int:
        """Number of classes, by the largest label."""
        return int(self.y.max()) + 1

    def check(self) -> NodeBatch:
        """Return the batch itself, or raise a one-line error that names the field at fault.

        Raises:
            ValueError: For NaN or infinite features, empty or overlapping masks, masked nodes without a label, edges or
                candidates out of range, not ``i < j`` or repeated, weights that are not in [0, 1], wrong shapes.
        """
        nodes = self.nodes
        _check_features(self.x, nodes)
        if self.y.dtype != torch.int64 or self.y.dim() != 1:
            raise ValueError(f"y must be int64 of shape (nodes,), got {self.y.dtype} of shape {tuple(self.y.shape)}")
        if nodes and int(self.y.min()) < -1:
            raise ValueError(f"y must be a class from 0 or -1 for unlabelled, got {int(self.y.min())}")
        _check_masks(self)
        _check_pairs("edge_index", self.edge_index, nodes)
        if self.edge_weight.shape != self.edge_index.shape[1:]:
            raise ValueError(
                f"edge_weight must hold one value per edge, got shape {tuple(self.edge_weight.shape)} "
                f"for {self.edge_index.shape[1]} edges"
            )
        check_probability("edge_weight", self.edge_weight)
        if self.candidates is not None:
            _check_pairs("candidates", self.candidates, nodes)
        return self


def check_probability(field: str, values: Tensor) -> None:
    """Raise unless every value is a finite number in [0, 1].

    Args:
        field: Name for the message.
        values: Any shape.

    Raises:
        ValueError: Naming the field, the first value at fault and its position.
    """
    bad = ~((values >= 0) & (values <= 1))  # NaN fails both comparisons
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{field} must lie in [0, 1], got {values[where].item():g} at position {list(where)}")


def _check_features(x: Tensor, nodes: int) -> None:
    if x.dim() != 2 or x.shape[0] != nodes:
        raise ValueError(f"x must have shape (nodes, inputs) with {nodes} nodes, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if x.layout == torch.strided:
        bad = ~torch.isfinite(x)
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise ValueError(f"x must be finite, got {x[row, column].item()} at node {row}, feature {column}")
        return
    if x.layout == torch.sparse_coo:
        x = x.coalesce()
    bad = ~torch.isfinite(x.values())
    if bool(bad.any()):
        entry = int(bad.nonzero()[0])
        raise ValueError(
            f"x must be finite, got {x.values()[entry].item()} in non-zero entry {entry} of the sparse features"
        )


def _check_masks(batch: NodeBatch) -> None:
    masks = {name: getattr(batch, name) for name in ("train", "val", "stop", "test")}
    taken = torch.zeros(batch.nodes, dtype=torch.long, device=batch.y.device)  # 0 = free, else 1 + index of the mask
    for index, (name, mask) in enumerate(masks.items()):
        if mask.dtype != torch.bool or mask.shape != batch.y.shape:
            raise ValueError(
                f"{name} must be a bool mask of shape ({batch.nodes},), got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        if not bool(mask.any()):
            raise ValueError(f"{name} is an empty mask; it must select at least one labelled node")
        clash = mask & (taken > 0)
        if bool(clash.any()):
            node = int(clash.nonzero()[0])
            other = list(masks)[int(taken[node]) - 1]
            raise ValueError(f"masks must be disjoint, got node {node} in both {other} and {name}")
        taken[mask] = index + 1
        unknown = mask & (batch.y < 0)
        if bool(unknown.any()):
            raise ValueError(
                f"{name} must select labelled nodes only, got node {int(unknown.nonzero()[0])} without a label"
            )


def _check_pairs(field: str, pairs: Tensor, nodes: int) -> None:
    if pairs.dim() != 2 or pairs.shape[0] != 2 or pairs.dtype != torch.int64:
        raise ValueError(f"{field} must be int64 of shape (2, pairs), got {pairs.dtype} of shape {tuple(pairs.shape)}")
    if pairs.shape[1] == 0:
        return
    low, high = int(pairs.min()), int(pairs.max())
    if low < 0 or high >= nodes:
        raise ValueError(f"{field} must hold nodes 0 to {nodes - 1}, got {low if low < 0 else high}")
    i, j = pairs
    wrong = i >= j
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(f"{field} must hold each pair once with i < j, got ({int(i[k])}, {int(j[k])})")
    keys = (i * nodes + j).sort().values
    repeat = keys[1:] == keys[:-1]
    if bool(repeat.any()):
        key = int(keys[1:][repeat][0])
        raise ValueError(f"{field} must hold each pair once, got ({key // nodes}, {key % nodes}) twice")
