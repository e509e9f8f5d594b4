"""Small real sets that come with scikit-learn, split as in the official code of LDS."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from datamodules.nodes.base import NodeData, NodeSet, nested_split
from framework.graphs.sources import GraphOptions

Name = Literal["wine", "cancer", "digits", "iris"]


class SklearnNodes(NodeData):
    """Rows of a scikit-learn data set as the nodes of a graph that is yet to be found.

    ====== ===== ======== ======= =========================== =========================
    name   nodes features classes train / val / stop (totals) standardised
    ====== ===== ======== ======= =========================== =========================
    wine   178   13       3       10 / 10 / 10                over all nodes
    cancer 569   30       2       10 / 10 / 10                over all nodes
    digits 1797  64       10      50 / 50 / 50                no, pixels from 0 to 16
    iris   150   4        3       10 / 10 / 10                no
    ====== ===== ======== ======= =========================== =========================

    Standardising over all nodes uses the features of test nodes, never their labels: the setting is transductive.

    In YAML::

        data:
          class_path: SklearnNodes
          init_args:
            name: wine
            graph: {source: knn, k: 10, metric: cosine}
            seed: 1

    Args:
        name: The data set.
        graph: The initial graph; by default 10 nearest neighbours by cosine.
        split: Total numbers of train, val and stop nodes; the rest is test. None means the numbers in the table.
        standardize: Mean 0 and standard deviation 1 for every feature. None means as in the table.
        steps_per_epoch: How often an epoch of training serves the graph.
        seed: Seed of the stratified split and of random graphs.

    Raises:
        ValueError: If ``name`` is unknown or ``split`` leaves a part with fewer nodes than classes.
    """

    def __init__(
        self,
        name: Name = "wine",
        graph: GraphOptions = GraphOptions(),  # noqa: B008 (frozen)
        split: tuple[int, int, int] | None = None,
        standardize: bool | None = None,
        steps_per_epoch: int = 1,
        seed: int = 1,
    ) -> None:
        if name not in get_args(Name):
            raise ValueError(f"name must be one of {', '.join(get_args(Name))}, got {name}")
        super().__init__(graph, steps_per_epoch, seed)
        self.dataset = name
        self.split = split or ((50, 50, 50) if name == "digits" else (10, 10, 10))
        self.standardize = name in {"wine", "cancer"} if standardize is None else standardize

    def read(self) -> NodeSet:
        from sklearn import datasets, preprocessing

        loaders = {"wine": "load_wine", "cancer": "load_breast_cancer", "digits": "load_digits", "iris": "load_iris"}
        bunch = getattr(datasets, loaders[self.dataset])()
        features = preprocessing.scale(bunch.data) if self.standardize else bunch.data
        y = torch.from_numpy(bunch.target).long()
        return NodeSet(
            x=torch.from_numpy(features).float(),
            y=y,
            class_names=[str(name) for name in bunch.target_names],
            masks=nested_split(y, self.split, self.seed),
        )
