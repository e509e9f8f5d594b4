"""Curves of records: how far along one a level is reached, and the area under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from framework.evaluation.records import Record


def reached_at(x: Sequence[float], y: Sequence[float], level: float, mode: str = "max") -> float | None:
    """The first point of a curve at or beyond a level; nothing is interpolated, so it is a point that was run.

    Args:
        x: Ascending positions.
        y: Values there, as many.
        level: What is to be reached.
        mode: ``max`` if more is better, ``min`` if less is.

    Returns:
        Its position; ``None`` if no point reaches the level.
    """
    sign = 1 if mode == "max" else -1
    return next((at for at, value in zip(x, y, strict=True) if sign * value >= sign * level), None)


def mean_height(x: Sequence[float], y: Sequence[float], start: float, end: float) -> float:
    """Area under a curve between two positions by the trapezoidal rule, divided by their distance.

    Args:
        x: Strictly ascending positions, at least two.
        y: Values there, as many.
        start: Where the area begins, not before the first position.
        end: Where it ends, not after the last one.

    Returns:
        The mean height, in the unit of ``y``.

    Raises:
        ValueError: If the curve does not cover the range, or positions do not ascend.
    """
    import numpy as np
    from scipy.integrate import trapezoid

    at, heights = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(at) != len(heights) or len(at) < 2 or not (np.diff(at) > 0).all():
        raise ValueError(f"a curve needs two or more ascending positions with one value each, got {list(x)}")
    if not at[0] <= start < end <= at[-1]:
        raise ValueError(f"the area from {start:g} to {end:g} must lie in the curve's {at[0]:g} to {at[-1]:g}")
    inside = at[(at > start) & (at < end)]
    points = np.concatenate([[start], inside, [end]])
    return float(trapezoid(np.interp(points, at, heights), points) / (end - start))


def reach_by_seed(
    records: Iterable[Record],
    row: str,
    data: str,
    x: str,
    y: str,
    levels: dict[int, float],
    mode: str = "max",
) -> dict[int, float | None]:
    """Where each seed's curve first reaches that seed's level.

    Args:
        records: The records.
        row: Row whose curves are read.
        data: Data set.
        x: Name of the curve of positions.
        y: Name of the curve of values.
        levels: Level by seed; seeds without one are left out.
        mode: ``max`` if more is better, ``min`` if less is.

    Returns:
        Position by seed, ``None`` for a seed that does not get there; empty if nothing was run.

    Raises:
        ValueError: If a record lacks a curve, naming those it has.
    """
    return {
        seed: reached_at(positions, values, levels[seed], mode)
        for seed, positions, values in _curves(records, row, data, x, y)
        if seed in levels
    }


def height_by_seed(records: Iterable[Record], row: str, data: str, x: str, y: str, position: float) -> dict[int, float]:
    """What each seed's curve shows at the first of its points at or beyond a position.

    Args:
        records: The records.
        row: Row whose curves are read.
        data: Data set.
        x: Name of the curve of positions.
        y: Name of the curve of values.
        position: Where to read.

    Returns:
        Value by seed; a seed whose curve ends before is left out.

    Raises:
        ValueError: If a record lacks a curve, naming those it has.
    """
    heights = {}
    for seed, positions, values in _curves(records, row, data, x, y):
        there = [value for at, value in zip(positions, values, strict=True) if at >= position]
        if there:
            heights[seed] = there[0]
    return heights


def _curves(
    records: Iterable[Record], row: str, data: str, x: str, y: str
) -> Iterator[tuple[int, Sequence[float], Sequence[float]]]:
    """Seed, positions and values of every curve of a row."""
    for record in records:
        if (record.row, record.data) == (row, data):
            for name in (x, y):
                if name not in record.curves:
                    known = ", ".join(sorted(record.curves)) or "none"
                    raise ValueError(f"record {record.key} has no curve {name!r}; it has {known}")
            yield record.seed, record.curves[x], record.curves[y]
