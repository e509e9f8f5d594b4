"""Failure traces from files: LANL's public format, its nine-column extract, a CSV of times, or a CSV of counts."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from framework.errors import near
from framework.reliability.rates import MINUTES_PER_DAY, checked

if TYPE_CHECKING:
    from framework.reliability.gaps import Floats

COLUMNS = {
    "start": ("start", "Prob Started", "time"),
    "node": ("node", "nodenum"),
    "system": ("system", "System"),
    "nodes": ("nodes",),
    "down": ("down_min", "Down Time"),
    "count": ("count",),
}
"""What is read, and the names a header may give it: ours first, then those of LANL's original file."""

FORMATS = ("%m/%d/%Y %H:%M", "%m/%d/%y %H:%M")
"""Times besides ISO 8601: as LANL writes them."""


class Failure(NamedTuple):
    """One failure.

    Attributes:
        minute: When it began, in minutes since some fixed time.
        node: Name of the node that failed; empty if not told.
        down: Minutes until it was repaired; NaN if not told.
    """

    minute: float
    node: str
    down: float


@dataclass(frozen=True)
class Trace:
    """Failures of one system in the order of time.

    Attributes:
        failures: The failures; empty where a file has counts only.
        nodes: Nodes that could fail.
        days: Days of observation.
        count: Number of failures.
        unreadable: ``file:line: reason`` of every row that could not be read.
    """

    failures: list[Failure]
    nodes: float
    days: float
    count: int
    unreadable: list[str] = field(default_factory=list)

    @property
    def node_days(self) -> float:
        """Exposure in node-days."""
        return self.nodes * self.days

    def gaps(self) -> tuple[Floats, int]:
        """Times between successive failures of the whole system.

        Returns:
            Gaps above zero in minutes, and the number of those of zero: times are entered by hand to the minute, and
            ties are no information about a distribution.
        """
        import numpy as np

        between = np.diff(np.asarray([failure.minute for failure in self.failures], dtype=float))
        return between[between > 0], int((between == 0).sum())


