"""A synthetic set whose truth is known: blocks of nodes, denser inside than between."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.nodes.base import NodeData, NodeSet, nested_split
from framework.graphs.sources import GraphOptions


class SBM(NodeData):
    """Stochastic block model with Gaussian features: does a learned graph find the blocks?

    Node classes are the blocks. The given graph joins two nodes with probability ``p_in`` inside a block and ``p_out``
    across; features are drawn around one centre per block. A learned edge distribution can be scored against
    ``truth``, which says more than accuracy does.

    In YAML::

        data:
          class_path: SBM
          init_args: {blocks: 4, p_in: 0.05, p_out: 0.01, graph: {source: given}}

    Args:
        size: Number of nodes.
        blocks: Number of blocks, of sizes equal to within one node; at least 2.
        features: Number of features.
        separation: Standard deviation of the block centres; each node strays from its centre by a standard normal.
        p_in: Probability of an edge inside a block.
        p_out: Probability of an edge between blocks.
        graph: The initial graph; by default the one drawn from the model.
        split: Total numbers of train, val and stop nodes, stratified; the rest is test.
        steps_per_epoch: How often an epoch of training serves the graph.
        seed: Seed of nodes, edges and split.

    Raises:
        ValueError: If a size is too small, a probability outside [0, 1], or ``separation`` negative.
    """

    def __init__(
        self,
        size: int = 500,
        blocks: int = 4,
        features: int = 16,
        separation: float = 0.5,
        p_in: float = 0.05,
        p_out: float = 0.01,
        graph: GraphOptions = GraphOptions(),  # noqa: B008 (frozen)
        split: tuple[int, int, int] = (40, 40, 40),
        steps_per_epoch: int = 1,
        seed: int = 1,
    ) -> None:
        if blocks < 2:
            raise ValueError(f"blocks must be at least 2, got {blocks}")
        if size < 4 * blocks:
            raise ValueError(f"size must be at least 4 nodes per block, {4 * blocks}, got {size}")
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        if not 0 <= separation < float("inf"):
            raise ValueError(f"separation must be a number from 0, got {separation}")
        for name, value in {"p_in": p_in, "p_out": p_out}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        super().__init__(graph, steps_per_epoch, seed)
        self.size, self.blocks, self.features, self.separation = size, blocks, features, separation
        self.p_in, self.p_out, self.split = p_in, p_out, split

    @property
    def truth(self) -> Tensor:
        """Whether two nodes are of the same block, shape ``(nodes, nodes)``, bool."""
        return self.data.y[:, None] == self.data.y

    def read(self) -> NodeSet:
        random = torch.Generator().manual_seed(self.seed)
        y = (torch.arange(self.size) % self.blocks)[torch.randperm(self.size, generator=random)]
        centres = self.separation * torch.randn(self.blocks, self.features, generator=random)
        x = centres[y] + torch.randn(self.size, self.features, generator=random)
        edges = []
        for node in range(self.size - 1):  # row by row: memory stays in proportion to nodes and edges
            chance = torch.where(y[node + 1 :] == y[node], self.p_in, self.p_out)
            hits = (torch.rand(chance.shape, generator=random) < chance).nonzero().flatten() + node + 1
            edges.append(torch.stack([torch.full_like(hits, node), hits]))
        index = torch.cat(edges, dim=1)
        return NodeSet(
            x=x,
            y=y,
            class_names=[f"block {block}" for block in range(self.blocks)],
            masks=nested_split(y, self.split, self.seed),
            given=(index, torch.ones(index.shape[1])),
        )
