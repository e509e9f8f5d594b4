"""Write predictions as tables that a person or a spreadsheet can open."""

from __future__ import annotations

import csv
import heapq
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from framework.rundir import run_directory

Key = tuple[int, ...]
"""Where a row belongs: dataloader, item of its data set (or batch), row within the item."""

CLASS_COLUMNS = ("prediction", "target")
"""Columns of class indices, written as names where the datamodule has ``class_names``."""


@runtime_checkable
class Tabular(Protocol):
    """A module with tables of its own to write, such as a learned graph."""

    def prediction_tables(self) -> Mapping[str, Mapping[str, Sequence[Any]]]:
        """Equally long columns by name, by plain file name."""
        ...


class WritePredictions(BasePredictionWriter):
    """Write what ``predict_step`` returns to ``<run dir>/predictions/predictions.csv``, one row an item.

    ``predict_step`` returns a dict of equally long columns: tensors or lists. A column of shape ``(items, m)`` becomes
    m columns ``<name>_0`` ...; a lone tensor is taken as the column ``prediction`` (one value an item) or ``output``.
    Class indices in ``prediction`` and ``target`` are written as names if the datamodule has ``class_names`` (a
    negative target is unknown: an empty cell), and the columns of ``probability`` are named after the classes.
    A module may also have ``prediction_tables() -> dict[str, dict[str, Sequence]]``, called on rank zero; each table
    becomes a file. Its ``prediction_order``, names of columns of numbers, puts the rows in their order; together they
    differ in every row (a tagger's tokens come by sentence and position, however its batches were made).

    Rows pass through a file on disk, not through memory. With several processes, rows come in the order of the data
    set, and an item that several ranks predicted is written once; the folder must be shared by all nodes. Pass
    ``return_predictions=False`` to ``Trainer.predict`` to keep Lightning from collecting everything in memory. A
    ``fast_dev_run`` writes nothing.

    Args:
        directory: Folder for the files; ``None`` for ``<run dir>/predictions``.
        format: ``csv``, or ``parquet`` (needs pyarrow).

    Raises:
        ValueError: If ``format`` is unknown, or while predicting if columns differ in length or between batches.
        TypeError: While predicting, if ``predict_step`` returns anything but columns.
    """

    def __init__(self, directory: str | None = None, format: Literal["csv", "parquet"] = "csv") -> None:
        super().__init__("batch")
        if format not in ("csv", "parquet"):
            raise ValueError(f"format must be csv or parquet, got {format!r}")
        self.directory = directory
        self.format: str = format
        self._folder = Path()
        self._columns: list[str] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        default = run_directory(trainer) / "predictions"  # communicates: on all ranks
        self._folder = Path(self.directory) if self.directory is not None else default
        self._columns = None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # columns are made, so that mistakes show, but a trial run leaves no files
        if trainer.is_global_zero:
            shutil.rmtree(self._parts, ignore_errors=True)  # of a run that was killed
            self._parts.mkdir(parents=True)
        trainer.strategy.barrier("WritePredictions: folder made")
        self._part(trainer.global_rank).touch()

    @property
    def _parts(self) -> Path:
        return self._folder / f".parts-{self.format}"

    def _part(self, rank: int) -> Path:
        return self._parts / f"{rank}.pickle"

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        columns = as_columns(prediction, names, type(pl_module).__name__)
        if not columns:
            return
        if self._columns is None:
            self._columns = list(columns)
        elif self._columns != list(columns):
            raise ValueError(
                f"predict_step of {type(pl_module).__name__} returned the columns {', '.join(columns)} in batch "
                f"{batch_idx}, and {', '.join(self._columns)} before"
            )
        rows = len(next(iter(columns.values())))
        order: Sequence[str] = getattr(pl_module, "prediction_order", ())
        keys: list[Key]
        if order:
            keys = [(dataloader_idx, *place) for place in zip(*(columns[name] for name in order))]
        elif not batch_indices or trainer.world_size == 1:  # in the order of arrival; of ranks in turn
            keys = [(dataloader_idx, batch_idx * trainer.world_size + trainer.global_rank, row) for row in range(rows)]
        elif rows == len(batch_indices):
            keys = [(dataloader_idx, index, 0) for index in batch_indices]
        else:  # an item of many rows, such as a graph with its nodes
            keys = [(dataloader_idx, min(batch_indices), row) for row in range(rows)]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with self._part(trainer.global_rank).open("ab") as file:
            pickle.dump((keys, columns), file, protocol=pickle.HIGHEST_PROTOCOL)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            _tables(pl_module)
            return
        trainer.strategy.barrier("WritePredictions: all predicted")
        if trainer.is_global_zero:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            missing = [part.name for part in parts if not part.exists()]
            if missing:
                raise FileNotFoundError(
                    f"{self._parts} lacks the predictions of other processes ({', '.join(missing)}): "
                    "WritePredictions needs a directory that all nodes share"
                )
            several = trainer.num_predict_batches is not None and len(trainer.num_predict_batches) > 1
            self._write("predictions", _merge(parts, dataloaders=several))
            shutil.rmtree(self._parts)
            for name, table in _tables(pl_module).items():
                self._write(name, iter([table] if table else []))
        trainer.strategy.barrier("WritePredictions: written")

    def _write(self, name: str, chunks: Iterator[Mapping[str, Sequence[Any]]]) -> None:
        path = self._folder / f"{name}.{self.format}"
        if self.format == "csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                for number, chunk in enumerate(chunks):
                    if number == 0:
                        writer.writerow(chunk)
                    writer.writerows(zip(*chunk.values()))
            return
        import pyarrow
        import pyarrow.parquet

        sink = None
        for chunk in chunks:
            table = pyarrow.table({column: list(values) for column, values in chunk.items()})
            if sink is None:
                # A column without any value so far, such as the targets of unlabelled rows, may hold names further on.
                types = {field.name: field.type for field in table.schema}
                types = {
                    name: pyarrow.string() if pyarrow.types.is_null(kind) else kind for name, kind in types.items()
                }
                sink = pyarrow.parquet.ParquetWriter(path, pyarrow.schema(types))
            sink.write_table(table.cast(sink.schema))
        if sink is not None:
            sink.close()


