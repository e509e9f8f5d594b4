"""A user's own table as nodes: what a practitioner without a graph has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datamodules.nodes.base import NodeData, NodeSet, mask_of
from framework.graphs.sources import GraphOptions, edges_from_adjacency, edges_from_pairs
from framework.splits import split_indices
from framework.tables import encode_labels, feature_columns, fit_encoding, read_table

PARTS = ("train", "val", "stop", "test")


class TableNodes(NodeData):
    """Rows of a CSV or Parquet file as nodes; rows without a label get predictions.

    Numeric columns are standardised over all rows (also those to predict: the setting is transductive), text columns
    become one 0/1 feature per category.

    In YAML::

        data:
          class_path: TableNodes
          init_args:
            path: patients.csv
            label: diagnosis          # empty cells: unlabelled rows
            id_column: patient        # optional: names the rows in the predictions
            drop: [name, address]     # optional: columns that are no features
            edges: contacts.csv       # optional: columns source, target and perhaps weight
            graph: {source: knn, k: 10}

    Args:
        path: The table, ``.csv``, ``.tsv``, ``.parquet`` or ``.pq``.
        label: Name of the label column; missing labels are allowed.
        edges: A known graph: a table with columns ``source``, ``target`` and optionally ``weight`` in [0, 1], read as
            undirected; or a symmetric SciPy sparse matrix ``.npz`` in the order of the rows. Nodes are named by
            ``id_column``, else by row number from 0.
        id_column: Column with a unique name of each row; no feature.
        split_column: Column with ``train``, ``val``, ``stop``, ``test`` or nothing; no feature. If no row says
            ``stop``, half of the ``val`` rows are taken for it, stratified. None means a stratified random split.
        split: Train, val and stop nodes as shares (below 1) of the labelled rows, or as counts; the rest is test. Has
            no effect with ``split_column``.
        drop: Further columns that are no features.
        missing: Missing feature values: ``refuse`` (an error that names the column) or ``fill`` (median; no category).
        class_names: Labels in the order of the classes; None means sorted.
        standardize: Whether numeric columns get mean 0 and standard deviation 1.
        graph: The initial graph; by default the given edges if there are any, else 10 nearest neighbours by cosine.
        steps_per_epoch: How often an epoch of training serves the graph.
        seed: Seed of the split and of random graphs.

    Raises:
        ValueError: If ``split`` is not three positive numbers; when the data are first needed, for anything wrong in
            the files, naming column and row.
        FileNotFoundError: When the data are first needed, if a file is not there.
    """

    def __init__(
        self,
        path: str,
        label: str,
        edges: str | None = None,
        id_column: str | None = None,
        split_column: str | None = None,
        split: tuple[float, float, float] = (0.5, 0.15, 0.15),
        drop: list[str] | None = None,
        missing: Literal["refuse", "fill"] = "refuse",
        class_names: list[str] | None = None,
        standardize: bool = True,
        graph: GraphOptions = GraphOptions(),  # noqa: B008 (frozen)
        steps_per_epoch: int = 1,
        seed: int = 1,
    ) -> None:
        whole = all(part >= 1 and part % 1 == 0 for part in split)
        if len(split) != 3 or not (whole or (min(split) > 0 and sum(split) < 1)):
            raise ValueError(
                "split must be three counts of train, val and stop rows, or three positive shares that sum to less "
                f"than 1, got {tuple(split)}"
            )
        super().__init__(graph, steps_per_epoch, seed)
        self.path, self.label, self.edges, self.id_column, self.split_column = (
            path,
            label,
            edges,
            id_column,
            split_column,
        )
        self.split, self.drop, self.missing = tuple(split), drop or [], missing
        self.names, self.standardize = class_names, standardize

    def read(self) -> NodeSet:
        frame = read_table(self.path, "path", text=[column for column in (self.id_column, self.split_column) if column])
        labels = encode_labels(frame, self.label, missing="allow", class_names=self.names)
        columns = feature_columns(frame, exclude=[self.label, self.id_column, self.split_column, *self.drop])
        encoding = fit_encoding(frame, columns, missing=self.missing, standardize=self.standardize)
        y = torch.from_numpy(labels.y)
        names = [str(row) for row in range(len(frame))]
        if self.id_column is not None:
            names = _unique_names(frame[self.id_column].tolist(), self.id_column)
        if self.split_column is not None:
            masks = _masks_from_column(frame[self.split_column].tolist(), self.split_column, y, self.seed)
        else:
            masks = self._random_masks(y)
        return NodeSet(
            x=torch.from_numpy(encoding.transform(frame)),
            y=y,
            class_names=labels.class_names,
            masks=masks,
            given=None if self.edges is None else read_edges(self.edges, names),
            node_names=names,
        )

    def _random_masks(self, y: Tensor) -> dict[str, Tensor]:
        """Stratified masks over the labelled rows."""
        labelled = (y >= 0).nonzero().flatten()
        total = len(labelled)
        shares = [part / total if part >= 1 else part for part in self.split]
        if sum(shares) >= 1:
            raise ValueError(f"split={self.split} leaves no test rows of the {total} labelled rows")
        parts = split_indices(total, [*shares, 1 - sum(shares)], self.seed, y[labelled])
        return {name: mask_of(labelled[part], len(y)) for name, part in zip(PARTS, parts)}


def read_edges(path: str, names: list[str], field: str = "edges") -> tuple[Tensor, Tensor]:
    """A known graph from a table of edges or a sparse matrix.

    Args:
        path: A table with columns ``source``, ``target`` and optionally ``weight``, or a SciPy sparse matrix ``.npz``.
        names: Name of each node.
        field: Name of the option, for messages.

    Returns:
        Edges ``i < j``, shape ``(2, edges)``, and weights, shape ``(edges,)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing, a node is unknown, a weight is outside [0, 1], or the graph is not
            symmetric.
    """
    file = Path(path).expanduser()
    if file.suffix == ".npz":
        if not file.is_file():
            raise FileNotFoundError(f"{field} is not a file: {file}")
        from scipy.sparse import load_npz

        matrix = load_npz(file)
        if matrix.shape != (len(names), len(names)):
            raise ValueError(
                f"{field} must be a matrix of {len(names)} by {len(names)} nodes, got shape {matrix.shape}"
            )
        return edges_from_adjacency(matrix)
    frame = read_table(file, field, text=["source", "target"])
    index = {name: node for node, name in enumerate(names)}
    ends = []
    for column in ("source", "target"):
        if column not in frame.columns:
            raise ValueError(f"{field} must have the columns source and target, got {', '.join(frame.columns)}")
        values = frame[column].astype(str).tolist()
        unknown = next((value for value in values if value not in index), None)
        if unknown is not None:
            raise ValueError(f"{field} names the node {unknown!r} in column {column}, which is no row of the table")
        ends.append([index[value] for value in values])
    weight = None
    if "weight" in frame.columns:
        import pandas as pd

        numbers = pd.to_numeric(frame["weight"], errors="coerce")  # text becomes NaN, which is refused as a weight
        weight = torch.tensor(numbers.to_numpy(dtype="float64", na_value=float("nan")))
    return edges_from_pairs(torch.tensor(ends), len(names), weight)


def _unique_names(values: list[object], column: str) -> list[str]:
    names = [str(value) for value in values]
    seen: set[str] = set()
    for row, (name, value) in enumerate(zip(names, values)):
        if value is None or value != value:  # NaN differs from itself
            raise ValueError(f"id_column {column!r} must name every row, got nothing in row {row}")
        if name in seen:
            raise ValueError(f"id_column {column!r} must name every row differently, got {name!r} again in row {row}")
        seen.add(name)
    return names


def _masks_from_column(values: list[object], column: str, y: Tensor, seed: int) -> dict[str, Tensor]:
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for row, value in enumerate(values):
        if value is None or value != value:
            continue
        if value not in parts:
            raise ValueError(
                f"split_column {column!r} must hold {', '.join(PARTS)} or nothing, got {value!r} in row {row}"
            )
        if y[row] < 0:
            raise ValueError(f"split_column {column!r} puts row {row} into {value}, but the row has no label")
        parts[str(value)].append(row)
    for name in PARTS:
        if not parts[name] and name != "stop":
            raise ValueError(f"split_column {column!r} must hold {name} in at least one row")
    if not parts["stop"]:
        val = torch.tensor(parts["val"])
        if len(val) < 2:
            raise ValueError(f"split_column {column!r} must hold stop, or val in at least two rows to be halved")
        halves = split_indices(len(val), (0.5, 0.5), seed, y[val])
        parts["val"], parts["stop"] = (val[half].tolist() for half in halves)
    return {name: mask_of(rows, len(y)) for name, rows in parts.items()}
