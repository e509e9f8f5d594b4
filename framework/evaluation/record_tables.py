"""Kinds of tables that show records: rows against data sets.

Each takes the keys of its specification as arguments and returns the cells, heading first, and a caption.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from framework.evaluation.comparison import by_seed, chosen, compare
from framework.evaluation.curves import height_by_seed, reach_by_seed
from framework.evaluation.records import Record
from framework.evaluation.statistics import Interval, mean_interval

Cells = list[list[str]]

NONE = "—"
"""Cell of what was not run or not published."""

MARKS = {"verified": "", "third-party": "ᵗ", "unverified": "ᵘ"}
"""How a published number is marked by how we know it."""

_MEANINGS = {
    "third-party": "ᵗ read in a third party's copy of the paper's table",
    "unverified": "ᵘ from memory, unverified",
}
_REFERENCE = re.compile(r"(?P<value>-?[\d.]+)(?: \((?P<spread>[\d.]+)\))? (?P<known>verified|third-party|unverified)")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        data: Data set.
        label: Heading.
        metric: Logged name of what it shows.
        mode: Whether more (``max``) or less (``min``) of it is better.
        percent: Whether it is shown times 100.
    """

    data: str
    label: str
    metric: str
    mode: str = "max"
    percent: bool = True


def values_table(
    records: Sequence[Record],
    rows: Sequence[Any],
    columns: Sequence[Any],
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
    best: bool = False,
    reference: Mapping[str, Mapping[str, str]] | None = None,
    source: str = "",
) -> tuple[Cells, str]:
    """Mean and interval of a metric, beside published numbers.

    Args:
        records: The records.
        rows: Rows: names, or mappings with ``row`` and perhaps ``label``.
        columns: Data sets as columns: names, or mappings with ``data`` and perhaps ``label``, ``metric``, ``mode`` and
            ``percent``.
        metric: Logged name of the metric of columns that name none.
        mode: Whether more of it is better, ``max``, or less, ``min``.
        percent: Whether it is shown times 100.
        decimals: Decimals shown.
        best: Whether the best mean of a column is in bold.
        reference: Published number by row and label of a column, such as ``97.3 (0.4) unverified``.
        source: Where in the paper those stand.
    """
    heads = columns_of(columns, metric, mode, percent)
    labels = rows_of(rows)
    published = {row: _published(row, cells, heads) for row, cells in (reference or {}).items()}
    unknown = set(published) - set(labels)
    if unknown:
        raise ValueError(f"reference names {sorted(unknown)[0]!r}, which is not among the rows {', '.join(labels)}")
    ours: dict[tuple[str, Column], Interval] = {}
    for row in labels:
        for column in heads:
            values = by_seed(records, row, column.data, column.metric)
            if values:
                ours[row, column] = mean_interval([100 * v if column.percent else v for v in values.values()])
    counts = {interval.n for interval in ours.values()}
    with_paper = [column for column in heads if any(column.label in cells for cells in published.values())]
    table = [["", *(head for c in heads for head in ([c.label, "paper"] if c in with_paper else [c.label]))]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            cell = shown_interval(ours.get((row, column)), decimals, counts)
            reached = [round(i.estimate, decimals) for (_, c), i in ours.items() if c == column]
            if best and cell != NONE and len(reached) > 1:
                top = max(reached) if column.mode == "max" else min(reached)
                if round(ours[row, column].estimate, decimals) == top:
                    cell = f"**{cell}**"
            cells.append(cell)
            if column in with_paper:
                cells.append(published.get(row, {}).get(column.label, (NONE, ""))[0])
        table.append(cells)
    marks = {known for cells in published.values() for _, known in cells.values()}
    caption = f"{described(heads)}: mean ± half the width of the 95 % t-interval{_over(counts)}."
    if best:
        caption += " Bold: best mean of a column."
    if with_paper:
        caption += f" Paper: mean (standard deviation){f', {source}' if source else ''}"
        caption += "".join(f"; {_MEANINGS[known]}" for known in MARKS if known in marks and known in _MEANINGS) + "."
    return table, caption


def differences_table(
    records: Sequence[Record],
    against: str | Sequence[str],
    rows: Sequence[Any],
    columns: Sequence[Any],
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
) -> tuple[Cells, str]:
    """Mean and interval of the difference to one row, seed by seed.

    Args:
        records: The records.
        against: That row, or several, of which the mean is taken.
        rows: Rows: names, or mappings with ``row`` and perhaps ``label``.
        columns: Data sets as columns: names, or mappings with ``data`` and perhaps ``label``, ``metric``, ``mode`` and
            ``percent``.
        metric: Logged name of the metric of columns that name none.
        mode: Whether more of it is better, ``max``, or less, ``min``.
        percent: Whether it is shown times 100.
        decimals: Decimals shown.
    """
    heads, labels = columns_of(columns, metric, mode, percent), rows_of(rows)
    other = against if isinstance(against, str) else f"the mean of {', '.join(against)}"
    differences = {
        (row, column): compare(records, row, against, column.data, column.metric) for row in labels for column in heads
    }
    counts = {interval.n for interval in differences.values() if interval is not None}
    table = [[f"minus {other}", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            interval = differences[row, column]
            if interval is not None and column.percent:
                interval = scaled(interval, 100)
            cell = shown_interval(interval, decimals, counts, signed=True)
            cells.append(f"**{cell}**" if interval is not None and (interval.low > 0 or interval.high < 0) else cell)
        table.append(cells)
    return table, (
        f"{described(heads)}, difference to {other} on the same seeds: mean ± half the width of the 95 % t-interval"
        f"{_over(counts)}. Bold: the interval excludes zero."
    )


def choices_table(
    records: Sequence[Record], rows: Sequence[Any], columns: Sequence[Any], most: int = 3
) -> tuple[Cells, str]:
    """Which hyper-parameters were picked on validation data, and by how many seeds.

    Args:
        records: The records.
        rows: Rows: names, or mappings with ``row`` and perhaps ``label``.
        columns: Data sets as columns: names, or mappings with ``data`` and perhaps ``label``, ``metric``, ``mode`` and
            ``percent``.
        most: Choices shown of a cell; the others are counted.
    """
    heads, labels = columns_of(columns, "", "max", True), rows_of(rows)
    table = [["", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            counted = chosen(records, row, column.data)
            shown = [f"{_choice(choice)} ({count})" for choice, count in counted[:most]]
            others = sum(count for _, count in counted[most:])
            cells.append("; ".join([*shown, *([f"others ({others})"] if others else [])]) or NONE)
        table.append(cells)
    return table, "Hyper-parameters picked for each seed on validation data, with the number of seeds that picked them."


def reach_table(
    records: Sequence[Record],
    rows: Sequence[Any],
    columns: Sequence[Any],
    against: str,
    x: str,
    fraction: float = 0.99,
    metric: str = "test/accuracy",
    mode: str = "max",
    percent: bool = True,
    decimals: int = 1,
    at: float | None = None,
) -> tuple[Cells, str]:
    """How far along its curve a row first gets to a share of what another row reaches.

    Args:
        records: The records.
        rows: Rows: names, or mappings with ``row`` and perhaps ``label``.
        columns: Data sets as columns: names, or mappings with ``data`` and perhaps ``label``, ``metric``, ``mode`` and
            ``percent``.
        against: The row whose metric, seed by seed, is to be reached: that of the finished run.
        x: Name of the curve that says how far.
        fraction: Share of it to reach.
        metric: Logged name of the metric of columns that name none.
        mode: Whether more of it is better, ``max``, or less, ``min``.
        percent: Whether it is shown times 100.
        decimals: Decimals shown.
        at: Position on the curve of ``against`` whose height is to be reached, instead of the finished run's.
    """
    heads, labels = columns_of(columns, metric, mode, percent), rows_of(rows)
    table = [["", *(column.label for column in heads)]]
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            reference = (
                by_seed(records, against, column.data, column.metric)
                if at is None
                else height_by_seed(records, against, column.data, x, column.metric, at)
            )
            levels = {seed: fraction * value for seed, value in reference.items()}
            found = reach_by_seed(records, row, column.data, x, column.metric, levels, column.mode)
            there = [value * (100 if column.percent else 1) for value in found.values() if value is not None]
            cell = shown_interval(mean_interval(there) if there else None, decimals, {len(there)})
            if len(there) < len(found):
                cell = f"{cell} ({len(there)} of {len(found)} seeds)" if there else f"not reached ({len(found)} seeds)"
            cells.append(cell)
        table.append(cells)
    what = described([dataclasses.replace(column, percent=False) for column in heads])
    where = "" if at is None else f" at {100 * at:g} %" if percent else f" at {at:g}"
    return table, (
        f"`{x}`{' in %' if percent else ''} at which a seed first reaches {100 * fraction:g} % of what {against} "
        f"reaches in {what}{where} with the same seed: mean ± half the width of the 95 % t-interval over the "
        "seeds that get there."
    )


# Parts of tables


def columns_of(columns: Sequence[Any], metric: str, mode: str, percent: bool) -> list[Column]:
    """Columns with the table's own metric, mode and percent where they name none.

    Raises:
        ValueError: If a column names no data, or its mode is neither ``max`` nor ``min``.
    """
    heads = []
    for given in columns:
        fields = {"data": given} if isinstance(given, str) else dict(given)
        if "data" not in fields:
            raise ValueError(f"a column needs data, got {given}")
        defaults = {"label": fields["data"], "metric": metric, "mode": mode, "percent": percent}
        heads.append(Column(**{**defaults, **fields}))
        check_mode(heads[-1].mode, f"column {heads[-1].label}")
    return heads


def check_mode(mode: object, owner: str) -> None:
    """Raise ``ValueError`` naming the owner unless the mode is ``max`` or ``min``."""
    if mode not in ("max", "min"):
        raise ValueError(f"mode of {owner} must be max or min, got {mode!r}")


def _choice(choice: Mapping[str, object]) -> str:
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in choice.items())


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval of values times a positive factor."""
    low, high = factor * interval.low, factor * interval.high
    return interval._replace(estimate=factor * interval.estimate, low=low, high=high)


def rows_of(rows: Sequence[Any]) -> dict[str, str]:
    """Label by row."""
    pairs = [(row, row) if isinstance(row, str) else (row["row"], row.get("label", row["row"])) for row in rows]
    return dict(pairs)


def _published(row: str, cells: Mapping[str, str], heads: Sequence[Column]) -> dict[str, tuple[str, str]]:
    """Published number as shown and how it is known, by column label."""
    shown = {}
    for label, text in cells.items():
        if label not in [column.label for column in heads]:
            raise ValueError(f"reference of {row} names {label!r}, which is not among the columns")
        match = _REFERENCE.fullmatch(str(text))
        if match is None:
            raise ValueError(
                f"reference of {row} on {label} must read like `97.3 (0.4) unverified` with one of "
                f"{', '.join(MARKS)} at its end, got {text!r}"
            )
        spread = f" ({match['spread']})" if match["spread"] else ""
        shown[label] = f"{match['value']}{spread}{MARKS[match['known']]}", match["known"]
    return shown


def shown_interval(interval: Interval | None, decimals: int, counts: set[int], signed: bool = False) -> str:
    """Mean ± half the interval; with the number of seeds where those of the table (``counts``) differ."""
    if interval is None:
        return NONE
    text = f"{interval.estimate:{'+' if signed else ''}z.{decimals}f}"  # z: no -0.0
    if interval.n > 1:
        text += f" ± {interval.half:.{decimals}f}"
    return text if len(counts) == 1 else f"{text} (n = {interval.n})"


def described(heads: Sequence[Column]) -> str:
    """The metrics of columns, for a caption."""
    shown = {f"{column.metric}{' in %' if column.percent else ''}" for column in heads}
    return ", ".join(f"`{name}`" if " " not in name else f"`{name[:-5]}` in %" for name in sorted(shown))


def _over(counts: set[int]) -> str:
    return f" over {seeds_text(next(iter(counts)))}" if len(counts) == 1 else " over n seeds"


def seeds_text(count: int) -> str:
    """A number of seeds in words."""
    return f"{count} seed" if count == 1 else f"{count} seeds"
