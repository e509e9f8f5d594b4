"""``metrics.csv``: a CSV logger whose history survives kills and restarts."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from torch import Tensor


class MetricsLog(CSVLogger):
    """Log metrics to ``<directory>/<file>``, each row written at once and never deleted by a restart.

    Lightning's ``CSVLogger`` removes the file it finds in its directory. This one continues it: rows that lie after the
    checkpoint a run is resumed from are dropped by ``forget``, all others stay.

    Args:
        directory: The run directory.
        file: Name of the file in it.
        prefix: What stands before the name of every metric, with a dash between.
    """

    def __init__(self, directory: str | Path, file: str = "metrics.csv", prefix: str = "") -> None:
        super().__init__(save_dir=directory, name="", version="", prefix=prefix)
        self.directory = Path(directory)
        self.file = file

    @property
    def log_dir(self) -> str:
        return str(self.directory)

    @property
    def root_dir(self) -> str:
        return str(self.directory)

    @property
    def save_dir(self) -> str:
        return str(self.directory)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer; ranks other than the first get a dummy."""
        if self._experiment is None:
            self._experiment = _Appender(self.directory, self.file)
        return self._experiment

    def forget(self, step: int) -> None:
        """Drop the rows of ``step`` and later: what a resumed run is about to log again."""
        self.experiment.forget(step)

    def has(self, step: int, names: set[str]) -> bool:
        """Whether there is a row of ``step`` with exactly these metrics."""
        return (step, frozenset(names)) in self.rows()

    def rows(self) -> set[tuple[int, frozenset[str]]]:
        """Step and names of metrics of every row; on ranks other than the first there are none."""
        start = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        found: list[dict[str, str]] = getattr(self.experiment, "rows", list)() or []
        return {
            (int(row["step"]), frozenset(name.removeprefix(start) for name in row if name not in ("step", "epoch")))
            for row in found
        }


class NoRepeats:
    """``log_metrics`` of another logger in a resumed run, without the rows that it has been told before.

    W&B and TensorBoard cannot take back what a run logged between its last checkpoint and its end; what the resumed run
    logs there is the same.

    Args:
        log_metrics: The logger's own method.
        told: Step and names of metrics of each row that the run has logged already.
    """

    def __init__(self, log_metrics: Callable[..., None], told: set[tuple[int, frozenset[str]]]) -> None:
        self.log_metrics, self.told = log_metrics, set(told)

    def __call__(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = (step or 0, frozenset(name for name in metrics if name != "epoch"))
        if row in self.told:
            self.told.remove(row)
        else:
            self.log_metrics(metrics=metrics, step=step)


class _Appender(ExperimentWriter):
    """Writes rows to one CSV file: ``step`` and ``epoch`` first, then metrics in the order they first appeared."""

    def __init__(self, directory: Path, file: str) -> None:  # the parent's would delete the file
        self.path = directory / file
        self.log_dir = str(directory)
        self.metrics_file_path = str(self.path)
        self.metrics: list[dict[str, float]] = []  # what is still to be written: always empty
        self.hparams: dict[str, Any] = {}
        self.columns: list[str] = []
        self.resumed = False
        if self.path.is_file():
            self.columns, rows = self._read()
            self._write(rows)  # without the torn last line of a killed run
            self.resumed = bool(rows)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Hyper-parameters are in ``config.yaml``."""
        self.hparams.update(params)

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics_dict.items()}
        row = {"step": 0 if step is None else step, **row}
        new = [key for key in row if key not in self.columns]
        if self.resumed:
            # Before the first new batch, the end of an epoch may be logged a second time.
            _, rows = self._read()
            self.columns = _ordered([*self.columns, *new])
            self._write([old for old in rows if not _same(old, row)])
        elif new:
            rows = self._read()[1] if self.path.is_file() else []
            self.columns = _ordered([*self.columns, *new])
            self._write(rows)
        with open(self.path, "ab") as file:
            file.write(_line([row.get(column, "") for column in self.columns]))

    def save(self) -> None:
        """Rows are written when they are logged."""

    def forget(self, step: int) -> None:
        """Drop the rows of ``step`` and later."""
        if self.resumed:
            _, rows = self._read()
            self._write([row for row in rows if int(row["step"]) < step])
            self.resumed = False

    def rows(self) -> list[dict[str, str]]:
        """What has been logged, without the empty cells."""
        found = self._read()[1] if self.path.is_file() else []
        return [{name: value for name, value in row.items() if value != ""} for row in found]

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        rows = [row for row in reader if row.get("step", "").isdigit() and None not in row.values()]
        return list(reader.fieldnames or []), rows

    def _write(self, rows: list[dict[str, str]]) -> None:
        lines = [_line(self.columns)] if self.columns else []
        lines += [_line([row.get(column, "") for column in self.columns]) for row in rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.new")
        fresh.write_bytes(b"".join(lines))
        os.replace(fresh, self.path)  # a kill leaves the old file or the new one


def _ordered(columns: list[str]) -> list[str]:
    return sorted(columns, key=lambda column: {"step": 0, "epoch": 1}.get(column, 2))


def _same(old: dict[str, str], row: dict[str, Any]) -> bool:
    return old["step"] == str(row["step"]) and {key for key, value in old.items() if value != ""} == set(row)


def _line(values: list[Any]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue().encode()
