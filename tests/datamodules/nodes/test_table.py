import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix, save_npz

from datamodules.nodes.table import TableNodes, read_edges
from framework.graphs.sources import GraphOptions, knn_pairs

MASKS = ("train", "val", "stop", "test")


@pytest.fixture
def frame():
    """100 rows, the last 20 without a label, with a name, a number, a town."""
    random = np.random.RandomState(0)
    kind = ["sick", "well"] * 50
    return pd.DataFrame(
        {
            "patient": [f"{row:03d}" for row in range(100)],
            "age": random.randn(100) + 2 * (np.arange(100) % 2),
            "weight": random.rand(100),
            "town": random.choice(["a", "b", "c"], 100),
            "state": [*kind[:80], *[None] * 20],
        }
    )


@pytest.fixture
def write(tmp_path):
    def write(frame, name="table.csv"):
        path = tmp_path / name
        frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
        return str(path)

    return write


def ready(*args, **kwargs):
    data = TableNodes(*args, **kwargs)
    data.setup("fit")
    return data


def sizes(data):
    return [int(getattr(data.graph, mask).sum()) for mask in MASKS]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_becomes_nodes(frame, write, name):
    data = TableNodes(write(frame, name), "state", id_column="patient")
    assert (data.nodes, data.inputs, data.classes) == (100, 5, 2)
    assert data.class_names == ["sick", "well"]
    assert data.node_names[:2] == ["000", "001"]
    data.setup("fit")
    assert data.graph.y.tolist() == [0, 1] * 40 + [-1] * 20
    assert torch.equal(data.graph.edge_index, knn_pairs(data.graph.x, 10))
    np.testing.assert_allclose(data.graph.x[:, :2].mean(dim=0), 0, atol=1e-6)


def test_default_split_is_stratified_over_the_labelled_rows(frame, write):
    data = ready(write(frame.drop(columns="patient")), "state")
    assert sizes(data) == [40, 12, 12, 16]
    masks = torch.stack([getattr(data.graph, mask) for mask in MASKS])
    assert masks.sum(dim=0).tolist() == [1] * 80 + [0] * 20
    for mask in masks:
        counts = torch.bincount(data.graph.y[mask])
        assert abs(int(counts[0] - counts[1])) <= 2
    assert data.node_names[-1] == "99"


def test_split_by_counts(frame, write):
    assert sizes(ready(write(frame), "state", split=(10, 11, 13), drop=["patient"])) == [10, 11, 13, 46]


def test_rare_classes_do_not_stop_a_random_split(frame, write):
    frame.loc[0, "state"] = "rare"
    assert sum(sizes(ready(write(frame), "state", drop=["patient"]))) == 80


def test_split_column_is_taken_as_written(frame, write):
    frame["part"] = [*["train"] * 30, *["val"] * 20, *["stop"] * 10, *["test"] * 15, *[None] * 25]
    data = ready(write(frame), "state", id_column="patient", split_column="part")
    assert sizes(data) == [30, 20, 10, 15]
    assert data.graph.train[:30].all()
    assert data.inputs == 5


def test_validation_rows_are_halved_where_no_row_says_stop(frame, write):
    frame["part"] = [*["train"] * 30, *["val"] * 20, *["test"] * 30, *[None] * 20]
    data = ready(write(frame), "state", id_column="patient", split_column="part")
    assert sizes(data) == [30, 10, 10, 30]
    assert (data.graph.val | data.graph.stop)[30:50].all()
    assert torch.bincount(data.graph.y[data.graph.stop]).tolist() == [5, 5]


def test_a_known_graph_by_names(frame, write):
    edges = pd.DataFrame({"source": ["001", "005", "001"], "target": ["000", "007", "000"], "weight": [0.5, 1, 0.5]})
    data = ready(write(frame), "state", id_column="patient", edges=write(edges, "edges.csv"))
    assert data.graph.edge_index.tolist() == [[0, 5], [1, 7]]
    assert data.graph.edge_weight.tolist() == [0.5, 1]


def test_a_known_graph_by_row_numbers_and_as_a_matrix(frame, write, tmp_path):
    path = write(frame)
    edges = write(pd.DataFrame({"source": [1, 5], "target": [0, 7]}), "edges.parquet")
    assert ready(path, "state", edges=edges, drop=["patient"]).graph.edge_index.tolist() == [[0, 5], [1, 7]]
    matrix = csr_matrix(([1, 1], ([0, 9], [9, 0])), shape=(100, 100))
    save_npz(tmp_path / "edges.npz", matrix)
    data = ready(path, "state", edges=str(tmp_path / "edges.npz"), drop=["patient"])
    assert data.graph.edge_index.tolist() == [[0], [9]]
    other = ready(path, "state", edges=edges, drop=["patient"], graph=GraphOptions(source="knn", k=2))
    assert torch.equal(other.graph.edge_index, knn_pairs(other.graph.x, 2))


