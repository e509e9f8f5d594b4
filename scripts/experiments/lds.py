"""What the LDS evidence needs besides runs of the command line: scikit-learn's classifiers, and a picture.

.venv/bin/python -m scripts.experiments.lds      draws docs/images/lds-retained.png from docs/results/lds.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.nodes.base import NodeData
from datamodules.nodes.bundled import SklearnNodes
from datamodules.nodes.planetoid import Planetoid
from framework.evaluation.records import read_records
from framework.evaluation.statistics import mean_interval
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


def retained_figure(results: Path) -> Any:
    """Test accuracy on Cora against the share of edges retained, with 95 % intervals.

    Args:
        results: ``docs/results/lds.json``.
    """
    from matplotlib.figure import Figure

    records = read_records(results)
    shares = {25: "cora-25", 50: "cora-50", 75: "cora-75", 100: "cora"}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for row, marker in (("LDS", "o"), ("GCN-RND", "^"), ("GCN", "s")):
        intervals = [
            mean_interval([100 * r.metrics["test/accuracy"] for r in records if (r.row, r.data) == (row, data)])
            for data in shares.values()
        ]
        means = [interval.estimate for interval in intervals]
        halves = [interval.high - interval.estimate for interval in intervals]
        axes.errorbar(list(shares), means, yerr=halves, marker=marker, capsize=3, label=row)
    axes.set(xlabel="edges retained (%)", ylabel="test accuracy (%)", xticks=list(shares))
    axes.set_title("Cora: what is left when edges are taken away")
    axes.legend()
    return figure


if __name__ == "__main__":
    docs = Path(__file__).resolve().parents[2] / "docs"
    retained_figure(docs / "results" / "lds.json").savefig(docs / "images" / "lds-retained.png", dpi=110)
