"""What a graph must beat: classifiers without one, tuned with the same care on the same splits.

Each method is fitted on ``train`` once per entry of a small grid, the entry with the best accuracy on ``val`` and
``stop`` together is kept, and only that one is scored on ``test``. Of equals, frequent with 20 labels to select by, the
first is kept; so the grids begin with scikit-learn's defaults. No label of ``test`` is read before, and no model is
refitted on more labels, so that every method has the labels that LDS has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

from framework.graphs.batch import NodeBatch
from framework.graphs.sources import as_matrix

SCALES = (1.0, 0.1, 10.0, 0.01, 100.0)
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "logistic_regression": {"C": SCALES},
    "linear_svm": {"C": SCALES},
    "rbf_svm": {"C": SCALES, "gamma": ("scale", 0.001, 0.01, 0.1)},
    "random_forest": {"n_estimators": (100, 300), "max_features": ("sqrt", 0.2)},
    "label_propagation": {"n_neighbors": (5, 10, 20), "metric": ("cosine", "minkowski")},
    "mlp": {"hidden_layer_sizes": ((16,), (64,)), "alpha": (1e-4, 1e-2, 1.0)},
}
BASELINES = tuple(GRIDS)


class TunedBaseline(NamedTuple):
    """Outcome of one method on one split.

    Attributes:
        test: Accuracy on ``test``, in [0, 1].
        selection: Accuracy on ``val`` and ``stop`` together, in [0, 1].
        parameters: The entry of the grid that was kept.
    """

    test: float
    selection: float
    parameters: dict[str, Any]


def sklearn_baseline(name: str, batch: NodeBatch, seed: int = 0) -> float:
    """Test accuracy of a method after tuning, in [0, 1]; see :func:`tune_baseline`."""
    return tune_baseline(name, batch, seed).test


def tune_baseline(name: str, batch: NodeBatch, seed: int = 0) -> TunedBaseline:
    """Tune a method on ``val`` and ``stop`` and score it on ``test``.

    Args:
        name: One of ``BASELINES``.
        batch: Features, labels and masks; its graph is not used.
        seed: ``random_state`` of methods that have one.

    Returns:
        Accuracies and the parameters kept.

    Raises:
        ValueError: If there is no method of that name.
    """
    import numpy as np

    if name not in GRIDS:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {name}")
    x, y = as_matrix(batch.x), batch.y.cpu().numpy()
    masks = {part: getattr(batch, part).cpu().numpy() for part in ("train", "val", "stop", "test")}
    selection = masks["val"] | masks["stop"]
    predict = _propagate if name == "label_propagation" else _fit(name, seed)
    grid = GRIDS[name]
    best: tuple[float, dict[str, Any], Any] | None = None
    for values in product(*grid.values()):
        parameters = dict(zip(grid, values))
        if name == "label_propagation" and parameters["n_neighbors"] >= len(y):
            continue
        known = np.where(masks["train"], y, -1)  # all that a method may see of the labels
        classes = predict(x, known, parameters)
        accuracy = float((classes[selection] == y[selection]).mean())
        if best is None or accuracy > best[0]:
            best = accuracy, parameters, classes
    if best is None:
        raise ValueError(f"{name} needs more than {min(grid['n_neighbors'])} nodes, got {len(y)}")
    accuracy, parameters, classes = best
    return TunedBaseline(float((classes[masks["test"]] == y[masks["test"]]).mean()), accuracy, parameters)


def _fit(name: str, seed: int) -> Callable[[Any, Any, dict[str, Any]], Any]:
    """Function of features, known labels (-1 elsewhere) and parameters that returns the class of every node."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    def predict(x: Any, known: Any, parameters: dict[str, Any]) -> Any:
        train = known >= 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a cap on the steps of the MLP, as early stopping is
            return _model(name, parameters, seed).fit(x[train], known[train]).predict(x)

    return predict


def _model(name: str, parameters: dict[str, Any], seed: int) -> Any:
    if name == "logistic_regression":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=2000, **parameters)
    if name == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(random_state=seed, **parameters)
    if name == "mlp":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(learning_rate_init=0.01, max_iter=200, random_state=seed, **parameters)
    from sklearn.svm import SVC

    return SVC(kernel="linear" if name == "linear_svm" else "rbf", **parameters)


def _propagate(x: Any, known: Any, parameters: dict[str, Any]) -> Any:
    """Label propagation over the kNN graph (joined if either is near the other); sparse, and any metric.

    scikit-learn's ``LabelPropagation`` knows Euclidean neighbours only; the iteration is the same: neighbours are
    averaged, training labels are put back. Nodes that no label reaches get the most frequent training class.
    """
    import numpy as np
    from scipy.sparse import diags_array
    from sklearn.neighbors import kneighbors_graph

    near = kneighbors_graph(x, parameters["n_neighbors"], metric=parameters["metric"], include_self=False)
    near = near.maximum(near.T)
    walk = diags_array(1 / np.asarray(near.sum(axis=1)).ravel()) @ near
    train = known >= 0
    onehot = np.eye(int(known.max()) + 1)[known[train]]
    scores = np.zeros((len(known), onehot.shape[1]))
    scores[train] = onehot
    for _ in range(1000):
        spread = walk @ scores
        spread[train] = onehot
        done = np.abs(spread - scores).max() < 1e-6
        scores = spread
        if done:
            break
    classes = scores.argmax(axis=1)
    classes[scores.max(axis=1) == 0] = np.bincount(known[train]).argmax()
    return classes