def test_labels_reach_neither_features_nor_graph(frame, write):
    frame["part"] = [*["train"] * 30, *["val"] * 10, *["stop"] * 10, *["test"] * 30, *[None] * 20]
    honest = ready(write(frame), "state", id_column="patient", split_column="part").graph
    frame.loc[50:79, "state"] = frame.loc[50:79, "state"].map({"sick": "well", "well": "sick"})
    lied = ready(write(frame), "state", id_column="patient", split_column="part").graph
    assert torch.equal(honest.x, lied.x)
    assert torch.equal(honest.edge_index, lied.edge_index)
    assert torch.equal(honest.train, lied.train)
    assert torch.equal(honest.y[honest.test], 1 - lied.y[lied.test])


def test_gaps_are_filled_if_asked_for(frame, write):
    frame.loc[3, "age"] = None
    path = write(frame)
    with pytest.raises(ValueError, match=r"'age' has 1 missing values, the first in row 3.*missing: fill"):
        ready(path, "state", drop=["patient"])
    assert ready(path, "state", drop=["patient"], missing="fill").graph.x.isfinite().all()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda f: f, {"label": "illness"}, ["label 'illness'", "patient, age, weight, town, state"]),
        (lambda f: f, {"split": (0.5, 0.3, 0.3)}, ["split", "(0.5, 0.3, 0.3)"]),
        (lambda f: f, {"split": (0.5, 10, 10)}, ["split", "counts", "shares"]),
        (lambda f: f, {"split": (0, 0.1, 0.1)}, ["split"]),
        (lambda f: f, {"split": (40, 20, 20)}, ["split", "80 labelled"]),
        (lambda f: f, {"split": (float("inf"), 1, 1)}, ["split"]),
        (lambda f: f, {"id_column": "name"}, ["'name'"]),
        (lambda f: f.assign(patient="x"), {}, ["id_column 'patient'", "'x'", "row 1"]),
        (lambda f: f.assign(patient=[None, *range(99)]), {}, ["id_column 'patient'", "row 0"]),
        (lambda f: f, {"drop": ["height"]}, ["'height'"]),
        (lambda f: f.assign(part="trian"), {"split_column": "part"}, ["split_column 'part'", "'trian'", "row 0"]),
        (lambda f: f.assign(part="train"), {"split_column": "part"}, ["split_column 'part'", "row 80", "no label"]),
        (
            lambda f: f.assign(part=["train"] * 80 + [None] * 20),
            {"split_column": "part"},
            ["split_column 'part'", "val in at least one row"],
        ),
        (
            lambda f: f.assign(part=["train"] * 78 + ["val", "test"] + [None] * 20),
            {"split_column": "part"},
            ["split_column 'part'", "stop", "two rows"],
        ),
        (lambda f: f, {"graph": GraphOptions(k=100)}, ["graph.k", "100"]),
        (lambda f: f, {"graph": GraphOptions(source="given")}, ["graph.source", "no graph"]),
        (lambda f: f, {"class_names": ["well"]}, ["class_names", "'sick'"]),
    ],
)
def test_bad_input_is_named_in_one_line(frame, write, change, options, words):
    with pytest.raises(ValueError, match=r".") as caught:
        ready(**{"path": write(change(frame)), "label": "state", "id_column": "patient"} | options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ({"from": [0], "to": [1]}, ["source and target", "from, to"]),
        ({"source": [0], "target": [9]}, ["'9'", "target"]),
        ({"source": [0, 1], "target": [1, 0], "weight": [0.1, 0.2]}, ["symmetric", "0 and 1"]),
        ({"source": [0], "target": [1], "weight": [7]}, ["[0, 1]", "7"]),
        ({"source": [0], "target": [1], "weight": ["much"]}, ["[0, 1]", "nan"]),
    ],
)
def test_bad_edges_are_named_in_one_line(write, edges, words):
    with pytest.raises(ValueError, match=r".") as caught:
        read_edges(write(pd.DataFrame(edges), "edges.csv"), ["0", "1", "2"])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_matrix_must_fit_and_be_symmetric(tmp_path):
    path = tmp_path / "edges.npz"
    save_npz(path, csr_matrix(([1.0], ([0], [1])), shape=(3, 3)))
    with pytest.raises(ValueError, match=r"symmetric, got 1 from 0 to 1 but 0 back"):
        read_edges(str(path), ["0", "1", "2"])
    with pytest.raises(ValueError, match=r"edges must be a matrix of 2 by 2 nodes, got shape \(3, 3\)"):
        read_edges(str(path), ["0", "1"])
    with pytest.raises(FileNotFoundError, match=r"edges is not a file"):
        read_edges(str(tmp_path / "none.npz"), ["0"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path is not a file: .*none\.csv"):
        _ = TableNodes(str(tmp_path / "none.csv"), "y").inputs
