"""What ``fulgurite ettr`` prints and writes: aligned tables, JSON, CSV, pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import ConfigurationError
from framework.reliability.units import readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Column = tuple[str, str, Callable[[Any], str]]
"""Key in a row, heading, and how a value is shown; ``None`` and NaN are a dash."""


@dataclass
class Table:
    """Rows of one kind.

    Attributes:
        name: Key in JSON.
        columns: What is printed; rows may hold more.
        rows: The rows; times in minutes.
        title: Printed above.
        printed: The rows as they are printed, where numbers of one column have different units.
    """

    name: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    printed: Sequence[Row] | None = None

    def text(self) -> str:
        """Aligned columns under their headings."""
        shown = [[heading for _, heading, _ in self.columns]]
        for row in self.printed or self.rows:
            shown.append([_cell(row[key], show) for key, _, show in self.columns])
        widths = [max(map(len, column)) for column in zip(*shown)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in shown]
        return "\n".join(([self.title] if self.title else []) + lines)


@dataclass
class Report:
    """All that a command found out.

    Attributes:
        tables: Tables in the order of printing.
        notes: Sentences below them.
        facts: More for JSON.
        main: Which table goes into CSV.
    """

    tables: list[Table]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    main: int = 0

    def text(self) -> str:
        """The tables and notes."""
        parts = [table.text() for table in self.tables]
        if self.notes:
            parts.append("\n".join(self.notes))
        return "\n\n".join(parts) + "\n"

    def json(self) -> str:
        """Everything; what is not finite is null."""
        found: dict[str, Any] = dict(self.facts)
        found |= {table.name: [dict(row) for row in table.rows] for table in self.tables}
        if self.notes:
            found["notes"] = self.notes
        return json.dumps(_finite(found), indent=1, allow_nan=False) + "\n"

    def csv(self) -> str:
        """The rows of the main table, nothing if there are none; what is not finite is empty."""
        rows = [_finite(dict(row)) for row in self.tables[self.main].rows]
        if not rows:
            return ""
        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return lines.getvalue()


def give(report: Report, options: argparse.Namespace, draw: Callable[[], Figure] | None) -> None:
    """Print the report, and write the files that were asked for.

    Args:
        report: The report.
        options: ``json``, ``csv`` and ``picture``.
        draw: Draws the picture; ``None`` if there is none.

    Raises:
        ConfigurationError: If a file cannot be written, both formats want standard output, or there is no picture.
    """
    if options.json == "-" and options.csv == "-":
        raise ConfigurationError("ettr: only one of --json and --csv can be - (standard output)")
    if options.picture and draw is None:
        raise ConfigurationError("ettr: --picture: there is no picture of this")
    for option, text in (("json", report.json), ("csv", report.csv)):
        target = getattr(options, option)
        if target and target != "-":
            _write(f"--{option}", Path(target), text().encode())
    if options.picture and draw is not None:
        from framework.figures import png

        _write("--picture", options.picture, png(draw()))
    if options.json == "-":
        sys.stdout.write(report.json())
    elif options.csv == "-":
        sys.stdout.write(report.csv())
    else:
        sys.stdout.write(report.text())


def ratio(value: float) -> str:
    """An ETTR."""
    return f"{value:.4f}" if value >= 5e-5 or value == 0 else f"{value:.2e}"


def percent(value: float) -> str:
    """A share in per cent."""
    return f"{100 * value:.1f} %"


def signed(value: float) -> str:
    """A relative error in per cent."""
    return f"{100 * value:+.2f} %"


def plain(value: Any) -> str:
    """Text as it is; numbers with four digits, whole and large ones in full."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if 1000 <= value < 1e12 or value in range(1000) else f"{value:.4g}"


time = readable


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return show(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(option: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigurationError(f"ettr: {option} {path} cannot be written: {error.strerror or error}") from error
