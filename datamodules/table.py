"""A user's own table: CSV or Parquet, a label column, everything else features."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from datamodules._classification import ClassificationData
from framework.splits import check_shares, split_indices
from framework.tables import encode_labels, feature_columns, fit_encoding, read_table

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "val", "test")


class Rows(NamedTuple):
    """A table as tensors.

    Attributes:
        x: Features, shape ``(rows, inputs)``, float32, finite.
        y: Classes, shape ``(rows,)``, int64; -1 where there is no label.
        names: What names each row in predictions, length ``rows``.
        parts: Row numbers of train, val and test.
        class_names: Names of the classes.
        feature_names: Names of the columns of ``x``.
        cells: The table as it was read, without its labels.
    """

    x: Tensor
    y: Tensor
    names: list[Any]
    parts: dict[str, Tensor]
    class_names: list[str]
    feature_names: list[str]
    cells: pd.DataFrame


class TrainRows(TensorDataset):
    """The rows to train on, with their cells for people who label them.

    Args:
        rows: The table.
    """

    def __init__(self, rows: Rows) -> None:
        part = rows.parts["train"]
        super().__init__(rows.x[part], rows.y[part])
        self._cells = rows.cells.iloc[part.numpy()]

    def describe(self, index: int) -> dict[str, Any]:
        """Number of the row in the file, from 0, and its cells by column."""
        cells = self._cells.iloc[[index]]
        return {"row": int(cells.index[0]), **json.loads(cells.to_json(orient="records"))[0]}


class NamedRows(Dataset[tuple[Tensor, Tensor, Any]]):
    """All rows with what names them, for predictions.

    Args:
        rows: The table.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows, self.targets = rows, rows.y

    def __len__(self) -> int:
        return len(self.rows.y)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Any]:
        return self.rows.x[row], self.rows.y[row], self.rows.names[row]


