"""Tables of a few runs that differ widely, as in reinforcement learning: interquartile means, and who is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from framework.evaluation.comparison import by_seed
from framework.evaluation.record_tables import NONE, Cells, columns_of, described, rows_of, scaled
from framework.evaluation.records import Record
from framework.evaluation.statistics import probability_of_improvement, stratified_iqm_interval


def iqm_table(
    records: Sequence[Record],
    rows: Sequence[Any],
    columns: Sequence[Any],
    metric: str = "test/return",
    mode: str = "max",
    percent: bool = False,
    decimals: int = 1,
    against: str | None = None,
) -> tuple[Cells, str]:
    """Interquartile mean over seeds with a bootstrap interval, and the probability of being better than one row.

    Args:
        records: The records.
        rows: Rows: names, or mappings with ``row`` and perhaps ``label``.
        columns: Data sets as columns: names, or mappings with ``data`` and perhaps ``label``, ``metric``, ``mode`` and
            ``percent``.
        metric: Logged name of the metric of columns that name none.
        mode: Whether more of it is better, ``max``, or less, ``min``.
        percent: Whether it is shown times 100.
        decimals: Decimals shown.
        against: The row to compare with; None for no comparison.
    """
    heads, labels = columns_of(columns, metric, mode, percent), rows_of(rows)
    beside = [] if against is None else [f"better than {labels.get(against, against)}"]
    table, counts = [["", *(head for column in heads for head in (column.label, *beside))]], set()
    for row, label in labels.items():
        cells = [label]
        for column in heads:
            values = list(by_seed(records, row, column.data, column.metric).values())
            other = [] if against is None else list(by_seed(records, against, column.data, column.metric).values())
            if not values:
                cells += [NONE] * (1 + len(beside))
                continue
            counts.add(len(values))
            interval = scaled(stratified_iqm_interval({column.data: values}), 100 if column.percent else 1)
            cells.append(
                f"{interval.estimate:.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"
            )
            if not beside:
                continue
            if row == against or not other:
                cells.append(NONE)
                continue
            sign = 1 if column.mode == "max" else -1
            better = probability_of_improvement(
                {column.data: [sign * value for value in values]}, {column.data: [sign * value for value in other]}
            )
            cells.append(f"{better.estimate:.2f} [{better.low:.2f}, {better.high:.2f}]")
        table.append(cells)
    seeds = " or ".join(str(count) for count in sorted(counts)) or "no"
    caption = f"{described(heads)}: interquartile mean over {seeds} seeds with the 95 % interval of a bootstrap."
    if against is not None:
        caption += f" Better: share of pairs of runs in which the row's is better than {against}'s, with its interval."
    return table, caption
