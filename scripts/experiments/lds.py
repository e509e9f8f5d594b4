"""Rows of the LDS tables that are no runs of the command line: scikit-learn's classifiers on the same splits."""

from __future__ import annotations

from typing import Any

from datamodules.nodes.base import NodeData
from datamodules.nodes.bundled import SklearnNodes
from datamodules.nodes.planetoid import Planetoid
from framework.graphs.baselines import tune_baseline
from framework.graphs.sources import GraphOptions

NAMES = {
    "Logistic regression": "logistic_regression",
    "Linear SVM": "linear_svm",
    "RBF SVM": "rbf_svm",
    "Random forest": "random_forest",
    "Label propagation": "label_propagation",
}


def sklearn_rows(data: str, seed: int) -> dict[str, dict[str, Any]]:
    """Tune every classifier on val and stop, and score it on test.

    Args:
        data: Name of the data set.
        seed: Seed of the split and of the classifiers.
    """
    empty = GraphOptions(source="empty")
    nodes: NodeData = (
        Planetoid(data, graph=empty, seed=seed) if data == "cora" else SklearnNodes(data, graph=empty, seed=seed)
    )
    nodes.setup()
    rows = {}
    for row, name in NAMES.items():
        tuned = tune_baseline(name, nodes.graph, seed)
        rows[row] = {
            "metrics": {"test/accuracy": tuned.test, "selection/accuracy": tuned.selection},
            "choice": tuned.parameters,
        }
    return rows