def read_trace(
    path: str | Path, *, system: str | None = None, nodes: float | None = None, days: float | None = None
) -> Trace:
    """Read a CSV file, plain or compressed (``.gz``, ``.xz``, ``.bz2``), with a header.

    A column ``start`` (LANL: ``Prob Started``) holds times, in ISO 8601, as ``month/day/year hour:minute``, or as days
    since the beginning. Optional are ``node``, ``system``, ``nodes`` (nodes of the system) and ``down_min``. A file
    with a column ``count`` and no times holds numbers of failures, say by cause.

    Args:
        path: The file.
        system: Which system, where the file has several.
        nodes: Nodes of the system; needed where the file does not tell.
        days: Days of observation; by default those between the first failure and the last.

    Raises:
        ValueError: If the file cannot be read as a trace, or what is needed is not told; the message names the file.
    """
    for name, value in (("nodes", nodes), ("days", days)):
        if value is not None:
            checked(name, value, positive=True)
    try:
        with _opened(Path(path)) as lines:
            rows = csv.DictReader(lines)
            columns = _columns(path, rows.fieldnames or [])
            if "start" not in columns:
                return _counted(path, rows, columns, nodes, days)
            failures, sizes, systems, unreadable = _read(path, rows, columns, system)
    except (UnicodeDecodeError, csv.Error, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a CSV file: {error}") from error
    if system is not None and "system" not in columns:
        raise ValueError(f"{path} has no column system, but system {system} was asked for")
    if not failures:
        if system is not None and system not in systems:
            raise ValueError(f"{path} has no system {system}; it has {_listed(systems)}{near(system, systems)}")
        first = f"; the first that could not be read: {unreadable[0]}" if unreadable else ""
        raise ValueError(f"{path} has no readable failure{first}")
    if system is None and len(systems) > 1:
        raise ValueError(f"{path} has several systems: choose one of {_listed(systems)}")
    failures.sort()
    if nodes is None:
        if not sizes:
            raise ValueError(f"{path} does not tell how many nodes there were: give nodes")
        nodes = max(sizes)  # parts of a system, with nodes of their own kind, say the size of the whole
    if days is None:
        days = (failures[-1].minute - failures[0].minute) / MINUTES_PER_DAY
        if not days > 0:
            raise ValueError(f"all failures in {path} are at one time: give days of observation")
    return Trace(failures, nodes, days, len(failures), unreadable)


def _read(
    path: str | Path, rows: csv.DictReader[str], columns: dict[str, str], system: str | None
) -> tuple[list[Failure], set[float], set[str], list[str]]:
    failures: list[Failure] = []
    sizes: set[float] = set()
    systems: set[str] = set()
    unreadable: list[str] = []
    for row in rows:
        name = (row.get(columns.get("system", "")) or "").strip()
        if name:
            systems.add(name)
        if system is not None and name != system:
            continue
        try:
            minute = _minute(row[columns["start"]])
            if "nodes" in columns:
                sizes.add(_number("nodes", row[columns["nodes"]]))
        except ValueError as error:
            unreadable.append(f"{path}:{rows.line_num}: {error}")
            continue
        node = (row.get(columns.get("node", "")) or "").strip()
        failures.append(Failure(minute, node, _down(row.get(columns.get("down", "")))))
    return failures, sizes, systems, unreadable


def _counted(
    path: str | Path, rows: csv.DictReader[str], columns: dict[str, str], nodes: float | None, days: float | None
) -> Trace:
    if "count" not in columns:
        known = ", ".join(rows.fieldnames or []) or "none"
        raise ValueError(f"{path} has neither a column start nor a column count; its columns: {known}")
    if nodes is None or days is None:
        raise ValueError(f"{path} holds counts: give nodes and days of observation")
    total, readable, unreadable = 0, 0, []
    for row in rows:
        text = (row[columns["count"]] or "").strip()
        if text.isascii() and text.isdigit():
            total += int(text)
            readable += 1
        else:
            unreadable.append(f"{path}:{rows.line_num}: count is {text!r}, not a whole number")
    if not readable:
        raise ValueError(f"{path} has no readable count{'; ' + unreadable[0] if unreadable else ''}")
    return Trace([], nodes, days, total, unreadable)


def _columns(path: str | Path, header: Sequence[str]) -> dict[str, str]:
    present = {name.strip(): name for name in header if name}
    if not present:
        raise ValueError(f"{path} is empty: it needs a header with a column start")
    return {
        ours: present[name]
        for ours, names in COLUMNS.items()
        if (name := next((name for name in names if name in present), None)) is not None
    }


def _minute(text: str | None) -> float:
    text = (text or "").strip()
    if not text:
        raise ValueError("no start time")
    try:
        days = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(days):
            raise ValueError(f"start is {text!r}, neither a time nor a number of days")
        return days * MINUTES_PER_DAY
    when = None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        for pattern in FORMATS:
            try:
                when = datetime.strptime(text, pattern)
                break
            except ValueError:
                continue
    if when is None:
        raise ValueError(f"start is {text!r}, neither a time nor a number of days")
    # Differences alone matter, and a file is in one zone throughout: wall-clock time without daylight saving.
    return (when.replace(tzinfo=None) - (when.utcoffset() or _NO_TIME) - datetime(1970, 1, 1)).total_seconds() / 60


_NO_TIME = datetime(1970, 1, 1) - datetime(1970, 1, 1)


def _number(name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {text!r}, not a positive number")
    return value


def _down(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names, key=lambda name: (len(name), name))) or "none"


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """The text of a file, decompressed by its ending."""
    import bz2
    import gzip
    import lzma

    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    opener = openers.get(path.suffix, open)
    try:
        with opener(os.fspath(path), "rt", encoding="utf-8-sig", newline="") as lines:  # type: ignore[operator]
            yield lines
    except (gzip.BadGzipFile, lzma.LZMAError) as error:
        raise ValueError(f"{path} is not a whole {path.suffix} file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