class Table(ClassificationData):
    """Rows of a CSV or Parquet file, classified one by one; ``predict`` goes through all rows, labelled or not.

    Numbers are standardised and gaps filled with statistics of the training rows only; text columns become one 0/1
    feature per category.

    In YAML::

        data:
          class_path: Table
          init_args:
            path: patients.csv
            label: diagnosis          # empty cells: unlabelled rows
            id_column: patient        # optional: names the rows in the predictions
            drop: [name, address]     # optional: columns that are no features

    Args:
        path: The table, ``.csv``, ``.tsv``, ``.parquet`` or ``.pq``.
        label: Name of the label column.
        id_column: Column that names the rows in predictions; no feature. None means row numbers from 0.
        split_column: Column with ``train``, ``val``, ``test`` or nothing (only predicted); no feature. None means a
            random split.
        split: Shares of train, val and test of the labelled rows, stratified by class; they sum to 1. Has no effect
            with ``split_column``.
        drop: Further columns that are no features.
        missing: Missing feature values: ``refuse`` (an error that names the column) or ``fill`` (median of the training
            rows; no category).
        unlabelled: What rows without a label are for: ``predict`` only, or also to ``train`` with class -1, which a
            classifier leaves out of its loss and a semi-supervised method or active learning can use.
        class_names: Labels in the order of the classes; None means sorted.
        standardize: Whether numeric columns get mean 0 and standard deviation 1 over the training rows.
        batch_size: Rows per batch, at least 1.
        seed: Seed of the split.
        num_workers: Processes that load batches; 0 is quickest for data in memory.

    Attributes:
        inputs: Number of features (reads the file when first asked).
        classes: Number of classes.
        class_names: Names of the classes.
        feature_names: Names of the features.

    Raises:
        ValueError: If an argument is out of range; when the data are first needed, for anything wrong in the file,
            naming column and row.
        FileNotFoundError: When the data are first needed, if the file is not there.
    """

    def __init__(
        self,
        path: str,
        label: str,
        id_column: str | None = None,
        split_column: str | None = None,
        split: tuple[float, float, float] = (0.7, 0.15, 0.15),
        drop: list[str] | None = None,
        missing: Literal["refuse", "fill"] = "refuse",
        unlabelled: Literal["predict", "train"] = "predict",
        class_names: list[str] | None = None,
        standardize: bool = True,
        batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_shares(split)
        for field, value, allowed in (
            ("missing", missing, ("refuse", "fill")),
            ("unlabelled", unlabelled, ("predict", "train")),
        ):
            if value not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.save_hyperparameters()

    @cached_property
    def rows(self) -> Rows:
        """The table as tensors; the file is read once, when first needed."""
        p = self.hparams
        text = [column for column in (p["id_column"], p["split_column"]) if column]
        frame = read_table(p["path"], "path", text=text)
        labels = encode_labels(frame, p["label"], missing="allow", class_names=p["class_names"])
        y = torch.from_numpy(labels.y)
        columns = feature_columns(frame, exclude=[p["label"], p["id_column"], p["split_column"], *(p["drop"] or [])])
        if p["split_column"] is None:
            parts = self._random_parts(y)
        else:
            parts = _parts_from_column(frame[p["split_column"]].tolist(), p["split_column"], y)
        if p["unlabelled"] == "train" and p["split_column"] is None:
            parts["train"] = torch.cat([parts["train"], (y < 0).nonzero().flatten()])
        elif p["unlabelled"] == "predict":
            parts["train"] = parts["train"][y[parts["train"]] >= 0]
        if not (y[parts["train"]] >= 0).any():
            raise ValueError(f"label column {p['label']!r} must have a value in at least one training row")
        # Once over all rows, so that a complaint names the row of the file; the statistics are the training rows'.
        fit_encoding(frame, columns, missing=p["missing"])
        train = frame.iloc[parts["train"].numpy()]
        encoding = fit_encoding(train, columns, missing=p["missing"], standardize=p["standardize"])
        names = list(range(len(frame))) if p["id_column"] is None else [str(name) for name in frame[p["id_column"]]]
        x = torch.from_numpy(encoding.transform(frame))
        cells = frame.drop(columns=[p["label"], *([p["split_column"]] if p["split_column"] else [])])
        return Rows(x, y, names, parts, labels.class_names, encoding.names, cells)

    @property
    def inputs(self) -> int:
        """Number of features."""
        return self.rows.x.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.rows.class_names)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return self.rows.class_names

    @property
    def feature_names(self) -> list[str]:
        """Names of the features."""
        return self.rows.feature_names

    def setup(self, stage: str | None = None) -> None:
        rows = self.rows
        self.train = TrainRows(rows)
        self.val, self.test = (TensorDataset(rows.x[rows.parts[part]], rows.y[rows.parts[part]]) for part in PARTS[1:])

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(NamedRows(self.rows))

    def _random_parts(self, y: Tensor) -> dict[str, Tensor]:
        labelled = (y >= 0).nonzero().flatten()
        parts = split_indices(len(labelled), self.hparams["split"], self.hparams["seed"], y[labelled])
        return {name: labelled[part] for name, part in zip(PARTS, parts)}


def _parts_from_column(values: list[Any], column: str, y: Tensor) -> dict[str, Tensor]:
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for row, value in enumerate(values):
        if value is None or value != value:  # an empty cell: NaN differs from itself
            continue
        if value not in parts:
            raise ValueError(
                f"split_column {column!r} must hold train, val, test or nothing, got {value!r} in row {row}"
            )
        if value != "train" and y[row] < 0:
            raise ValueError(f"split_column {column!r} puts row {row} into {value}, but the row has no label")
        parts[value].append(row)
    for name, rows in parts.items():
        if not rows:
            raise ValueError(f"split_column {column!r} must hold {name} in at least one row")
    return {name: torch.tensor(rows) for name, rows in parts.items()}