def as_columns(prediction: Any, class_names: Sequence[str] | None, owner: str) -> dict[str, list[Any]]:
    """Columns of plain values from what a ``predict_step`` returned.

    Args:
        prediction: A dict of equally long tensors or sequences, a tensor, or ``None`` for no rows.
        class_names: Names that replace class indices, if any.
        owner: Name of the module, for errors.

    Returns:
        Equally long lists by column; empty for no prediction.
    """
    if prediction is None:
        return {}
    if isinstance(prediction, Tensor) and prediction.ndim in (1, 2):
        prediction = {"prediction" if prediction.ndim == 1 else "output": prediction}
    if not isinstance(prediction, Mapping):
        raise TypeError(
            f"predict_step of {owner} returned {type(prediction).__name__}, and WritePredictions needs a dict of "
            "equally long columns (tensors or lists)"
        )
    columns: dict[str, list[Any]] = {}
    for name, values in prediction.items():
        if isinstance(values, Tensor) and values.ndim == 2:
            labels: Sequence[Any] = range(values.shape[1])
            if name == "probability" and class_names is not None and len(class_names) == values.shape[1]:
                labels = class_names
            columns |= {f"{name}_{label}": _plain(column) for label, column in zip(labels, values.unbind(1))}
        elif isinstance(values, str) or not (
            (isinstance(values, Tensor) and values.ndim == 1) or isinstance(values, Sequence)
        ):
            shape = f" of shape {tuple(values.shape)}" if isinstance(values, Tensor) else ""
            raise TypeError(
                f"predict_step of {owner} returned {type(values).__name__}{shape} as column {name!r}; "
                "a column is a list or a tensor with one or two dimensions"
            )
        else:
            columns[name] = _plain(values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of predict_step of {owner} must be equally long, got {lengths}")
    if class_names is not None:
        for name in CLASS_COLUMNS:
            if name in columns and all(isinstance(value, int) for value in columns[name]):
                columns[name] = [_class_name(value, class_names, name) for value in columns[name]]
    return columns


def _plain(values: Tensor | Sequence[Any]) -> list[Any]:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float32 if values.dtype is torch.bfloat16 else values.dtype).tolist()
    return [value.item() if isinstance(value, Tensor) and value.ndim == 0 else value for value in values]


def _class_name(index: int, class_names: Sequence[str], column: str) -> str | None:
    if index < 0:  # an unknown label
        return None
    if index >= len(class_names):
        raise ValueError(f"column {column!r} holds class {index}, and class_names has {len(class_names)} names")
    return class_names[index]


def _merge(parts: Sequence[Path], dataloaders: bool, rows: int = 4096) -> Iterator[dict[str, list[Any]]]:
    """Chunks of rows of all parts in the order of their keys, each key once.

    Parts are streamed where each is sorted already (it is, unless the data were shuffled), else sorted in memory.
    """
    streams = [_rows(part) if _is_sorted(part) else iter(sorted(_rows(part), key=_key)) for part in parts]
    names: list[str] = []
    buffer: list[tuple[Any, ...]] = []
    last: Key | None = None
    for key, columns, values in heapq.merge(*streams, key=_key):
        if key == last:
            continue
        last, names = key, columns
        buffer.append((key[0], *values) if dataloaders else values)
        if len(buffer) == rows:
            yield _chunk(names, buffer, dataloaders)
            buffer = []
    if buffer:
        yield _chunk(names, buffer, dataloaders)


def _chunk(names: list[str], buffer: list[tuple[Any, ...]], dataloaders: bool) -> dict[str, list[Any]]:
    names = ["dataloader", *names] if dataloaders else names
    return {name: list(values) for name, values in zip(names, zip(*buffer))}


def _key(row: tuple[Key, list[str], tuple[Any, ...]]) -> Key:
    return row[0]


def _batches(part: Path) -> Iterator[tuple[list[Key], dict[str, list[Any]]]]:
    with part.open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)  # written by this process group a moment ago


def _rows(part: Path) -> Iterator[tuple[Key, list[str], tuple[Any, ...]]]:
    for keys, columns in _batches(part):
        names = list(columns)
        for key, values in zip(keys, zip(*columns.values())):
            yield key, names, values


def _is_sorted(part: Path) -> bool:
    last: Key = ()
    for keys, _ in _batches(part):
        for key in keys:
            if key < last:
                return False
            last = key
    return True


def _tables(pl_module: LightningModule) -> dict[str, dict[str, list[Any]]]:
    """The module's own tables, checked."""
    if not isinstance(pl_module, Tabular):
        return {}
    owner, tables = type(pl_module).__name__, {}
    for name, table in pl_module.prediction_tables().items():
        if name == "predictions" or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"prediction_tables() of {owner} must use plain file names, got {name!r}")
        columns = {column: _plain(values) for column, values in table.items()}
        lengths = {column: len(values) for column, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of table {name!r} of {owner} must be equally long, got {lengths}")
        tables[name] = columns
    return tables
