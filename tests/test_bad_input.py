"""What a user of LDS can get wrong at the command line: one line that names it, exit code 2, nothing left behind."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import make_tiny
import numpy as np
import pytest
from command_line import fails
from scipy.sparse import csr_array, save_npz

ROWS = 60
TABLE = ("lds/table", "--data.path", "t.csv", "--data.label", "kind")
#: Data of the user's own, in which two nodes are in two masks.
OVERLAP = """
import torch
from datamodules.nodes.base import NodeData, NodeSet, mask_of

class Overlap(NodeData):
    def read(self):
        y = torch.arange(40) % 2
        masks = {"train": range(10), "val": range(8, 20), "stop": range(20, 30), "test": range(30, 40)}
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        return NodeSet(x, y, ["a", "b"], {name: mask_of(list(nodes), 40) for name, nodes in masks.items()})
"""


def table(**changes) -> None:
    """``t.csv``: two kinds told apart by two numbers; ``changes`` replace columns, None removes one."""
    random = np.random.RandomState(0)
    kind = np.arange(ROWS) % 2
    parts = np.array(["train", "val", "stop", "test"])[np.arange(ROWS) * 4 // ROWS]
    columns = {
        "height": (kind + random.rand(ROWS)).round(3).tolist(),
        "weight": random.rand(ROWS).round(3).tolist(),
        "part": parts.tolist(),
        "kind": [f"k{k}" for k in kind],
        **changes,
    }
    columns = {name: values for name, values in columns.items() if values is not None}
    with open("t.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])


def neighbours():
    return [
        "lds/wine",
        "--data.graph.k",
        "178",
    ], "graph.k must be from 1 to 177, below the number of nodes (178), got 178"


def tau():
    return ["lds/wine", "--model.tau", "0"], "tau must be at least 1, got 0"


def retention_of_nothing():
    return ["lds/cora", "--data.graph.retained", "0"], "percentage of edges kept, in (0, 100], got 0"


def retention_above_all():
    return ["lds/cora", "--data.graph.retained", "101"], "percentage of edges kept, in (0, 100], got 101"


def missing_planetoid_files():
    for part in ("tx", "graph"):
        Path(f"data/planetoid/ind.cora.{part}").unlink()
    told = "ind.cora.tx, ind.cora.graph; download them from https://github.com/kimiyoung/planetoid"
    return ["lds/cora"], ("not in data/planetoid: ", told)


def missing_table():
    return [*TABLE], "path is not a file: t.csv"


def missing_edges():
    table()
    return [*TABLE, "--data.edges", "e.npz", "--data.drop", "[part]"], "edges is not a file: e.npz"


def no_label_column():
    table(kind=None)
    return [*TABLE], ("'kind'", "height, weight, part")


def missing_feature():
    table(height=["", *["1.5"] * (ROWS - 1)])
    return [*TABLE, "--data.drop", "[part]"], ("'height'", "row 0")


def infinite_feature():
    table(height=["1.5", "inf", *["1.5"] * (ROWS - 2)])
    return [*TABLE, "--data.drop", "[part]"], ("'height'", "row 1")


def empty_mask():
    table(part=["train"] * 30 + ["stop"] * 15 + ["test"] * 15)
    return [*TABLE, "--data.split_column", "part"], "split_column 'part' must hold val in at least one row"


def two_masks_in_a_cell():
    table(part=["train, val", *["train"] * 14, *["val"] * 15, *["stop"] * 15, *["test"] * 15])
    return [*TABLE, "--data.split_column", "part"], "got 'train, val' in row 0"


def overlapping_masks():
    Path("overlapping.py").write_text(OVERLAP)
    own = ["--data", "overlapping.Overlap", "--data.steps_per_epoch", "1", "--data.seed", "0"]
    return [
        "lds/blocks",
        *own,
        "--data.graph",
        "{source: knn, k: 3}",
    ], "masks must be disjoint, got node 8 in both train and val"


def probability_above_one():
    table()
    Path("edges.csv").write_text("source,target,weight\n0,1,0.5\n2,3,1.5\n")
    return [*TABLE, "--data.drop", "[part]", "--data.edges", "edges.csv"], "must lie in [0, 1], got 1.5"


def probability_added():
    return ["lds/wine", "--data.graph.base_probability", "-0.1"], "graph.base_probability must lie in [0, 1], got -0.1"


def directed_graph():
    table()
    save_npz("edges.npz", csr_array(([1.0], ([0], [5])), shape=(ROWS, ROWS)))
    told = "the graph must be symmetric, got 1 from 0 to 5 but 0 back"
    return [*TABLE, "--data.drop", "[part]", "--data.edges", "edges.npz"], told


CASES = [
    neighbours, tau, retention_of_nothing, retention_above_all, missing_planetoid_files, missing_table, missing_edges,
    no_label_column, missing_feature, infinite_feature, empty_mask, two_masks_in_a_cell, overlapping_masks,
    probability_above_one, probability_added, directed_graph,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_one_line_and_code_2(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("FULGURITE_DATA", raising=False)
    make_tiny.tiny_planetoid(Path("data"), "cora")
    given, expected = case()
    line = fails(capsys, "fit", "-c", *given)
    for part in (expected,) if isinstance(expected, str) else expected:
        assert part in line
    assert not Path("runs").exists()
