"""What all node data share: one whole graph, served as often as an epoch has steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from framework.graphs.batch import NodeBatch
from framework.graphs.sources import GraphOptions


class NodeSet(NamedTuple):
    """Node data as read, before the initial graph is chosen.

    Attributes:
        x: Features, shape ``(nodes, inputs)``, float32, dense or sparse.
        y: Classes, shape ``(nodes,)``, int64, -1 where unknown.
        class_names: Name of each class.
        masks: ``train``, ``val``, ``stop``, ``test`` masks, each of shape ``(nodes,)``, bool.
        given: Edges ``i < j`` and weights of the data set's own graph, or None.
        node_names: Name of each node; None means its number.
    """

    x: Tensor
    y: Tensor
    class_names: list[str]
    masks: dict[str, Tensor]
    given: tuple[Tensor, Tensor] | None = None
    node_names: list[str] | None = None


class WholeGraph(Dataset[NodeBatch]):
    """The same graph, ``times`` times.

    Attributes:
        indivisible: Why its items cannot be dealt out.
    """

    indivisible = "each of its items is the whole graph"

    def __init__(self, batch: NodeBatch, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> NodeBatch:
        if not 0 <= index < self.times:
            raise IndexError(index)
        return self.batch


class NodeData(LightningDataModule):
    """Base of the node data: subclasses say how to ``read`` the nodes, this class builds and serves the graph.

    Args:
        graph: The initial graph and the pairs that may be learned.
        steps_per_epoch: How often an epoch of training serves the graph.
        seed: Seed of the split and of everything random in the graph.

    Attributes:
        graph: The validated batch, after ``setup``.

    Raises:
        ValueError: If ``steps_per_epoch`` is below 1.
    """

    graph: NodeBatch

    def __init__(self, graph: GraphOptions, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        self.save_hyperparameters(ignore=["graph"])
        self.save_hyperparameters({"graph": asdict(graph)})  # plain types, so that checkpoints load with weights_only
        self.options = graph
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed

    def read(self) -> NodeSet:
        """Read or make the nodes; called once, when first needed."""
        raise NotImplementedError

    @cached_property
    def data(self) -> NodeSet:
        """The nodes as read."""
        return self.read()

    @property
    def inputs(self) -> int:
        """Number of features of a node."""
        return self.data.x.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.class_names)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.data.x.shape[0]

    @property
    def class_names(self) -> list[str]:
        """Name of each class."""
        return self.data.class_names

    @property
    def node_names(self) -> list[str]:
        """Name of each node: the user's identifier if there is one, else its number."""
        return self.data.node_names or [str(node) for node in range(self.nodes)]

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "graph"):  # the same for all stages
            x, y, _, masks, given, _ = self.data
            self.graph = NodeBatch(x, y, *self.options.build(x, given, self.seed), **masks).check()

    def train_dataloader(self) -> DataLoader[NodeBatch]:
        return self._serve(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[NodeBatch]:
        return self._serve(1)

    def test_dataloader(self) -> DataLoader[NodeBatch]:
        return self._serve(1)

    def predict_dataloader(self) -> DataLoader[NodeBatch]:
        return self._serve(1)

    def _serve(self, times: int) -> DataLoader[NodeBatch]:
        dataset = WholeGraph(self.graph, times)
        # Under DDP Lightning would share the repetitions out among the ranks. Every rank is to see all of them, and a
        # DistributedSampler that is there already, for one replica, is left alone.
        sampler: DistributedSampler[NodeBatch] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=_only)


def _only(items: Sequence[NodeBatch]) -> NodeBatch:
    (item,) = items
    return item


def nested_split(y: Tensor, sizes: Sequence[int], seed: int, field: str = "split") -> dict[str, Tensor]:
    """Masks by three nested stratified splits, as in the official code of LDS: test, then stop, then val off the rest.

    Args:
        y: Class of each node, shape ``(nodes,)``.
        sizes: Total numbers (not per class) of train, val and stop nodes; all others are test nodes.
        seed: ``random_state`` of all three splits.
        field: Name of the option ``sizes`` came from, for messages.

    Returns:
        ``train``, ``val``, ``stop``, ``test`` masks, each of shape ``(nodes,)``, bool.

    Raises:
        ValueError: If a part would hold fewer nodes than there are classes.
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    train, val, stop = sizes
    classes, test = len(set(y.tolist())), len(y) - train - val - stop
    for name, size in {"train": train, "val": val, "stop": stop, "test": test}.items():
        if size < classes:
            raise ValueError(
                f"{field}={tuple(sizes)} of {len(y)} nodes leaves {size} {name} nodes, fewer than the {classes} classes"
            )
    labels = y.numpy()

    def off(nodes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        rest, part = train_test_split(
            nodes, train_size=len(nodes) - size, test_size=size, random_state=seed, stratify=labels[nodes]
        )
        return rest, part

    rest, test_nodes = off(np.arange(len(y)), test)
    rest, stop_nodes = off(rest, stop)
    train_nodes, val_nodes = off(rest, val)
    parts = {"train": train_nodes, "val": val_nodes, "stop": stop_nodes, "test": test_nodes}
    return {name: mask_of(part, len(y)) for name, part in parts.items()}


def mask_of(indices: object, nodes: int) -> Tensor:
    """Bool mask of shape ``(nodes,)`` that is True at the indices."""
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.as_tensor(indices)] = True
    return mask
